"""Cost of the gradient of each domain in a training step: what DoGE, GRAPE and PiKE would add to it.

    python benches/train/domain_gradients.py [--hidden 256 --layers 2 --seq-len 64] [--device cuda] [--out FILE.json]

A step is forward, backward, clipping and AdamW on 32 rows of seven domains, in micro-batches of 8 rows. Gradients by
domain need micro-batches of a single domain (9 in place of 4), and after the last one of a domain its gradient, which
is the growth of the accumulated gradient. The least that a rule needs is the squared norm of each domain's gradient
(PiKE), then its inner product with the gradient of the step (DoGE). Both sides run in turn in one process. The ratio is
the median over pairs of processor time, or on an accelerator of elapsed time.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.files import write_text

ROWS = {"cc": 21, "github": 1, "book": 1, "stack": 1, "wiki": 2, "arxiv": 1, "c4": 5}
"""Rows of a batch of 32, near the shares of the 1.3B recipe."""
MICRO_BATCH = 8
VOCABULARY = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 256), ("layers", 2), ("seq-len", 64), ("pairs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(options.device)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
    )
    model = LlamaForCausalLM(config).to(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    tokens = torch.randint(VOCABULARY, (sum(ROWS.values()), options.seq_len), device=device)
    parameters = list(model.parameters())

    def backward(rows: torch.Tensor) -> None:
        loss: Any = model(input_ids=rows, labels=rows).loss
        (loss * len(rows) / len(tokens)).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        for rows in tokens.split(MICRO_BATCH):
            backward(rows)
        update()

    def grouped(*, norms: bool, products: bool) -> None:
        found, before = [], [torch.zeros_like(parameter) for parameter in parameters] if norms else []
        own: list[list[torch.Tensor]] = []
        for of_domain in tokens.split(list(ROWS.values())):
            for rows in of_domain.split(MICRO_BATCH):
                backward(rows)
            if norms:
                now = [parameter.grad for parameter in parameters if parameter.grad is not None]
                growth = torch._foreach_sub(now, before)
                found.append(torch.stack(torch._foreach_norm(growth)).square().sum())
                torch._foreach_copy_(before, now)
                own += [growth] if products else []
        whole = [parameter.grad for parameter in parameters if parameter.grad is not None]
        found += [torch.stack([(a * b).sum() for a, b in zip(growth, whole, strict=True)]).sum() for growth in own]
        if found:
            torch.stack(found).tolist()
        update()

    variants: dict[str, Callable[[], None]] = {
        "micro-batches of a single domain": lambda: grouped(norms=False, products=False),
        "and the norm of each gradient": lambda: grouped(norms=True, products=False),
        "and the inner products": lambda: grouped(norms=True, products=True),
    }
    body: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "parameters": sum(parameter.numel() for parameter in parameters),
        "seq_len": options.seq_len,
        "ratios": {name: paired(variant, plain, options.pairs, device) for name, variant in variants.items()},
    }
    print(json.dumps(body, indent=1))
    if options.out:
        write_text(options.out, json.dumps(body, indent=1) + "\n")


def paired(ours: Callable[[], None], plain: Callable[[], None], pairs: int, device: torch.device) -> list[float]:
    """Return the quartiles of the ratio of ours to plain, measured in turn."""
    ratios = []
    for _ in range(pairs + 1):
        taken = []
        for call in (ours, plain):
            clock = time.process_time if device.type == "cpu" else time.perf_counter
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(clock() - started)
        ratios.append(taken[0] / taken[1])
    return [round(float(value), 3) for value in np.quantile(ratios[1:], [0.25, 0.5, 0.75])]


if __name__ == "__main__":
    main()
