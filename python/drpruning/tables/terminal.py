"""How tables look on the terminal, in every command."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

NORMAL_95 = 1.96  # standard errors either way that hold 95% of a normal distribution


def new_table(columns: Sequence[str], *, text: Sequence[str] = ()) -> Table:
    """A table without lines: the first column is a name, the others are numbers.

    Args:
        columns: Their titles; a title may have several lines.
        text: Those of ``columns`` that hold text instead, and may be wrapped.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        left = index == 0 or column in text
        table.add_column(
            Text(column), justify="left" if left else "right", header_style="dim", no_wrap=column not in text
        )
    return table
