"""Strategies by name, and made from settings as a recipe, a command line or a JSON file writes them.

Settings are the fields of the strategy's class. Those of :class:`Bounds` are written flat among them, and a schedule's
stages can be given as ``schedule``: a path, or what such a file holds.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from drpruning.errors import ConfigError, did_you_mean
from drpruning.mixture.bounds import Bounds
from drpruning.mixture.schedule_io import parse_schedule, read_schedule
from drpruning.mixture.strategies.ado import ADO
from drpruning.mixture.strategies.chi_square import ChiSquareDRO
from drpruning.mixture.strategies.constant import Constant
from drpruning.mixture.strategies.cvar import CVaR
from drpruning.mixture.strategies.drpruning import DRPruning
from drpruning.mixture.strategies.exponentiated import DoReMi, GroupDRO, ShearedLoading
from drpruning.mixture.strategies.schedule import Schedule
from drpruning.mixture.strategy import Strategy

STRATEGIES: dict[str, type[Any]] = {
    cls.name: cls for cls in (Constant, Schedule, ShearedLoading, GroupDRO, CVaR, ChiSquareDRO, DRPruning, ADO, DoReMi)
}
"""Name, as recipes and records write it, to class."""


def build(name: str, settings: Mapping[str, Any], stages: Sequence[str] | None = None) -> Strategy:
    """The strategy of that name.

    Args:
        name: A key of :data:`STRATEGIES`.
        settings: The fields of its class, but for ``bounds`` those of :class:`Bounds`, and for a schedule's stages and
            unit ``schedule``: a path for :func:`read_schedule` or plain data for :func:`parse_schedule`. Values may be
            given as text, which is read as YAML.
        stages: Names of the stages in which the strategy works, in order, see :meth:`Schedule.for_stages`; missing: all
            that a schedule has.

    Raises:
        ConfigError: There is no such strategy or setting, or the value is not one.

    Example:
        >>> build("cvar", {"alpha": "0.25", "max_share": 0.5}).bounds.max_share
        0.5
    """
    if name not in STRATEGIES:
        raise ConfigError(
            f"there is no strategy {name!r}", did_you_mean(name, STRATEGIES) or f"There are {', '.join(STRATEGIES)}."
        )
    cls, settings = STRATEGIES[name], dict(settings)
    given: dict[str, Any] = {}
    if cls is Schedule and (source := settings.pop("schedule", None)) is not None:
        schedule = read_schedule(source) if isinstance(source, str) else parse_schedule(source)
        given |= {"stages": schedule.stages, "unit": schedule.unit}
    own, limits = _own_settings(cls), typing.get_type_hints(Bounds)
    bounds: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in own and key not in limits:
            known = [*own, *limits]
            hint = did_you_mean(key, known) or f"Its settings: {', '.join(known)}."
            raise ConfigError(f"strategy {name} has no setting {key!r}", hint)
        (given if key in own else bounds)[key] = _typed(f"{name}.{key}", value, {**limits, **own}[key])
    strategy: Strategy = cls(**given, bounds=Bounds(**bounds))
    return strategy.for_stages(stages) if isinstance(strategy, Schedule) and stages is not None else strategy


def settings_of(strategy: Strategy) -> dict[str, Any]:
    """All settings of a strategy as JSON-able data from which :func:`build` makes it again."""
    body: dict[str, Any] = asdict(strategy)  # type: ignore[call-overload]  # every strategy is a dataclass
    flat = body | body.pop("bounds")
    # JSON has no infinity
    flat = {key: str(value) if value in (math.inf, -math.inf) else value for key, value in flat.items()}
    data: dict[str, Any] = json.loads(json.dumps(flat, allow_nan=False))
    return data


def _own_settings(cls: Any) -> dict[str, Any]:
    """Names and types of a strategy's settings besides its bounds."""
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls) if item.name != "bounds"}


def _typed(what: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's annotation wants it."""
    if isinstance(value, str) and hint is not str:
        import yaml  # noqa: PLC0415 - numpy alone is enough where settings are typed

        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{what}: {value!r} is not a YAML value") from error
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if value not in choices:
            raise ConfigError(f"{what} is {value!r}; it must be one of {', '.join(map(str, choices))}")
        return value
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        if value is None and type(None) in choices:
            return None
        plain = [choice for choice in choices if choice is not type(None)]
        if len(plain) == 1 or (float in plain and not isinstance(value, Mapping)):
            return _typed(what, value, plain[0] if len(plain) == 1 else float)
        return value
    if hint is float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isnan(number):
            raise ConfigError(f"{what} is {value!r}; it must be a number")
        return number
    if hint in {int, bool, str} and type(value) is not hint:
        words = {int: "a whole number", bool: "true or false", str: "text"}
        raise ConfigError(f"{what} is {value!r}; it must be {words[hint]}")
    return value
