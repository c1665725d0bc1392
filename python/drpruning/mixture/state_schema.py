"""The schema of strategies' states: a state from a file is checked once, before a rule reads it.

Every state has the entries of :data:`COMMON`. A strategy declares its other entries as ``state_entries``, from name to
:class:`Entry`. A state that passes has these entries and no others, of the right types, lengths and ranges, so a rule
can use it without further checks.
"""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from drpruning.errors import StateError
from drpruning.mixture.observation import LARGEST_LOSS, State

STATE_VERSION = 2
SUM_TOLERANCE = 1e-6
"""Distance from one of the sum of a mixture, as for mixtures that users write."""
LARGEST_COUNT = 2**63 - 1
RESTART = "Resume from another checkpoint or state file, or start again without this one."


@dataclass(frozen=True)
class Entry:
    """An entry of a state.

    Attributes:
        expected: Its type, length and range in words; ``{n}`` is the number of domains.
        holds: Whether a value is as expected, in a state whose entries before this one are.
    """

    expected: str
    holds: Callable[[Any, State], bool]

    def check(self, name: str, value: Any, state: State) -> None:
        """Raise StateError if ``value`` is not as expected."""
        if not self.holds(value, state):
            expected = self.expected.format(n=len(state["domains"]) if "domains" in state else "")
            raise StateError(f"{name} of the state: expected {expected}, got {reprlib.repr(value)}", RESTART)


@dataclass(frozen=True)
class ListOf:
    """An entry that is a list of any length; the error names the item.

    Attributes:
        item: What each item is.
        most: Largest number of items.
    """

    item: Entry
    most: int

    def check(self, name: str, value: Any, state: State) -> None:
        """Raise StateError if ``value`` is not such a list."""
        Entry(f"a list of at most {self.most} items", lambda items, _: is_list(items, most=self.most)).check(
            name, value, state
        )
        for k, item in enumerate(value):
            self.item.check(f"{name}[{k}]", item, state)


def is_number(value: Any, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> bool:
    """Return whether ``value`` is a number of JSON within [low, high]: no boolean, not NaN, nor beyond float64."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_count(value: Any, low: int = 0) -> bool:
    """Return whether ``value`` is an integer from ``low`` to 2^63 - 1."""
    return isinstance(value, int) and is_number(value, low, LARGEST_COUNT)


def is_list(value: Any, *, length: int | None = None, most: int = LARGEST_COUNT) -> bool:
    """Return whether ``value`` is a list of that length."""
    return isinstance(value, list) and (length is None or len(value) == length) and len(value) <= most


def is_vector(value: Any, state: State, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> bool:
    """Return whether ``value`` is a list of a number within [low, high] for each domain."""
    return is_list(value, length=len(state["domains"])) and all(is_number(each, low, high) for each in value)


def sums_to(value: list[float], total: float) -> bool:
    """Return whether numbers sum to ``total``, within the tolerance relative to it."""
    return abs(math.fsum(value) - total) <= SUM_TOLERANCE * max(total, 1.0)


def is_losses(value: Any, state: State) -> bool:
    """Return whether ``value`` is a list of a loss or null for each domain."""
    return is_list(value, length=len(state["domains"])) and all(
        loss is None or (is_number(loss) and abs(loss) < LARGEST_LOSS) for loss in value
    )


def is_names(value: Any, _: State) -> bool:
    """Return whether ``value`` is a list of different names, at least one."""
    if not is_list(value) or not value or not all(isinstance(name, str) and name for name in value):
        return False
    return len(set(value)) == len(value)


DOMAINS = Entry("a list of different names, at least one", is_names)
MIXTURE = Entry(
    "{n} numbers >= 0 with sum 1", lambda value, state: is_vector(value, state, 0.0) and sums_to(value, 1.0)
)
RATIO = Entry(
    "{n} positive numbers with sum 1",
    lambda value, state: is_vector(value, state, sys.float_info.min) and sums_to(value, 1.0),
)
LOSSES = Entry(f"{{n}} losses or null, between -{LARGEST_LOSS:g} and {LARGEST_LOSS:g}", is_losses)
COUNT = Entry("an integer >= 0", lambda value, _: is_count(value))
STEPS = Entry("a number >= 0", lambda value, _: is_number(value, 0.0, LARGEST_COUNT))

Entries = Mapping[str, Entry | ListOf]
"""The entries of a state by name."""

COMMON: Entries = {
    "domains": DOMAINS,
    "weights": MIXTURE,
    "reference_ratio": RATIO,
    "reference_loss": LOSSES,
}


def copy_state(name: str, entries: Entries, state: Any) -> State:
    """Return a copy of a state of strategy ``name`` that a rule can change.

    Args:
        name: The strategy.
        entries: The entries of its state that are not in :data:`COMMON`.
        state: The state; anything that JSON can hold.

    Raises:
        StateError: It is not a state of this strategy and version; the message names the entry.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"state of strategy {name!r}: expected a mapping, got {reprlib.repr(state)}", RESTART)
    if (state.get("strategy"), state.get("version")) != (name, STATE_VERSION):
        raise StateError(
            f"the state is of strategy {reprlib.repr(state.get('strategy'))} version "
            f"{reprlib.repr(state.get('version'))}, expected {name!r} version {STATE_VERSION}",
            "Resume with the strategy and the version of drpruning that wrote it, or start a new run.",
        )
    expected = {"strategy": None, "version": None, **COMMON, **entries}
    if missing := [key for key in expected if key not in state]:
        raise StateError(f"state of strategy {name!r}: expected an entry {missing[0]!r}, got none", RESTART)
    if unknown := [key for key in state if key not in expected]:
        raise StateError(
            f"state of strategy {name!r}: expected the entries {', '.join(expected)}, got {reprlib.repr(unknown[0])}",
            RESTART,
        )
    copied: State = {"version": STATE_VERSION, "strategy": name}
    for key, entry in {**COMMON, **entries}.items():
        value = state[key]
        entry.check(key, value, copied)
        copied[key] = list(value) if isinstance(value, list) else value
    return copied
