"""Planned peaks by phase, from the package's planning."""

from __future__ import annotations

from drpruning.config import RunConfig
from drpruning.planning.memory import stage_memory
from drpruning.planning.model_shape import ModelShape, OtherShape


def planned_peaks(config: RunConfig, stage: str, source: ModelShape | OtherShape, *, device: str) -> dict[str, int]:
    """Planned peaks of a stage in bytes, by phase; today the plan has the step, whose parts count as one.

    Args:
        config: The recipe.
        stage: ``prune`` or ``continue``.
        source: Shape of the large model.
        device: ``cuda`` or ``cpu``.
    """
    return {"step": stage_memory(config, stage, source, device=device).total}
