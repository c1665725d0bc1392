"""Downsample a long series in bounded memory: pairs of groups are merged; each keeps its mean, minimum and maximum.

A run of 10^6 steps becomes at most ``MOST`` groups a stage, whatever its length, and a single bad step still shows in
the least and largest of its group. While there are fewer rows than ``MOST`` every row is a separate group and
nothing is lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
NUMBERS = frozenset((int, float, type(None)))  # None is written for NaN

MOST = 1200
"""Groups of a stage: more than a figure on a wide screen has points."""
MOST_COLUMNS = 2000
"""Columns of a series; a file that claims more domains than any run has is cut off here."""
LARGEST_MEASURED = 1e30
"""No loss, speed or number of bytes comes near; what is larger counts as not measured."""

SUM, COUNT, LOW, HIGH = range(4)
JOINED_BY = (np.add, np.add, np.minimum, np.maximum)
OF_NONE = (0.0, 0.0, np.inf, -np.inf)  # sum, count, least and largest of no values


class Bins:
    """Rows of numbers in the order of their steps, merged into at most ``most`` groups.

    Args:
        most: The number of groups above which each two are joined; 0 keeps every row.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.width = 1  # steps in a group
        self.last = -1  # the largest step seen
        self._index: dict[Hashable, int] = {}
        self._keys = np.zeros(0, np.int64)  # step // width of each group, ascending
        self._groups = np.zeros((4, 0, 0))  # of each group and column sum, count, least, largest; with room for more

    @property
    def names(self) -> list[Hashable]:
        """The columns, in the order in which they first came."""
        return list(self._index)

    def __len__(self) -> int:
        """Number of groups."""
        return self._keys.size

    def add(self, steps: Sequence[int], names: Sequence[Hashable], rows: Sequence[Sequence[object]]) -> None:
        """Add rows.

        Args:
            steps: Their steps. Where they decrease, a resumed run repeats steps: the earlier ones are dropped, but
                for those in the same group.
            names: The columns of ``rows``, each once.
            rows: For each step its values; what is not a number or not finite is not counted.
        """
        if not steps:
            return
        places = np.asarray(steps, np.int64)
        values = numbers(rows, len(names))
        columns, kept = self._columns(names)
        table = np.full((places.size, len(self._index)), np.nan)
        table[:, columns] = values[:, kept]
        ends = [*(np.flatnonzero(np.diff(places) <= 0) + 1).tolist(), places.size]
        for start, end in zip([0, *ends], ends, strict=False):
            self._add_ascending(places[start:end], table[start:end])

    def _add_ascending(self, steps: NDArray[np.int64], table: Vector) -> None:
        if steps[0] <= self.last:
            self._drop_from(int(steps[0]))
        self.last = int(steps[-1])
        self._join(steps // self.width, table)
        while self.most and self._keys.size > self.most:
            self.width *= 2
            self._regroup(self._keys // 2)

    def _columns(self, names: Sequence[Hashable]) -> tuple[list[int], list[int]]:
        """Return the columns of ``names`` and which names have one: the number of columns is limited."""
        columns, kept = [], []
        for at, name in enumerate(names):
            if name in self._index or len(self._index) < MOST_COLUMNS:
                columns.append(self._index.setdefault(name, len(self._index)))
                kept.append(at)
        known = self._groups.shape[2]
        if known < len(self._index):
            self._widen(self._groups.shape[1], len(self._index))
        return columns, kept

    def _widen(self, rows: int, columns: int) -> None:
        """Grow the arrays."""
        before = self._groups
        self._groups = np.empty((4, rows, columns))
        for at, nothing in enumerate(OF_NONE):
            self._groups[at] = nothing
        self._groups[:, : before.shape[1], : before.shape[2]] = before

    def _join(self, keys: NDArray[np.int64], values: Vector) -> None:
        """Append ``values`` and merge rows of one group."""
        known = np.isfinite(values)
        new = np.stack([known if at == COUNT else np.where(known, values, none) for at, none in enumerate(OF_NONE)])
        keys, new = _grouped(keys, new)
        size = self._keys.size
        if size and keys[0] == self._keys[-1]:
            for join, group, more in zip(JOINED_BY, self._groups[:, size - 1], new[:, 0], strict=True):
                join(group, more, out=group)
            keys, new = keys[1:], new[:, 1:]
        grown = size + keys.size
        if grown > self._groups.shape[1]:
            self._widen(grown + grown // 2, self._groups.shape[2])
        self._groups[:, size:grown] = new
        self._keys = np.concatenate([self._keys, keys])

    def _regroup(self, keys: NDArray[np.int64]) -> None:
        keys, groups = _grouped(keys, self._groups[:, : self._keys.size])
        self._groups[:, : keys.size] = groups
        self._keys = keys

    def _drop_from(self, step: int) -> None:
        """Drop the groups that begin at ``step`` or later."""
        self._keys = self._keys[: int(np.searchsorted(self._keys * self.width, step))]

    def mean(self, name: Hashable) -> Vector:
        """Return the mean of a column in each group, NaN where nothing was measured."""
        return self._table_column(SUM, name)

    def low(self, name: Hashable) -> Vector:
        """Return the minimum of a column in each group, NaN where nothing was measured."""
        return self._table_column(LOW, name)

    def high(self, name: Hashable) -> Vector:
        """Return the maximum of a column in each group, NaN where nothing was measured."""
        return self._table_column(HIGH, name)

    def _table_column(self, which: int, name: Hashable) -> Vector:
        at = self._index.get(name)
        if at is None:
            return np.full(self._keys.size, np.nan)
        values, count = self._groups[which, : self._keys.size, at], self._groups[COUNT, : self._keys.size, at]
        if which == SUM:
            return np.asarray(np.divide(values, count, out=np.full(count.size, np.nan), where=count > 0))
        return np.asarray(np.where(count > 0, values, np.nan))


def _grouped(keys: NDArray[np.int64], groups: Vector) -> tuple[NDArray[np.int64], Vector]:
    """Merge ``groups`` (4, rows, columns) with equal ascending ``keys`` into one row per key."""
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    if firsts.size == keys.size:
        return keys, groups
    return keys[firsts], np.stack([join.reduceat(table, firsts) for join, table in zip(JOINED_BY, groups, strict=True)])


def numbers(rows: Sequence[Sequence[object]], width: int) -> Vector:
    """Convert ``rows`` of ``width`` values to floats; values that are no finite, plausible number become NaN.

    >>> numbers([[1, 2.5], [None, "low"], [10**400, True]], 2).tolist()
    [[1.0, 2.5], [nan, nan], [nan, nan]]
    """
    try:
        if not NUMBERS.issuperset(map(type, chain.from_iterable(rows))):
            raise TypeError
        table = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    except (TypeError, OverflowError):
        table = np.array([[_number(value) for value in row] for row in rows]).reshape(len(rows), width)
    table[~(np.abs(table) < LARGEST_MEASURED)] = np.nan
    return table


def _number(value: object) -> float:
    if type(value) not in {int, float}:
        return np.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return np.nan
