"""A strategy by its name and its settings, as they are typed on a command line or stand in a JSON file."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import yaml

from drpruning.errors import ConfigError, DrpruningError, did_you_mean
from drpruning.reweight import STRATEGIES, Strategy


def make_strategy(name: str, settings: Mapping[str, Any]) -> Strategy:
    """The strategy of that name; numbers may be given as text.

    Raises:
        ConfigError: There is no such strategy or setting, or the value is not one.

    Example:
        >>> make_strategy("drpruning", {"rho": "0.2"})
        DRPruning(rho=0.2, delta=0.1, floor=0.2, ...)
    """
    if name not in STRATEGIES:
        raise ConfigError(
            f"there is no strategy {name!r}",
            did_you_mean(name, list(STRATEGIES)) or f"There are {', '.join(STRATEGIES)}.",
        )
    cls: Any = STRATEGIES[name]
    types = typing.get_type_hints(cls)
    known = [item.name for item in fields(cls) if item.init]
    for key in settings:
        if key not in known:
            hint = did_you_mean(key, known) or f"Its settings: {', '.join(known) or 'none'}."
            raise ConfigError(f"strategy {name} has no setting {key!r}", hint)
    given = {key: _typed(f"{name}.{key}", value, types[key]) for key, value in settings.items()}
    try:
        strategy: Strategy = cls(**given)
    except DrpruningError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy {name} cannot be made with {dict(settings)}: {error}") from error
    return strategy


def _typed(what: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's annotation wants it; text is read as YAML."""
    if isinstance(value, str) and hint is not str:
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{what}: {value!r} is not a YAML value") from error
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if value not in choices:
            raise ConfigError(f"{what} is {value!r}; it must be one of {', '.join(map(str, choices))}")
        return value
    if type(None) in choices:
        if value is None:
            return None
        return _typed(what, value, next(choice for choice in choices if choice is not type(None)))
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return hint(**value)
    if hint is float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number):
            raise ConfigError(f"{what} is {value!r}; it must be a number")
        return number
    if hint in {int, bool, str} and type(value) is not hint:
        words = {int: "a whole number", bool: "true or false", str: "text"}
        raise ConfigError(f"{what} is {value!r}; it must be {words[hint]}")
    return value


def settings_of(strategy: Strategy) -> dict[str, Any]:
    """All settings of a strategy as JSON-able data from which :func:`make_strategy` makes it again."""
    values = asdict(strategy)  # type: ignore[call-overload]  # every strategy is a dataclass
    # JSON has no infinity
    return {key: str(value) if value in (math.inf, -math.inf) else value for key, value in values.items()}
