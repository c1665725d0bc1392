"""Calibration: the importance of units on training text, before the first step of a prune stage."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from drpruning.flops import calibration_tokens
from drpruning.pruning import MaskedModel
from drpruning.pruning.importance import Measure, RankRows, importance
from drpruning.sampler import DomainSampler
from drpruning.train.context import TrainContext
from drpruning.train.losses import token_losses
from drpruning.train.state import step_seed


def measured_importance(context: TrainContext, masked: MaskedModel, measure: Measure) -> dict[str, torch.Tensor]:
    """Return the importance of the units on every rank; each rank runs its rows as in a training step."""

    def loss(masked: MaskedModel, tokens: torch.Tensor) -> torch.Tensor:
        with context.autocast():
            return token_losses(masked, tokens).mean()

    return importance(masked, calibration_rows(context), measure, loss=loss, total=context.ranks.sum)


def calibration_rows(context: TrainContext) -> Iterator[RankRows]:
    """Yield this rank's rows of training batches at the reference ratio, for the importance of units."""
    rows, ranks = context.config.training.micro_batch_size or context.config.pruning.batch_size, context.ranks
    ratio = context.config.reference_ratio
    sampler = DomainSampler(
        context.corpus,
        weights={domain: ratio.get(domain, 0.0) for domain in context.corpus.domains},
        seq_len=context.config.data.seq_len,
        batch_size=rows,
        seed=step_seed(context.config.seed, "calibration", 0),
    )
    for _ in range(calibration_tokens(context.config) // (rows * context.config.data.seq_len)):
        batch = torch.from_numpy(next(sampler).tokens)  # the same on each rank
        own = batch.tensor_split(ranks.world_size)[ranks.rank]
        yield RankRows((own if len(own) else batch[:1]).to(context.device), len(own) / rows)
