"""Cells, rows and tables as plain data. Loads nothing, so that every command can build a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from drpruning.formatting import number

RowKind = Literal["plain", "highlight", "reference", "summary", "difference"]
"""``highlight``: bold on the terminal. ``reference``: not compared with the others, its name in italics. ``summary``:
a mean or maximum below the rows. ``difference``: one row less another."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: What is printed.
        value: The number behind the text; NaN for text.
        interval: The interval behind the text, ``± 0.012`` or ``[−0.1, 0.2]``; empty if there is none.
        best: Whether the value is the best of its row, or better than the one it is compared with; writers print it in
            bold.
        worse: Whether the value is worse than the one it is compared with; writers print it in italics.
    """

    text: str
    value: float = math.nan
    interval: str = ""
    best: bool = False
    worse: bool = False

    @classmethod
    def of(cls, value: float, write: Callable[[float], str] = number, *, interval: str = "") -> Cell:
        """Return the cell of a number, written by ``write``."""
        return cls(write(value), value, interval)

    @property
    def full_text(self) -> str:
        """The text and the interval."""
        return f"{self.text} {self.interval}" if self.interval else self.text


@dataclass(frozen=True)
class Row:
    """One row; the first cell is its name."""

    cells: tuple[Cell, ...]
    kind: RowKind = "plain"

    @classmethod
    def of(cls, *cells: Cell | str, kind: RowKind = "plain") -> Row:
        """Return a row of cells and texts."""
        return cls(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells), kind)

    @property
    def texts(self) -> list[str]:
        """The full text of each cell."""
        return [cell.full_text for cell in self.cells]


@dataclass(frozen=True)
class Table:
    """Rows under column titles.

    Attributes:
        columns: Titles; the first column has the names of the rows, the others have numbers.
        rows: One cell for each column. A row may be shorter; the rest is empty.
        title: Title of the table; empty for a table inside other text.
        note: Sentences below the table.
        text_columns: Titles of the columns that have text instead of numbers: aligned left, wrapped if long.
        sortable: Whether pages let the reader sort its rows by a column.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    note: str = ""
    text_columns: Collection[str] = ()
    sortable: bool = False

    def is_text(self, column: int) -> bool:
        """Return whether the column with this index has text."""
        return column == 0 or self.columns[column] in self.text_columns


def is_best(values: Sequence[float], decimals: int = 3) -> list[bool]:
    """Return which of ``values`` are the lowest as printed; none if all are equal.

    >>> is_best([2.1004, 2.1001, 2.5])
    [True, True, False]
    >>> is_best([2.1, float("nan")])
    [False, False]
    """
    printed = [round(value, decimals) for value in values if math.isfinite(value)]
    if len(set(printed)) < 2:
        return [False] * len(values)
    return [round(value, decimals) == min(printed) if math.isfinite(value) else False for value in values]
