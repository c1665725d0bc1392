"""Planned peaks by phase, from the package's planning."""

from __future__ import annotations

from drpruning.config import RunConfig
from drpruning.planning import memory
from drpruning.planning.model_shape import ModelShape, OtherShape


def planned_peaks(config: RunConfig, stage: str, source: ModelShape | OtherShape, *, device: str) -> dict[str, int]:
    """Planned peaks of a stage in bytes, by phase; a plan without phases has the step, evaluations included.

    Args:
        config: The recipe.
        stage: ``prune`` or ``continue``.
        source: Shape of the large model.
        device: ``cuda`` or ``cpu``.
    """
    phases_of = getattr(memory, "phases_of", None)
    if phases_of is None:
        return {"step": memory.stage_memory(config, stage, source, device=device).total}
    return {planned.phase: planned.total for planned in phases_of(config, stage, source, device=device)}
