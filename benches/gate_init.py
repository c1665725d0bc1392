"""Compare initialisations of the gates: `python benches/gate_init.py MODEL CORPUS`.

Prunes MODEL (a folder) to about half of its blocks in 0, 25, 50, 100 and 150 steps, with gates that start alike, by
Taylor importance and by activations, and prints the mean held-out loss of the domains right after the cut. The settings
are those of the quickstart, the mixture is even; 0 steps are the one-shot cut of `drpruning export prune`.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import click
import torch

from drpruning.corpus import Corpus
from drpruning.hf.models import load
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.importance import importance
from drpruning.sampler import DomainSampler
from drpruning.train.losses import token_losses
from drpruning.train.validation import Validator

ROWS, LENGTH = 16, 128


def held_out(model: torch.nn.Module, validator: Validator) -> float:
    return statistics.fmean(validator.losses(model).values())


def pruned_loss(masked: MaskedModel, corpus: Corpus, validator: Validator, steps: int, seed: int) -> float:
    """Train for ``steps`` steps, extract, and return the mean held-out loss."""
    groups = masked.parameter_groups()
    optimizer = torch.optim.AdamW(
        [
            {"params": groups["weights"], "lr": 3e-4},
            {"params": groups["gates"], "lr": 0.2 * 150 / max(steps, 1)},
            {"params": groups["multipliers"], "lr": 0.02 * 150 / max(steps, 1), "maximize": True},
        ],
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    sampler = DomainSampler(corpus, dict.fromkeys(corpus.domains, 1.0), seq_len=LENGTH, batch_size=ROWS, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    masked.train()
    for step in range(steps):
        masked.sample_masks(generator)
        loss = token_losses(masked, torch.from_numpy(next(sampler).tokens)).mean()
        (loss + masked.constraint(step)).backward()
        torch.nn.utils.clip_grad_norm_(groups["weights"], 1.0)
        optimizer.step()
        masked.clamp_gates()
        optimizer.zero_grad()
    return held_out(masked.extract(), validator)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", metavar="CORPUS", type=click.Path(path_type=Path, exists=True))
@click.option("--seeds", default=3, show_default=True)
def main(model: Path, folder: Path, seeds: int) -> None:
    """Compare the three initialisations."""
    torch.set_num_threads(1)
    corpus = Corpus.open(folder)
    validator = Validator.from_corpus(
        corpus, list(corpus.domains), seq_len=LENGTH, tokens=8192, batch_size=32, split="validation"
    )
    print(f"base: {held_out(load(model).eval(), validator):.3f} nats per token, mean of {len(corpus.domains)} domains")
    print(f"{'steps':>6}  " + "  ".join(f"{gate_init:>22}" for gate_init in ("uniform", "taylor", "activation")))
    for steps in (0, 25, 50, 100, 150):
        cells = []
        for gate_init in ("uniform", "taylor", "activation"):
            losses = []
            for seed in range(17, 17 + (seeds if steps or gate_init != "uniform" else 1)):
                masked = MaskedModel(
                    load(model),
                    Target(layers=5, hidden=96, heads=6, intermediate=288),
                    warmup_steps=steps // 2,
                    quadratic_multiplier_init=50.0,
                )
                if gate_init != "uniform":
                    rows = DomainSampler(
                        corpus, dict.fromkeys(corpus.domains, 1.0), seq_len=LENGTH, batch_size=ROWS, seed=seed + 100
                    )
                    batches = (torch.from_numpy(next(rows).tokens) for _ in range(32))
                    masked.init_from_importance(importance(masked, batches, gate_init))  # type: ignore[arg-type]
                losses.append(pruned_loss(masked, corpus, validator, steps, seed))
            cells.append(f"{statistics.fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})")
        print(f"{steps:>6}  " + "  ".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
