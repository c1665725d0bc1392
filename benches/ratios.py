"""Ratios to the plain alternative, each pair measured in turn in one process: `python benches/ratios.py`.

Prints a Markdown table. A ratio is the median over pairs, with its quartiles, since machines are noisy.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import drpruning as dp
from drpruning.pruning import MaskedModel, Target

MIXTURE = {"cc": 0.67, "github": 0.045, "book": 0.045, "stack": 0.02, "wiki": 0.045, "arxiv": 0.025, "c4": 0.15}


def paired(ours: Callable[[], object], plain: Callable[[], object], pairs: int) -> tuple[float, float, float]:
    """Return the quartiles of time(ours) / time(plain), measured in turn."""
    ratios = []
    for _ in range(pairs + 2):
        taken = []
        for call in (ours, plain):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
        ratios.append(taken[0] / taken[1])
    low, middle, high = np.quantile(ratios[2:], [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def sampler(folder: Path) -> tuple[float, float, float]:
    """Time a batch of 32 rows of 2048 tokens from seven domains: ours, and a NumPy memmap with i.i.d. draws."""
    generator = np.random.default_rng(0)
    for name in MIXTURE:
        generator.integers(0, 30_000, 8_000_000).astype(np.uint16).tofile(folder / f"{name}.bin")
    corpus = dp.Corpus({name: folder / f"{name}.bin" for name in MIXTURE}, dtype="uint16")
    ours = dp.DomainSampler(corpus, MIXTURE, seq_len=2048, batch_size=32, seed=17)
    maps = [np.memmap(folder / f"{name}.bin", np.uint16, "r") for name in MIXTURE]
    shares = np.array(list(MIXTURE.values()))

    def plain() -> np.ndarray:
        domains = generator.choice(len(maps), size=32, p=shares)
        rows = generator.integers(0, 8_000_000 // 2048, size=32) * 2048
        return np.stack([maps[d][r : r + 2048].astype(np.int64) for d, r in zip(domains, rows, strict=True)])

    return paired(lambda: [next(ours) for _ in range(50)], lambda: [plain() for _ in range(50)], pairs=40)


def ball() -> tuple[float, float, float]:
    """Time the worst case at n = 7: ours, exact, and a NumPy bisection to 1e-14."""
    generator = np.random.default_rng(1)
    p = np.array(list(MIXTURE.values()))
    losses = generator.random((200, 7))

    def bisection(v: np.ndarray) -> np.ndarray:
        low, high = v.max() - 4 * np.ptp(v), v.max()
        for _ in range(50):
            eta = 0.5 * (low + high)
            u = p * np.maximum(v - eta, 0)
            u /= u.sum()
            if 0.5 * ((u - p) ** 2 / p).sum() > 0.1:
                high = eta
            else:
                low = eta
        return u

    return paired(lambda: [dp.worst_case(v, p, 0.1) for v in losses], lambda: [bisection(v) for v in losses], pairs=20)


def masks() -> tuple[float, float, float]:
    """Time a training step of the quickstart's base on one thread, with all four kinds of masks and without."""
    torch.set_num_threads(1)
    shape = {
        "vocab_size": 1536,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }
    tokens = torch.randint(1536, (16, 128), generator=torch.Generator().manual_seed(0))
    plain = LlamaForCausalLM(LlamaConfig(**shape))
    target = Target(layers=5, hidden=96, heads=6, intermediate=288)
    masked = MaskedModel(LlamaForCausalLM(LlamaConfig(**shape)), target, warmup_steps=75).train()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True) for model in (masked, plain)]

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss = model(input_ids=tokens, labels=tokens).loss
        if isinstance(model, MaskedModel):
            loss = loss + model.constraint(50)
        loss.backward()
        optimizer.step()
        if isinstance(model, MaskedModel):
            model.clamp_gates()
        optimizer.zero_grad()

    def masked_step() -> None:
        masked.sample_masks()
        step(masked, optimizers[0])

    return paired(masked_step, lambda: step(plain, optimizers[1]), pairs=30)


def main() -> None:
    """Run all pairs and print the table."""
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, NumPy {np.__version__}"
    )
    print("\n| what | plain alternative | time of ours / plain (quartiles) |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            ("`next(sampler)`, 32 rows of 2048 tokens", "NumPy memmap, i.i.d. draws", sampler(Path(folder))),
            ("`worst_case`, 7 domains", "NumPy bisection to 1e-14", ball()),
            ("masked training step, 1.4M parameters", "the same step unmasked", masks()),
        ]
    for what, plain, (low, middle, high) in rows:
        print(f"| {what} | {plain} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
