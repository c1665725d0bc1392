"""Tables as LaTeX, for a document that loads booktabs."""

from __future__ import annotations

from drpruning.formatting import printable
from drpruning.tables.cells import Cell, Table

ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "†": r"$^\dagger$",
}


def table_latex(table: Table) -> str:
    """Return a ``table`` environment; title and note are its caption."""
    layout = "".join("l" if table.is_text(at) else "r" for at in range(len(table.columns)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}. {escape_latex(table.note)}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join(map(escape_latex, table.columns)) + r" \\",
        r"\midrule",
    ]
    lines += [" & ".join(map(_content, row.cells)) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _content(cell: Cell) -> str:
    text = escape_latex(cell.full_text)
    return rf"\textbf{{{text}}}" if cell.best else rf"\textit{{{text}}}" if cell.worse else text


def escape_latex(text: str) -> str:
    """Escape LaTeX's special characters; make the rest printable."""
    return "".join(ESCAPES.get(character, character) for character in printable(text))
