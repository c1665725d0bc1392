"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from drpruning.formatting import printable
from drpruning.tables.cells import Row, Table


def table_markdown(table: Table) -> str:
    """Return a table with its note below; the title is the caller's heading."""
    lines = [
        _line(table.columns),
        "|" + "".join(" --- |" if table.is_text(at) else " ---: |" for at in range(len(table.columns))),
        *(_line(_row(row)) for row in table.rows),
    ]
    return "\n".join(lines) + "\n" + (f"\n{table.note}\n" if table.note else "")


def escape_markdown(text: str) -> str:
    """Escape what would end a cell; make the rest printable."""
    return printable(text).replace("|", "\\|")


def _row(row: Row) -> list[str]:
    texts = [escape_markdown(text) for text in row.texts]
    if row.kind == "reference":
        texts[0] = f"*{texts[0]}*"
    stars = ["**" if cell.best else "*" if cell.worse else "" for cell in row.cells]
    return [f"{mark}{text}{mark}" for mark, text in zip(stars, texts, strict=True)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
