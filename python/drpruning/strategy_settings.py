"""A strategy by its name and its settings, as they are typed on a command line or stand in a JSON file.

Settings are the fields of the strategy's class. A field that is itself a dataclass is a group of settings and written
flat: its fields are settings too.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, NamedTuple

import yaml

from drpruning.errors import ConfigError, DrpruningError, did_you_mean
from drpruning.reweight import STRATEGIES, Strategy


class _Setting(NamedTuple):
    """Where a setting goes: the field of the strategy that it is in, if it is one of a group, and its type."""

    group: str | None
    hint: Any


def make_strategy(name: str, settings: Mapping[str, Any]) -> Strategy:
    """The strategy of that name; values may be given as text, which is read as YAML.

    Raises:
        ConfigError: There is no such strategy or setting, or the value is not one.

    Example:
        >>> make_strategy("drpruning", {"rho": "0.2"}).rho
        0.2
    """
    if name not in STRATEGIES:
        raise ConfigError(
            f"there is no strategy {name!r}", did_you_mean(name, STRATEGIES) or f"There are {', '.join(STRATEGIES)}."
        )
    cls: Any = STRATEGIES[name]
    known = dict(_known(cls))
    given: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if key not in known:
            hint = did_you_mean(key, known) or f"Its settings: {', '.join(known) or 'none'}."
            raise ConfigError(f"strategy {name} has no setting {key!r}", hint)
        group, typed = known[key].group, _typed(f"{name}.{key}", value, known[key].hint)
        (given if group is None else groups.setdefault(group, {}))[key] = typed
    types_ = typing.get_type_hints(cls)
    try:
        given |= {group: types_[group](**inner) for group, inner in groups.items()}
        strategy: Strategy = cls(**given)
    except DrpruningError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy {name} cannot be made with {dict(settings)}: {error}") from error
    return strategy


def settings_of(strategy: Strategy) -> dict[str, Any]:
    """All settings of a strategy as JSON-able data from which :func:`make_strategy` makes it again."""
    body: dict[str, Any] = asdict(strategy)  # type: ignore[call-overload]  # every strategy is a dataclass
    flat = {key: body[key] if place.group is None else body[place.group][key] for key, place in _known(type(strategy))}
    # JSON has no infinity
    flat = {key: str(value) if value in (math.inf, -math.inf) else value for key, value in flat.items()}
    data: dict[str, Any] = json.loads(json.dumps(flat, allow_nan=False))
    return data


def _known(cls: Any) -> Iterator[tuple[str, _Setting]]:
    """The settings of a strategy's class, those of groups among them."""
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        if isinstance(hint, type) and is_dataclass(hint):
            inner = typing.get_type_hints(hint)
            yield from ((part.name, _Setting(item.name, inner[part.name])) for part in fields(hint))
        else:
            yield item.name, _Setting(None, hint)


def _typed(what: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's annotation wants it."""
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
