"""Calibration: the importance of units on training text, before the first step of a prune stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

from drpruning.config import MeasuresConfig, PruneConfig, RunConfig
from drpruning.pruning import MaskedModel
from drpruning.pruning.domain_importance import combine
from drpruning.pruning.importance import Measure, Measures, RankRows, importance
from drpruning.sampler import DomainSampler
from drpruning.train.context import TrainContext
from drpruning.train.losses import token_losses
from drpruning.train.state import step_seed

CALIBRATION_TOKENS = 65_536  # for the importance of units; four times as many hardly change their order


def measure_of(settings: PruneConfig) -> Measure | Measures | None:
    """Return the measure that the recipe's gates start from; None if they start at one value."""
    if settings.gate_init == "uniform":
        return None
    if isinstance(settings.gate_init, MeasuresConfig):
        return Measures(settings.gate_init.depth, settings.gate_init.width)
    return settings.gate_init


def measured_importance(
    context: TrainContext, masked: MaskedModel, measure: Measure | Measures
) -> dict[str, torch.Tensor]:
    """Return the importance of the units, the same on every rank; each rank runs its rows as in a training step.

    With ``prune.calibration.combine`` every batch has rows of one domain, and the scores of the domains are combined.
    """

    def loss(masked: MaskedModel, tokens: torch.Tensor) -> torch.Tensor:
        with context.autocast():
            return token_losses(masked, tokens).mean()

    scores_on = partial(importance, masked, measure=measure, loss=loss, total=context.ranks.sum)
    settings, shares = context.config.pruning.calibration, calibration_shares(context.config)
    combination = settings.combine
    if combination is None:
        mixed = scores_on(calibration_rows(context, shares))
        return context.ranks.agree(lambda: {kind: score.cpu() for kind, score in mixed.items()})
    scores = {
        domain: scores_on(calibration_rows(context, {domain: 1.0}, share=share)) for domain, share in shares.items()
    }
    return context.ranks.agree(
        lambda: (
            combine(
                scores,
                context.config.reference_ratio,
                masked.num_removed(),
                combination,
                rho=settings.rho,
                protected=masked.protected(),
            ).scores
        )
    )


def calibration_shares(config: RunConfig) -> dict[str, float]:
    """Return the share of each domain in the rows of the calibration."""
    if config.pruning.calibration.rows == "even":
        return dict.fromkeys(config.domains, 1 / len(config.domains))
    return config.reference_ratio


def calibration_rows(context: TrainContext, shares: dict[str, float], *, share: float = 1.0) -> Iterator[RankRows]:
    """Yield this rank's rows of training batches for the importance of units.

    Args:
        context: The run.
        shares: Share of each domain in the batches.
        share: Fraction of the calibration's tokens to yield, at least one batch.
    """
    rows, ranks = context.config.training.micro_batch_size or context.config.pruning.batch_size, context.ranks
    sampler = DomainSampler(
        context.corpus,
        weights={domain: shares.get(domain, 0.0) for domain in context.corpus.domains},
        seq_len=context.config.data.seq_len,
        batch_size=rows,
        seed=step_seed(context.config.seed, "calibration", 0),
    )
    for _ in range(math.ceil(share * CALIBRATION_TOKENS / (rows * context.config.data.seq_len))):
        batch = torch.from_numpy(next(sampler).tokens)  # the same on each rank
        own = batch.tensor_split(ranks.world_size)[ranks.rank]
        yield RankRows((own if len(own) else batch[:1]).to(context.device), len(own) / rows)
