"""The strategies that choose the data mixture after every evaluation.

A strategy is a frozen dataclass of settings. Its state is plain JSON-able data that the caller keeps, so that a run
can be saved, resumed and replayed::

    strategy = DRPruning(rho=0.1)
    state = strategy.init(["web", "code"], {"web": 0.8, "code": 0.2})
    state, update = strategy.update(state, Observation(step=50, tokens=10**6, params=1e8,
                                                       losses={"web": 2.1, "code": 1.2}, final_tokens=10**8))
    sampler.set_weights(update.weights)

``losses`` are held-out losses in nats per token. A strategy never answers with NaN: a domain whose loss is missing, NaN
or infinite keeps the weight it had, the others share the rest, and the status of the update is ``"incomplete"``
(``"held"`` if no domain has a loss: every weight stays). :class:`Bounds` limit what any of them may answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from drpruning.errors import ConfigError
from drpruning.reweight.ado import ADO
from drpruning.reweight.bounds import Bounds
from drpruning.reweight.chi_square import ChiSquareDRO
from drpruning.reweight.constant import Constant
from drpruning.reweight.cvar import CVaR, worst_fraction
from drpruning.reweight.doremi import DoReMi
from drpruning.reweight.drpruning import DRPruning
from drpruning.reweight.group_dro import GroupDRO
from drpruning.reweight.history import fewer, megatron_blends, parse_schedule, read_schedule, write_schedule
from drpruning.reweight.observation import Observation, State, Update
from drpruning.reweight.schedule import Change, Schedule, Span
from drpruning.reweight.sheared import ShearedLoading
from drpruning.reweight.strategy import Strategy

__all__ = [
    "ADO",
    "STRATEGIES",
    "Bounds",
    "CVaR",
    "Change",
    "ChiSquareDRO",
    "Constant",
    "DRPruning",
    "DoReMi",
    "GroupDRO",
    "Observation",
    "Schedule",
    "ShearedLoading",
    "Span",
    "State",
    "Strategy",
    "Update",
    "build",
    "fewer",
    "megatron_blends",
    "parse_schedule",
    "read_schedule",
    "worst_fraction",
    "write_schedule",
]

STRATEGIES: dict[str, type[Any]] = {
    cls.name: cls for cls in (Constant, Schedule, ShearedLoading, GroupDRO, CVaR, ChiSquareDRO, DRPruning, ADO, DoReMi)
}
"""Name, as recipes and records write it, to class."""


def build(name: str, settings: Mapping[str, Any]) -> Strategy:
    """The strategy of that name with its settings as recipes write them: flat, bounds among them.

    Args:
        name: A key of :data:`STRATEGIES`.
        settings: The fields of its class, but for ``bounds`` those of :class:`Bounds`, and for a schedule's stages and
            unit ``schedule``: a path for :func:`read_schedule` or plain data for :func:`parse_schedule`.

    Raises:
        ConfigError: The name or a setting is unknown or out of range.

    Example:
        >>> build("cvar", {"alpha": 0.25, "max_share": 0.5}).bounds.max_share
        0.5
    """
    if name not in STRATEGIES:
        raise ConfigError(f"there is no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    cls, given = STRATEGIES[name], dict(settings)
    limits = {field.name: given.pop(field.name) for field in fields(Bounds) if field.name in given}
    if cls is Schedule and (source := given.pop("schedule", None)) is not None:
        schedule = read_schedule(source) if isinstance(source, str) else parse_schedule(source)
        given |= {"stages": schedule.stages, "unit": schedule.unit}
    known = {field.name for field in fields(cls)} - {"bounds"}
    if unknown := sorted(set(given) - known):
        raise ConfigError(f"strategy {name!r} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    strategy: Strategy = cls(**given, bounds=Bounds(**limits))
    return strategy
