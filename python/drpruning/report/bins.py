"""A long series in bounded memory: consecutive rows are joined two by two, each group keeping mean, least and largest.

A run of 10^6 steps becomes at most ``MOST`` groups a stage, whatever its length, and a single bad step still shows in
the least and largest of its group. While there are fewer rows than ``MOST`` every row is a group of its own and
nothing is lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
NUMBERS = frozenset((int, float, type(None)))  # None is written for NaN

MOST = 1200
"""Groups of a stage: more than a figure on a wide screen has points."""
MOST_COLUMNS = 2000
"""Columns of a series; a file that claims more domains than any run has is cut off here."""
LARGEST = 1e30
"""No loss, speed or number of bytes comes near; what is larger counts as not measured."""


class Bins:
    """Rows of numbers in the order of their steps, joined into at most ``most`` groups.

    Args:
        most: The number of groups above which each two are joined; 0 keeps every row.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.width = 1  # steps in a group
        self.last = -1  # the largest step seen
        self._index: dict[Hashable, int] = {}
        self._keys = np.zeros(0, np.int64)  # step // width of each group, ascending
        self._sum = np.zeros((0, 0))
        self._count = np.zeros((0, 0))
        self._low = np.zeros((0, 0))
        self._high = np.zeros((0, 0))

    @property
    def names(self) -> list[Hashable]:
        """The columns, in the order in which they first came."""
        return list(self._index)

    def __len__(self) -> int:
        """Number of groups."""
        return self._keys.size

    def add(self, steps: Sequence[int], names: Sequence[Hashable], rows: Sequence[Sequence[object]]) -> None:
        """Takes in rows.

        Args:
            steps: Their steps. Where they go back, a resumed run takes steps again: the earlier ones are dropped, but
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
        """Columns for ``names``, and which of these have one: there is not room for any number."""
        columns, kept = [], []
        for at, name in enumerate(names):
            if name in self._index or len(self._index) < MOST_COLUMNS:
                columns.append(self._index.setdefault(name, len(self._index)))
                kept.append(at)
        missing = len(self._index) - self._sum.shape[1]
        if missing:
            wider = ((0, 0), (0, missing))
            self._sum, self._count = np.pad(self._sum, wider), np.pad(self._count, wider)
            self._low = np.pad(self._low, wider, constant_values=np.inf)
            self._high = np.pad(self._high, wider, constant_values=-np.inf)
        return columns, kept

    def _join(self, keys: NDArray[np.int64], values: Vector) -> None:
        """Appends ``values``, and joins what falls into one group."""
        known = np.isfinite(values)
        self._sum = np.concatenate([self._sum, np.where(known, values, 0)])
        self._count = np.concatenate([self._count, known])
        self._low = np.concatenate([self._low, np.where(known, values, np.inf)])
        self._high = np.concatenate([self._high, np.where(known, values, -np.inf)])
        self._regroup(np.concatenate([self._keys, keys]))

    def _regroup(self, keys: NDArray[np.int64]) -> None:
        firsts = np.flatnonzero(np.diff(keys, prepend=-1))
        self._keys = keys[firsts]
        if firsts.size == keys.size:
            return
        self._sum = np.add.reduceat(self._sum, firsts)
        self._count = np.add.reduceat(self._count, firsts)
        self._low = np.minimum.reduceat(self._low, firsts)
        self._high = np.maximum.reduceat(self._high, firsts)

    def _drop_from(self, step: int) -> None:
        """Drops the groups that begin at ``step`` or later."""
        left = int(np.searchsorted(self._keys * self.width, step))
        self._keys, self._sum, self._count = self._keys[:left], self._sum[:left], self._count[:left]
        self._low, self._high = self._low[:left], self._high[:left]

    def mean(self, name: Hashable) -> Vector:
        """Mean of a column in each group, NaN where nothing was measured."""
        return self._of(self._sum, name)

    def low(self, name: Hashable) -> Vector:
        """Least of a column in each group, NaN where nothing was measured."""
        return self._of(self._low, name)

    def high(self, name: Hashable) -> Vector:
        """Largest of a column in each group, NaN where nothing was measured."""
        return self._of(self._high, name)

    def _of(self, table: Vector, name: Hashable) -> Vector:
        at = self._index.get(name)
        if at is None:
            return np.full(self._keys.size, np.nan)
        count = self._count[:, at]
        if table is self._sum:
            return np.asarray(np.divide(table[:, at], count, out=np.full(count.size, np.nan), where=count > 0))
        return np.asarray(np.where(count > 0, table[:, at], np.nan))


def numbers(rows: Sequence[Sequence[object]], width: int) -> Vector:
    """``rows`` of ``width`` values as floats; what is not a number, not finite or beyond any measurement is NaN.

    >>> numbers([[1, 2.5], [None, "low"], [10**400, True]], 2).tolist()
    [[1.0, 2.5], [nan, nan], [nan, nan]]
    """
    try:
        if any(type(value) not in NUMBERS for row in rows for value in row):
            raise TypeError
        table = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    except (TypeError, OverflowError):
        table = np.array([[_number(value) for value in row] for row in rows]).reshape(len(rows), width)
    table[~(np.abs(table) < LARGEST)] = np.nan
    return table


def _number(value: object) -> float:
    if type(value) not in {int, float}:
        return np.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return np.nan
