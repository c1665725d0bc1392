"""The metrics of a step: losses by domain, gradients, masks, throughput, MFU, loader wait and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from drpruning.config import PruneConfig
from drpruning.flops import TRAINING, peak_flops
from drpruning.pruning import MaskedModel
from drpruning.pruning.model_flops import flops_per_token
from drpruning.records import StepTaken
from drpruning.train.async_metrics import AsyncMetrics
from drpruning.train.context import TrainContext
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.model_structure import shape_of
from drpruning.train.optimizers import LowPrecisionAdamW
from drpruning.train.state import StageState

try:
    import resource
except ImportError:  # Windows, where no stage is trained
    resource = None  # type: ignore[assignment]

SIZES = {
    "layer": ("layers",),
    "head": ("heads", "kv_heads"),
    "intermediate": ("intermediate",),
    "hidden": ("hidden",),
    "expert": ("experts",),
}
"""The sizes of a model that the masks of each kind reduce."""


class StepMeter:
    """The metrics of a stage's steps, from the device to the record.

    Per step: :meth:`waiting` around the loader, :meth:`push` after the optimizer, and in the course of the next step
    :meth:`flush` and :meth:`record`.

    Args:
        stage: The stage.
        context: The run; losses, tokens and throughput are those of all its ranks.
    """

    def __init__(self, stage: StageState, context: TrainContext) -> None:
        self.stage, self.ranks = stage, context.ranks
        model: Any = stage.model if stage.masked is None else stage.masked.model
        self._config = model.config
        self._skips_pruned_units = stage.masked is not None and stage.masked.skip_pruned_units
        self._sizes: dict[str, float] = dict(shape_of(self._config))
        self._peak = peak_flops(context.device, context.training.dtype, context.training.peak_tflops)
        self._loader_wait = 0.0
        self._reported_failure = False
        self._metrics = AsyncMetrics(context.device)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time within the context as the step's wait for its batch."""
        started = time.perf_counter()
        yield
        self._loader_wait = time.perf_counter() - started

    def push(self, values: Mapping[str, Tensor | float]) -> None:
        """Start the copy of a step's metrics to the host.

        Args:
            values: ``loss``, ``objective`` and ``grad_norm``, scalars; ``row_losses`` and ``row_domains`` [rows] of
                this rank; :func:`mask_metrics`; ``step``, ``tokens``, ``charged_flops``, ``batch`` and
                ``learning_rate``.
        """
        self._metrics.push({**values, "loader_wait": self._loader_wait})

    def flush(self) -> dict[str, Any] | None:
        """Return the metrics pushed last, see :meth:`AsyncMetrics.flush`; waits for the device where it must."""
        self.ranks.mark()
        return self._metrics.flush()

    def restart_clock(self) -> None:
        """Exclude an evaluation, a checkpoint or a rollback from the time of the next step."""
        self._metrics.restart_clock()

    def record(self, metrics: Mapping[str, Any]) -> StepTaken:
        """Return the record of a step from its flushed metrics; all ranks take part."""
        stage, masked, kinds = self.stage, self.stage.masked, []
        if masked is not None:
            kinds = list(masked.gates)
            assert not metrics.get("missed_units"), f"{metrics['missed_units']} active units were left out of a step"
        sparsity = dict(zip(kinds, metrics["sparsity"].tolist(), strict=True)) if kinds else {}
        multipliers = dict(zip(kinds, metrics["multipliers"].tolist(), strict=True)) if kinds else {}
        one_shot = isinstance(stage.settings, PruneConfig) and stage.settings.one_shot  # its gates do not move
        learned = None if one_shot else masked
        losses, rows = losses_by_domain(
            metrics["row_losses"], metrics["row_domains"].long(), stage.sampler.corpus.domains, self.ranks
        )
        tokens_per_second = stage.tokens_per_step / metrics["seconds"]
        utilisation = None
        if self._peak is not None:
            flops = tokens_per_second * self._flops_per_token(None if masked is None else sparsity)
            utilisation = round(flops / self._peak / self.ranks.world_size, 4)
        return StepTaken(
            stage=stage.name,
            step=metrics["step"],
            tokens=metrics["tokens"],
            charged_flops=metrics["charged_flops"],
            skipped=bool(stage.nonfinite_batches),
            loss=metrics["loss"],
            objective=None if stage.distiller is None else metrics["objective"],  # else it is the loss
            learning_rate=metrics["learning_rate"],
            grad_norm=metrics["grad_norm"],
            expected=None if learned is None else sparsity,
            scheduled=None if learned is None else learned.scheduled_sparsity(metrics["step"]),
            multipliers=None if learned is None else multipliers,
            tokens_per_second=round(tokens_per_second, 1),
            domain_losses=losses,
            domain_tokens={domain: count * stage.sampler.seq_len for domain, count in rows.items()},
            utilisation=utilisation,
            loader_wait=round(metrics["loader_wait"], 6),
            memory=peak_memory(self._metrics.device),
        )

    def new_compile_failure(self) -> str | None:
        """Return, once in a stage, why the optimizer's updates are not compiled; None where they are."""
        optimizer = self.stage.optimizer
        failure = optimizer.failure if isinstance(optimizer, LowPrecisionAdamW) else None
        if failure is None or self._reported_failure:
            return None
        self._reported_failure = True
        return failure

    def _flops_per_token(self, sparsity: Mapping[str, float] | None) -> float:
        """Return the operations for a token: of active units where pruned ones are skipped, otherwise of all."""
        if sparsity is None or not self._skips_pruned_units:
            return TRAINING * self.stage.products
        sizes = dict(self._sizes)
        for kind, removed in sparsity.items():
            if "experts" in sizes and kind in ("intermediate", "expert"):
                continue  # each token computes as many experts, with all of their units
            for name in SIZES[kind]:
                sizes[name] *= 1 - removed
        return flops_per_token(self._config, sizes, self.stage.sampler.seq_len)


def mask_metrics(masked: MaskedModel | None) -> dict[str, Tensor]:
    """Return the metrics of masks on their device; none where the model has no gates.

    Returns:
        ``missed_units``, a scalar; ``sparsity``, expected, [kinds]; ``multipliers``, linear and quadratic, [kinds, 2].
    """
    if masked is None or not masked.gates:
        return {}
    return {
        "missed_units": masked.num_missed_units(),
        "sparsity": masked.expected_sparsity(),
        "multipliers": torch.stack([pair.detach() for pair in masked.multipliers.values()]),
    }


def losses_by_domain(
    losses: Tensor, domains: Tensor, names: Sequence[str], ranks: Ranks | None = None
) -> tuple[dict[str, float], dict[str, int]]:
    """Return the mean loss and the number of rows of each domain that has any, over all ranks.

    Args:
        losses: float64 [rows] of this rank.
        domains: int64 [rows], indices into ``names``.
        names: All domains.
        ranks: The processes of the run.
    """
    own = torch.stack([torch.bincount(domains, weights, len(names)) for weights in (losses, torch.ones_like(losses))])
    sums, counts = (ranks or Ranks()).sum_on_host(own).tolist()
    found = [(name, total, count) for name, total, count in zip(names, sums, counts, strict=True) if count]
    return {name: total / count for name, total, count in found}, {name: int(count) for name, _, count in found}


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes so far: allocated on the accelerator, or without one resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kibibytes
