"""The compiled update of narrow weights and moments next to the eager one: time, and bytes moved.

    python benches/train/optimizer.py [--pairs 9] [--numbers 4194304] [--device cpu]

Steps alternate in one process; printed are the median and the quartiles of the ratio compiled / eager. On a CPU: CPU
seconds of one thread. On a GPU: seconds of the device, and bytes a second by the bytes that an update has to move.
"""

from __future__ import annotations

import argparse
import time
from statistics import quantiles

import torch
from torch import Tensor, nn

from drpruning.train.optimizers import LowPrecisionAdamW, to_low_precision

SCHEMES = {
    ("float32", "bfloat16"): 20.0,
    ("bfloat16+low16", "bfloat16"): 18.0,
    ("bfloat16+low16", "int8"): 14.125,
    ("bfloat16", "bfloat16"): 14.0,
    ("bfloat16", "int8"): 10.125,
}
"""Bytes of a number that are read and written: weight, low half, moments, scales; and the gradient, which is read."""
WIDTH = 1024


def optimizer_of(weights: str, moments: str, numbers: int, device: str, *, compiled: bool) -> LowPrecisionAdamW:
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, numbers // WIDTH, bias=False).to(device)
    lows: dict[nn.Parameter, Tensor] = {}
    if weights != "float32":
        lows = to_low_precision(model, keep_low=weights == "bfloat16+low16")
    model.weight.grad = torch.randn_like(model.weight) * 1e-3
    return LowPrecisionAdamW(model.parameters(), moments=moments, lows=lows, compiled=compiled)  # type: ignore[arg-type]


def seconds(optimizer: LowPrecisionAdamW, device: str) -> float:
    if device == "cpu":
        started = time.process_time()
        optimizer.step()
        return time.process_time() - started
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    optimizer.step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--numbers", type=int, default=2**22)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'weights':<16}{'moments':<10}{'compiled / eager':>18}{'quartiles':>18}{'GB/s':>8}")
    for (weights, moments), size in SCHEMES.items():
        both = [optimizer_of(weights, moments, given.numbers, given.device, compiled=each) for each in (True, False)]
        ratios, taken = [], []
        for pair in range(given.pairs + 1):
            order = both if pair % 2 else both[::-1]
            found = {id(each): seconds(each, given.device) for each in order}
            if pair:  # the first compiles
                ratios.append(found[id(both[0])] / found[id(both[1])])
                taken.append(found[id(both[0])])
        low, middle, high = quantiles(ratios, n=4)
        rate = size * given.numbers / min(taken) / 1e9
        print(f"{weights:<16}{moments:<10}{middle:>18.3f}{f'{low:.3f} to {high:.3f}':>18}{rate:>8.1f}")


if __name__ == "__main__":
    main()
