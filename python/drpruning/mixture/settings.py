"""The settings of strategies: each is declared once, as a field of the strategy's dataclass.

The section ``mixture`` of a recipe, the settings that a command line takes as text, the documentation of the class and
the check of a new strategy are derived from the field: its type, its default, its range and its description.
"""

from __future__ import annotations

import inspect
import math
import operator
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from drpruning.errors import ConfigError

Class = TypeVar("Class", bound=type)

FRACTION = {"ge": 0.0, "le": 1.0}
"""The range of a share or a part of a stage."""


def setting(
    default: Any,
    description: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Return a dataclass field that declares a setting.

    Args:
        default: The value that a strategy has without the setting.
        description: Meaning and unit, in sentences.
        ge: The least value, as in :func:`pydantic.Field`; for a mapping, of each number.
        gt: A value that the setting exceeds.
        le: The largest value.
        lt: A value that the setting is below; infinity refuses infinite numbers.
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    bounds = {name: limit for name, limit in limits.items() if limit is not None}
    return field(default=default, metadata={"description": description, "bounds": bounds})


@dataclass(frozen=True)
class Setting:
    """A declared setting.

    Attributes:
        name: Name of the field.
        type: Its annotation, resolved.
        default: Its default.
        description: Meaning and unit.
        bounds: Limits of the numbers by the names that pydantic has for them: ``ge``, ``gt``, ``le``, ``lt``.
    """

    name: str
    type: Any
    default: Any
    description: str
    bounds: Mapping[str, float]

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a setting that names one of several."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is typing.Literal else ()

    @property
    def expected(self) -> str:
        """The values that the setting takes, in words."""
        if self.choices:
            return " or ".join(self.choices)
        words = {"ge": "at least {:g}", "gt": "above {:g}", "le": "at most {:g}", "lt": "below {:g}"}
        parts = [words[name].format(limit) for name, limit in self.bounds.items() if limit != math.inf]
        return " and ".join([*parts, "finite"] if self.bounds.get("lt") == math.inf else parts)

    def check(self, value: Any) -> None:
        """Raise ConfigError if ``value``, or a number of a mapping, is not one of the values that are expected."""
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.name}: expected {self.expected}, got {value!r}")
        for domain, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
            if number is not None and not self._contains(number):
                where = self.name if domain is None else f"{self.name} of domain {domain}"
                raise ConfigError(f"{where}: expected {self.expected}, got {number}")

    def _contains(self, number: Any) -> bool:
        return all(getattr(operator, name)(number, limit) for name, limit in self.bounds.items())


def settings(cls: Any) -> Mapping[str, Setting]:
    """Return the settings that a dataclass declares, by name."""
    return _settings(cls)


@cache
def _settings(cls: Any) -> Mapping[str, Setting]:
    types = typing.get_type_hints(cls)
    return {
        item.name: Setting(item.name, types[item.name], item.default, **item.metadata)
        for item in fields(cls)
        if "description" in item.metadata
    }


def check_settings(instance: Any) -> None:
    """Raise ConfigError if a declared setting of ``instance`` is outside its range."""
    cls: Any = type(instance)
    for name, declared in settings(cls).items():
        declared.check(getattr(instance, name))


def documented(cls: Class) -> Class:
    """Add the descriptions of the declared settings to the docstring of a dataclass."""
    lines = ["", "", "Attributes:"]
    for declared in settings(cls).values():
        text = f"{declared.name}: {declared.description}"
        lines += textwrap.wrap(text, 112, initial_indent=" " * 4, subsequent_indent=" " * 8)
    # Python 3.11 and 3.12 keep the indentation of the source in a docstring, later versions remove it
    cls.__doc__ = inspect.cleandoc(cls.__doc__ or "") + "\n".join(lines) + "\n"
    return cls
