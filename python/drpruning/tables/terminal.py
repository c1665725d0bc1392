"""Tables on the terminal, without lines: names on the left, numbers aligned on the right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from drpruning.formatting import printable
from drpruning.tables.cells import Cell, Row, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

GAP = 2
"""Spaces between columns."""
TEXT_WIDTH = 16
"""Width to which a column of text may be wrapped, in characters."""


def print_table(console: Console, table: Table) -> None:
    """Print the title, if there is one, and the rows; the note is for pages.

    A table whose numbers do not fit into the width of the console is split: each part has the first column again.
    """
    if table.title:
        console.print(table.title, style="bold", markup=False)
    for number, part in enumerate(split_columns(table, console.width, repeated=1)):
        if number:
            console.print()
        console.print(to_rich(part))


def to_rich(table: Table) -> RichTable:
    """Convert a table to one of rich; terminal codes and markup in texts have no effect.

    Names and texts are wrapped where they do not fit, never cut.
    """
    from rich.table import Table as RichTable  # noqa: PLC0415 - code that only builds tables need not load rich
    from rich.text import Text  # noqa: PLC0415

    shown = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for at, column in enumerate(table.columns):
        text = table.is_text(at)
        justify: Literal["left", "right"] = "left" if text else "right"
        shown.add_column(Text(column), justify=justify, header_style="dim", no_wrap=not text, overflow="fold")
    previous = None
    for row in table.rows:
        if row.kind == "summary" and previous is not None and previous != "summary":
            shown.add_section()
        previous = row.kind
        texts = (Text(_lines(cell.full_text), style=_style(cell)) for cell in row.cells)
        shown.add_row(*texts, style="bold" if row.kind == "highlight" else "")
    return shown


def _style(cell: Cell) -> str:
    """Return the style of a cell; colour as well as italics, which some terminals do not show."""
    return "bold" if cell.best else "italic red" if cell.worse else ""


def choose_columns(table: Table, width: int, first: Iterable[int]) -> Table:
    """Return the table with the columns that fit into ``width``, in their order; at least three.

    Args:
        table: The table.
        width: Of the terminal, in characters.
        first: Indices of the columns to keep first, most important first; the others follow in their order.
    """
    kept: list[int] = []
    for at in dict.fromkeys([*first, *range(len(table.columns))]):
        width -= GAP + _column_width(table, at)
        if width < -GAP and len(kept) > 2:
            break
        kept.append(at)
    return select_columns(table, sorted(kept))


def split_columns(table: Table, width: int, repeated: int) -> Iterator[Table]:
    """Split a table that is wider than ``width`` into several, each with the first ``repeated`` columns.

    Each part has at least one more column. Columns of text count as wrapped.
    """
    if len(table.columns) <= repeated:
        yield table
        return
    same, rest = list(range(repeated)), list(range(repeated, len(table.columns)))
    room = width - sum(_column_width(table, at) + GAP for at in same)
    while rest:
        taken = [rest.pop(0)]
        left = room - _column_width(table, taken[0]) - GAP
        while rest and (left := left - _column_width(table, rest[0]) - GAP) >= -GAP:
            taken.append(rest.pop(0))
        yield select_columns(table, [*same, *taken])


def select_columns(table: Table, columns: Sequence[int]) -> Table:
    """Return the table with only the columns of these indices."""
    return replace(
        table,
        columns=[table.columns[at] for at in columns],
        rows=[Row(tuple(row.cells[at] for at in columns if at < len(row.cells)), row.kind) for row in table.rows],
    )


def _column_width(table: Table, column: int) -> int:
    """Return the width that a column needs, in cells of the terminal."""
    from rich.cells import cell_len  # noqa: PLC0415

    texts = [table.columns[column], *(row.texts[column] for row in table.rows if column < len(row.cells))]
    width = max(cell_len(line) for text in texts for line in (text.splitlines() or [""]))
    return min(width, TEXT_WIDTH) if table.columns[column] in table.text_columns else width


def _lines(text: str) -> str:
    """Make each line printable."""
    return "\n".join(map(printable, text.split("\n")))
