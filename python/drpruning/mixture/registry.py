"""Build strategies by name from the settings of a recipe, a command line or a JSON file.

Settings are the fields of the strategy's class. The fields of :class:`Bounds` are written flat among them, and the
stages of a schedule can be given as ``schedule``: a path, or the content of such a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from drpruning.errors import ConfigError, did_you_mean
from drpruning.inputs import expected_value, parse_yaml, shown
from drpruning.mixture.bounds import Bounds
from drpruning.mixture.schedule_io import parse_schedule, read_schedule
from drpruning.mixture.settings import Setting
from drpruning.mixture.settings import settings as declared_settings
from drpruning.mixture.strategies.ado import ADO
from drpruning.mixture.strategies.aioli import Aioli
from drpruning.mixture.strategies.chi_square import ChiSquareDRO
from drpruning.mixture.strategies.constant import Constant
from drpruning.mixture.strategies.cvar import CVaR
from drpruning.mixture.strategies.drpruning import DRPruning
from drpruning.mixture.strategies.exponentiated import DoReMi, GroupDRO, ShearedLoading
from drpruning.mixture.strategies.odm import ODM
from drpruning.mixture.strategies.schedule import Schedule
from drpruning.mixture.strategy import Strategy

STRATEGIES: dict[str, type[Any]] = {
    cls.name: cls
    for cls in (Constant, Schedule, ShearedLoading, GroupDRO, CVaR, ChiSquareDRO, DRPruning, ADO, DoReMi, ODM, Aioli)
}
"""Strategy classes by their names in recipes and records; :mod:`drpruning.mixture` lists the names."""


def build(name: str, settings: Mapping[str, Any], stages: Sequence[str] | None = None) -> Strategy:
    """Return the strategy of that name.

    Args:
        name: A key of :data:`STRATEGIES`.
        settings: The fields of its class; those of :class:`Bounds` in place of ``bounds``; and for a schedule, in place
            of ``stages`` and ``unit``, ``schedule``: a path for :func:`read_schedule` or plain data for
            :func:`parse_schedule`. Text is parsed as YAML.
        stages: Names of the stages in which the strategy works, in order, see :meth:`Schedule.for_stages`; missing: all
            stages of a schedule.

    Raises:
        ConfigError: The name or a setting is unknown, or a value has the wrong type or is out of range.

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
    own, limits = [item.name for item in fields(cls) if item.name != "bounds"], declared_settings(Bounds)
    declared = {**declared_settings(cls), **limits}
    bounds: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in own and key not in limits:
            known = [*own, *limits]
            hint = did_you_mean(key, known) or f"Its settings: {', '.join(known)}."
            raise ConfigError(f"strategy {name} has no setting {key!r}", hint)
        parsed = _parse_setting(f"{name}.{key}", value, declared[key]) if key in declared else value
        (bounds if key in limits else given)[key] = parsed
    strategy: Strategy = cls(**given, bounds=Bounds(**bounds))
    return strategy.for_stages(stages) if isinstance(strategy, Schedule) and stages is not None else strategy


def settings_of(strategy: Strategy) -> dict[str, Any]:
    """Return all settings of a strategy as JSON-able data; :func:`build` builds an equal strategy from them."""
    body: dict[str, Any] = asdict(strategy)  # type: ignore[call-overload]  # every strategy is a dataclass
    flat = body | body.pop("bounds")
    # JSON has no infinity
    flat = {key: str(value) if value in (math.inf, -math.inf) else value for key, value in flat.items()}
    data: dict[str, Any] = json.loads(json.dumps(flat, allow_nan=False))
    return data


def _parse_setting(name: str, value: Any, declared: Setting) -> Any:
    """Return ``value``, parsed if it is text, if it has the type of the setting."""
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    adapter = TypeAdapter(declared.type)
    try:
        data = parse_yaml(value, name) if isinstance(value, str) else value
        # YAML has no exponent without a point: 1e-3 is text there
        return adapter.validate_strings(data) if isinstance(data, str) else adapter.validate_python(data, strict=True)
    except ValidationError as error:
        reason = expected_value(error.errors()[-1]["msg"])
        raise ConfigError(f"{name}: {reason}, got {shown(value)}") from error
