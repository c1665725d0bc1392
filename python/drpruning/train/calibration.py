"""Calibration on training text: importance of units before a prune stage or a cycle, repair of the pruned model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from drpruning.config import MeasuresConfig, PruneConfig
from drpruning.export.repair import repair
from drpruning.pruning import MaskedModel
from drpruning.pruning.domain_importance import combine
from drpruning.pruning.importance import Measure, Measures, RankRows, importance
from drpruning.pruning.masked_modules import Masks
from drpruning.pruning.model_flops import num_calibration_batches
from drpruning.pruning.sizes import evaluated_sizes
from drpruning.sampler import DomainSampler
from drpruning.train.context import TrainContext
from drpruning.train.losses import token_losses
from drpruning.train.state import step_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def measure_of(settings: PruneConfig) -> Measure | Measures | None:
    """Return the measure that the recipe's gates start from; None if they start at one value."""
    if settings.gate_init == "uniform":
        return None
    if isinstance(settings.gate_init, MeasuresConfig):
        return Measures(settings.gate_init.depth, settings.gate_init.width)
    return settings.gate_init


def init_gates(
    context: TrainContext, masked: MaskedModel, measure: Measure | Measures, masks: Masks | None = None
) -> None:
    """Initialise the gates by importance, alike on every rank.

    Args:
        context: The run.
        masked: The model.
        measure: Of importance.
        masks: Masks to score the units under; all ones by default.
    """
    masked.init_from_importance(measured_importance(context, masked, measure, masks))


def measured_importance(
    context: TrainContext, masked: MaskedModel, measure: Measure | Measures, masks: Masks | None = None
) -> dict[str, Tensor]:
    """Return the importance of the units, the same on every rank; see :func:`importance_by_domain`."""
    return combined_importance(context, masked, importance_by_domain(context, masked, measure, masks))


def importance_by_domain(
    context: TrainContext, masked: MaskedModel, measure: Measure | Measures, masks: Masks | None = None
) -> dict[str, dict[str, Tensor]]:
    """Return the importance of the units by domain and kind, of this rank; the target has no influence on it.

    With ``prune.calibration.combine`` every batch has rows of one domain. Without it, the one entry has the empty name.
    Each rank runs its rows as in a training step.
    """

    def loss(masked: MaskedModel, tokens: Tensor) -> Tensor:
        with context.autocast():
            return token_losses(masked, tokens).mean()

    scores_on = partial(importance, masked, measure=measure, loss=loss, total=context.ranks.sum, masks=masks)
    shares = context.config.calibration_shares
    if context.config.pruning.calibration.combine is None:
        return {"": scores_on(calibration_rows(context, shares))}
    return {
        domain: scores_on(calibration_rows(context, {domain: 1.0}, share=share)) for domain, share in shares.items()
    }


def combined_importance(
    context: TrainContext, masked: MaskedModel, scores: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return one importance of the units by kind, from :func:`importance_by_domain`, the same on every rank."""
    settings = context.config.pruning.calibration
    combination = settings.combine
    if combination is None:
        return context.ranks.agree(lambda: {kind: score.cpu() for kind, score in scores[""].items()})
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


def calibration_rows(context: TrainContext, shares: dict[str, float], *, share: float = 1.0) -> Iterator[RankRows]:
    """Yield this rank's rows of :func:`calibration_batches`."""
    ranks = context.ranks
    for batch in calibration_batches(context, shares, share=share):
        own = batch.tensor_split(ranks.world_size)[ranks.rank]
        yield RankRows((own if len(own) else batch[:1]).to(context.device), len(own) / len(batch))


def calibration_batches(context: TrainContext, shares: dict[str, float], *, share: float = 1.0) -> Iterator[Tensor]:
    """Yield training batches of the calibration, int64 [rows, length] on the CPU, the same on each rank.

    Args:
        context: The run.
        shares: Share of each domain in the batches.
        share: Fraction of the calibration's tokens to yield, at least one batch.
    """
    sampler = DomainSampler(
        context.corpus,
        weights={domain: shares.get(domain, 0.0) for domain in context.corpus.domains},
        seq_len=context.config.data.seq_len,
        batch_size=context.config.training.micro_batch_size or context.config.pruning.batch_size,
        seed=step_seed(context.config.seed, "calibration", 0),
    )
    for _ in range(num_calibration_batches(context.config, share)):
        yield torch.from_numpy(next(sampler).tokens)


def repair_pruned(context: TrainContext, ridge: float, masked: MaskedModel, pruned: PreTrainedModel) -> None:
    """Repair the model extracted from ``masked``, in place, on one rank, towards the model before the cut.

    That is the model of the last evaluation or, in a one-shot cut, whose weights do not move, the unpruned model.
    """
    one_shot = context.config.pruning.one_shot
    masks = {} if one_shot else masked.deterministic_masks(evaluated_sizes(masked))
    skip, masked.skip_pruned_units = masked.skip_pruned_units, False  # the streams have all units
    training = masked.training
    masked.eval()
    try:
        with masked.fixed_masks(masks):
            batches = calibration_batches(context, context.config.calibration_shares)
            repair(masked.model, pruned, masked.kept_units(), batches, ridge=ridge)
    finally:
        masked.skip_pruned_units = skip
        masked.train(training)
