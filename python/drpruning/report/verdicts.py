"""Three verdicts on the optimisation of a finished run, computed from its records.

Losses right before and right after the extraction are both measured on the validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from drpruning.records import Evaluated, Kept, ModelMeasured, Record, StepTaken

SPARSITY_WITHIN = 0.01
"""Largest permitted distance of a kind's expected sparsity from its target before the extraction."""
LARGEST_JUMP = 0.02
"""Largest permitted rise of a domain's loss at the extraction, in nats per token."""
SIZES = {
    "layer": "layers",
    "head": "heads",
    "intermediate": "intermediate",
    "hidden": "hidden",
    "expert": "experts",
}
"""The size that each kind of mask reduces."""


@dataclass(frozen=True)
class RunVerdict:
    """One verdict.

    Attributes:
        name: ``targets``, ``cut`` or ``finite``.
        passed: Whether the value is within its limit.
        value: Largest distance from a target sparsity; largest rise of a domain's loss, nats; numbers not finite.
        detail: One sentence.
    """

    name: str
    passed: bool
    value: float
    detail: str


def verdicts(records: Iterable[Record]) -> list[RunVerdict]:
    """Judge a finished run; a run without learned masks has only the last verdict.

    Args:
        records: All records of its ``metrics.jsonl``.
    """
    kept: Kept | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    odd = 0
    for record in records:
        if isinstance(record, Kept):
            kept = record
        elif isinstance(record, Evaluated):
            before = record.losses if record.stage == "prune" else before
            odd += not all(map(math.isfinite, record.losses.values()))
        elif isinstance(record, ModelMeasured):
            after = record.evaluation_losses if record.model == "pruned" else after
            losses = [*record.losses.values(), *(record.evaluation_losses or {}).values()]
            odd += not all(map(math.isfinite, losses))
        elif isinstance(record, StepTaken):
            odd += not (math.isfinite(record.loss) and math.isfinite(record.grad_norm))
    found = []
    if kept is not None and kept.expected:  # masks were learned
        found.append(_targets(kept))
        if before is not None and after is not None:
            found.append(_cut(before, after))
    detail = "every loss and gradient norm is finite" if not odd else f"{odd:,} steps or evaluations are not finite"
    return [*found, RunVerdict("finite", not odd, odd, detail)]


def _targets(kept: Kept) -> RunVerdict:
    final = {kind: 1 - kept.target[SIZES[kind]] / kept.source[SIZES[kind]] for kind in kept.expected}
    missed = {kind: abs(reached - final[kind]) for kind, reached in kept.expected.items()}
    numbers = ", ".join(f"{kind} {reached:.4f} of {final[kind]:.4f}" for kind, reached in kept.expected.items())
    worst = max(missed.values(), default=0.0, key=_or_infinity)
    return RunVerdict("targets", worst <= SPARSITY_WITHIN, worst, f"expected sparsity before the cut: {numbers}")


def _or_infinity(value: float) -> float:
    """Return the value, and infinity for NaN, which compares with nothing and would hide."""
    return math.inf if math.isnan(value) else value


def _cut(before: dict[str, float], after: dict[str, float]) -> RunVerdict:
    rises = {domain: after[domain] - loss for domain, loss in before.items()}
    worst = max(rises, key=lambda domain: _or_infinity(rises[domain]))
    detail = f"largest rise of a domain's loss at the cut: {rises[worst]:+.4f} nats per token, in {worst}"
    return RunVerdict("cut", rises[worst] <= LARGEST_JUMP, rises[worst], detail)
