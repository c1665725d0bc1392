"""Cross-entropy in chunks compared with plain logits: time and memory of forward and backward.

    python benches/train/loss.py

Time: in turns in one process, CPU seconds of one thread, median of the ratio to plain. Memory: each way in a process of
its own, growth of the peak resident size over one forward and backward pass (Linux).
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from drpruning.train.fused_cross_entropy import chunked_cross_entropy, torch_cross_entropy

SHAPES = {"quickstart": (2048, 128, 1536), "32,000 words": (1024, 256, 32_000)}
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="none")


WAYS: dict[str, Way] = {
    "plain": plain,
    "chunked": chunked_cross_entropy,
}
if hasattr(functional, "linear_cross_entropy"):
    WAYS["torch, our chunks"] = torch_cross_entropy
    WAYS["torch, its own"] = lambda h, w, t: functional.linear_cross_entropy(
        h, w, t, reduction="none", options=torch.nn.LinearCrossEntropyOptions()
    )


def tensors(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens, width, words = shape
    hidden, weight = torch.randn(tokens, width), torch.randn(words, width) * 0.02
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, words, (tokens,))


def peak(way: str, shape: str) -> float:
    """Return the peak memory of a separate process, MiB."""
    return float(subprocess.run([sys.executable, __file__, way, shape], capture_output=True, check=True).stdout)


def one(way: str, shape: str) -> None:
    given = tensors(SHAPES[shape])
    WAYS[way](*tensors((8, 8, 8))).mean().backward()  # loads what is loaded once
    before = peak_kibibytes()
    WAYS[way](*given).mean().backward()
    print((peak_kibibytes() - before) / 1024)


def peak_kibibytes() -> int:
    """Return this process's peak memory; ``getrusage`` would include that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1))  # type: ignore[union-attr]


def main() -> None:
    torch.set_num_threads(1)
    for shape, sizes in SHAPES.items():
        given = tensors(sizes)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(4):
            for way, compute in WAYS.items():
                started = time.process_time()
                compute(*given).mean().backward()
                times[way].append(time.process_time() - started)
        print(f"{shape}: {sizes[0]} tokens, width {sizes[1]}, {sizes[2]:,} words")
        for way, taken in times.items():
            ratio = median(mine / base for mine, base in zip(taken[1:], times["plain"][1:], strict=True))
            print(f"  {way:<22}{median(taken[1:]) * 1e3:>8.0f} ms{ratio:>7.2f} x plain{peak(way, shape):>8.0f} MiB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    one(*sys.argv[1:]) if len(sys.argv) == 3 else main()
