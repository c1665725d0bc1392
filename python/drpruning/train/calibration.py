"""Calibration: gates from the importance of units on training text, at the start of a prune stage or of a cycle."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from drpruning.flops import calibration_tokens
from drpruning.pruning import MaskedModel
from drpruning.pruning.importance import Measure, RankRows, importance
from drpruning.pruning.masked_modules import Masks
from drpruning.sampler import DomainSampler
from drpruning.train.context import TrainContext
from drpruning.train.losses import token_losses
from drpruning.train.state import step_seed


def init_gates(context: TrainContext, masked: MaskedModel, measure: Measure, masks: Masks | None = None) -> None:
    """Initialise the gates by importance, alike on every rank; each rank runs its rows as in a training step.

    Args:
        context: The run.
        masked: The model.
        measure: Of importance.
        masks: Masks to score the units under; all ones by default.
    """

    def loss(masked: MaskedModel, tokens: torch.Tensor) -> torch.Tensor:
        with context.autocast():
            return token_losses(masked, tokens).mean()

    rows, ranks = calibration_rows(context), context.ranks
    scores = importance(masked, rows, measure, loss=loss, total=ranks.sum, masks=masks)
    masked.init_from_importance(ranks.agree(lambda: {kind: score.cpu() for kind, score in scores.items()}))


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
