"""Tables as HTML, in the style of a run's report."""

from __future__ import annotations

import math
from html import escape

from drpruning.formatting import printable
from drpruning.tables.cells import Cell, Table

TEXT_STYLE = ' style="text-align:left;white-space:normal"'


def table_html(table: Table, css_class: str = "") -> str:
    """Return a table that scrolls if it is wider than the page; every text is escaped.

    The cells of a sortable table have their numbers as attributes, for the script ``sort.js`` of the report.

    Args:
        table: The table; its title becomes the label for screen readers, its note the caption.
        css_class: Class of the ``table`` element.
    """
    styles = [TEXT_STYLE if at and table.is_text(at) else "" for at in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{style}>{_escaped(name)}</th>' for name, style in zip(table.columns, styles, strict=True)
    )
    rows = []
    for row in table.rows:
        name, *cells = row.cells
        rest = "".join(
            f"<td{style}{_sort_key(cell) if table.sortable else ''}>{_content(cell)}</td>"
            for style, cell in zip(styles[1:], cells, strict=False)
        )
        mark = "" if row.kind == "plain" else f' class="{row.kind}"'
        rows.append(f'<tr{mark}><th scope="row">{_content(name)}</th>{rest}</tr>')
    caption = f"<caption>{_escaped(table.note)}</caption>" if table.note else ""
    body = "\n".join(rows)
    classes = " ".join(filter(None, [css_class, "sortable" if table.sortable else ""]))
    css = f' class="{classes}"' if classes else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_escaped(table.title)}">\n'
        f"<table{css}>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
    )


def _sort_key(cell: Cell) -> str:
    return f' data-value="{cell.value!r}"' if math.isfinite(cell.value) else ""


def _content(cell: Cell) -> str:
    text = _escaped(cell.text)
    text = f"<b>{text}</b>" if cell.best else f"<em>{text}</em>" if cell.worse else text
    return f"{text}<small>{_escaped(cell.interval)}</small>" if cell.interval else text


def _escaped(text: str) -> str:
    return escape(printable(text))
