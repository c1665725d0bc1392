"""What a step did beside training: losses and tokens by domain, speed, utilisation, waits and memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drpruning.pruning.async_copy import AsyncHostCopy, DeviceEvent
from drpruning.train.any_model import flops_of_model, shape_of
from drpruning.train.flops import flops_per_token, peak_flops
from drpruning.train.ranks import Ranks
from drpruning.train.state import StageState

SIZES = {
    "layer": ("layers",),
    "head": ("heads", "kv_heads"),
    "intermediate": ("intermediate",),
    "hidden": ("hidden",),
}
"""What the masks of each kind bring down."""


@dataclass(frozen=True)
class Measured:
    """A step's numbers, on their way to the host until :meth:`numbers` or :meth:`StepMeter.fields` reads them.

    Args:
        copy: The losses of the rows, their domains, and the numbers.
        rows: How many rows.
        since: When the step began: at the end of the one before.
        waited: Seconds for the batch.
    """

    copy: AsyncHostCopy
    rows: int
    since: DeviceEvent
    waited: float

    def numbers(self) -> list[float]:
        """The numbers that were sent."""
        found: list[float] = self.copy.read()[2 * self.rows :].tolist()
        return found

    def losses(self) -> tuple[Tensor, Tensor]:
        """The losses of this rank's rows, float64, and the numbers of their domains, int64."""
        losses, domains = self.copy.read()[: 2 * self.rows].view(2, self.rows)
        return losses, domains.long()


class StepMeter:
    """Measures the steps of a stage, one after the other.

    A step is ``next_batch``, ``add`` for each micro-batch, ``send``, and at last ``fields`` for its record. Nothing of
    it waits for the device if ``fields`` is asked for in the course of the next step: until then the numbers are on
    their way.

    Args:
        stage: What is trained.
        device: Where.
        dtype: ``training.dtype``.
        peak_tflops: ``training.peak_tflops``.
        ranks: The processes of the run; losses, tokens and speed are those of all.
    """

    def __init__(
        self,
        stage: StageState,
        device: torch.device,
        *,
        dtype: str,
        peak_tflops: float | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.device = device
        self.ranks = ranks or Ranks()
        self._domains = stage.sampler.corpus.domains
        self._length = stage.sampler.seq_len
        masked = stage.masked
        model: Any = stage.model if masked is None else masked.model
        self._config = model.config
        self._skips_closed = masked is not None and masked.skip_pruned_units
        self._sizes: dict[str, float] = dict(shape_of(self._config))
        self._flops_of_all = flops_of_model(model, self._length)  # sharded weights have their whole sizes
        self._peak = peak_flops(device, dtype, peak_tflops)
        self._rows: list[Tensor] = []
        self._began = DeviceEvent(device)

    def next_batch(self, items: Iterator[dict[str, Any]]) -> Tensor:
        """The tokens of the next of ``items`` (of :func:`drpruning.torch.to_device`); begins a step.

        Returns:
            int64 [rows, seq_len].
        """
        self._rows = []
        asked = time.perf_counter()
        item = next(items)
        self._waited = time.perf_counter() - asked
        self._row_domains: Tensor = item["domains"]
        tokens: Tensor = item["tokens"]
        return tokens

    def add(self, losses_BT: Tensor) -> None:
        """Takes note of the losses of the next rows of the batch, in nats."""
        self._rows.append(losses_BT.detach().mean(-1))

    def send(self, numbers: Tensor) -> Measured:
        """Ends a step, and sends its losses and ``numbers``, [n], to the host."""
        rows = torch.cat(self._rows).double()
        copy = AsyncHostCopy(torch.cat([rows, self._row_domains.double(), numbers.double()]))
        since, self._began = self._began, copy.event
        return Measured(copy, rows=len(rows), since=since, waited=self._waited)

    def pause(self) -> None:
        """Ends a pause between two steps, an evaluation or a checkpoint, that is no part of the next step's time."""
        self._began = DeviceEvent(self.device)

    def fields(self, step: Measured, tokens: int, expected: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The measured fields of :class:`drpruning.records.StepTaken`.

        Args:
            step: As it was sent.
            tokens: Tokens of the step.
            expected: Expected sparsity by kind of mask, in the prune stage.
        """
        losses, counts = by_domain(*step.losses(), self._domains, self.ranks)
        speed = tokens / step.copy.event.seconds_since(step.since)
        return {
            "tokens_per_second": round(speed, 1),
            "domain_losses": losses,
            "domain_tokens": {domain: rows * self._length for domain, rows in counts.items()},
            "utilisation": None
            if self._peak is None
            else round(speed * self._flops(expected) / self._peak / self.ranks.world_size, 4),
            "loader_wait": round(step.waited, 6),
            "memory": peak_memory(self.device),
        }

    def _flops(self, expected: Mapping[str, float] | None) -> float:
        """Per token; of the open units where closed ones are left out, and otherwise of all."""
        if expected is None or not self._skips_closed:
            return self._flops_of_all
        sizes = dict(self._sizes)
        for kind, sparsity in expected.items():
            for name in SIZES[kind]:
                sizes[name] *= 1 - sparsity
        return flops_per_token(self._config, sizes, self._length)


def by_domain(
    losses: Tensor, domains: Tensor, names: Sequence[str], ranks: Ranks | None = None
) -> tuple[dict[str, float], dict[str, int]]:
    """Mean loss and number of rows of each domain that has any, over all ranks.

    Args:
        losses: float64 [rows].
        domains: int64 [rows], numbers of ``names``.
        names: All domains.
        ranks: Each has the losses of its own rows.
    """
    own = torch.stack([torch.bincount(domains, weights, len(names)) for weights in (losses, torch.ones_like(losses))])
    sums, counts = (ranks or Ranks()).sum_on_host(own).tolist()
    found = [(name, total, count) for name, total, count in zip(names, sums, counts, strict=True) if count]
    return {name: total / count for name, total, count in found}, {name: int(count) for name, _, count in found}


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on the accelerator, or without one resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes elsewhere
