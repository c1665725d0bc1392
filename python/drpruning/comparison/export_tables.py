"""A comparison written down: Markdown, LaTeX and one HTML page, from the same tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from drpruning.comparison.results import Results
from drpruning.comparison.tables import Table
from drpruning.files import write_text
from drpruning.formatting import held_out, printable

LATEX = {
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
}


def write_pages(results: Results, tables: Sequence[Table], folder: Path) -> list[Path]:
    """Writes ``compare.md``, ``compare.html`` and ``compare.tex``; an earlier one is replaced when the new is whole."""
    files = [folder / f"compare.{ending}" for ending in ("html", "md", "tex")]
    for file, text in zip(
        files, (html(results, tables), markdown(results, tables), latex(results, tables)), strict=True
    ):
        write_text(file, text, errors="replace")
    return files


def heading(results: Results) -> str:
    """What was compared, in one paragraph."""
    models = [name for name, method in results.methods.items() if method.model]
    runs, failed = sum(run.method not in models for run in results.runs), len(results.failed)
    text = (
        f"{len(results.methods) - len(models)} methods with {len(results.seeds)} seeds of the recipe {results.name}: "
        f"{runs} runs finished, {failed} failed. A base of {results.base_parameters:,} parameters; equal tokens for "
        "all methods."
    )
    if results.measurement_tokens:
        text += f" Losses are measured on {held_out(results.measurement_tokens)}"
        if results.evaluation_tokens != results.measurement_tokens:
            text += f"; strategies, and the tokens that reach another's loss, on {held_out(results.evaluation_tokens)}"
        text += "."
    if models:
        text += f" Finished models beside them: {', '.join(models)}."
    return text + "".join(f" Failed: {label}: {reason}." for label, reason in results.failed.items())


def markdown(results: Results, tables: Sequence[Table]) -> str:
    """A page of Markdown."""
    parts = [f"# {_plain(results.name)}: methods compared\n\n{_plain(heading(results))}\n"]
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables]
    return "\n".join(parts)


def markdown_table(table: Table) -> str:
    """A table of Markdown with its note below."""
    lines = [
        _row(table.columns),
        "|" + "".join(" --- |" if at < table.text else " ---: |" for at in range(len(table.columns))),
    ]
    for at, row in enumerate(table.rows):
        cells = [_plain(cell) for cell in row]
        lines.append(
            _row([f"**{cell}**" if (at, column) in table.strong else cell for column, cell in enumerate(cells)])
        )
    return "\n".join(lines) + "\n" + (f"\n{table.note}\n" if table.note else "")


def latex(results: Results, tables: Sequence[Table]) -> str:
    """Tables to be included by a document that has booktabs."""
    parts = [f"% {' '.join(printable(heading(results)).split())}\n% needs \\usepackage{{booktabs}}\n"]
    for table in tables:
        layout = "l" * table.text + "r" * (len(table.columns) - table.text)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
            rf"\begin{{tabular}}{{{layout}}}",
            r"\toprule",
            " & ".join(map(_tex, table.columns)) + r" \\",
            r"\midrule",
        ]
        for at, row in enumerate(table.rows):
            cells = [_tex(cell.strip("*")) for cell in row]
            bold = [
                rf"\textbf{{{cell}}}" if (at, column) in table.strong else cell for column, cell in enumerate(cells)
            ]
            lines.append(" & ".join(bold) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def html(results: Results, tables: Sequence[Table]) -> str:
    """One page that needs no network and runs no script, in the style of a run's report."""
    style = (resources.files("drpruning.report.page") / "templates" / "report.css").read_text(encoding="utf-8")
    title = f"{escape(printable(results.name))}: methods compared"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n<p>{escape(printable(heading(results)))}</p>\n"
    ]
    parts += [f"<section>\n<h2>{escape(table.title)}</h2>\n{_html_table(table)}</section>\n" for table in tables]
    return "".join(parts) + "</main>\n</body>\n</html>\n"


def _html_table(table: Table) -> str:
    def align(column: int) -> str:
        return ' style="text-align:left;white-space:normal"' if 0 < column < table.text else ""

    head = "".join(
        f'<th scope="col"{align(at)}>{escape(printable(name))}</th>' for at, name in enumerate(table.columns)
    )
    rows = []
    for at, row in enumerate(table.rows):
        cells = [escape(printable(cell.strip("*"))) for cell in row]
        bold = [f"<b>{cell}</b>" if (at, column) in table.strong else cell for column, cell in enumerate(cells)]
        rest = "".join(f"<td{align(column)}>{cell}</td>" for column, cell in enumerate(bold) if column)
        rows.append(f'<tr><th scope="row">{bold[0]}</th>{rest}</tr>')
    caption = f"<caption>{escape(table.note)}</caption>" if table.note else ""
    body = "\n".join(rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">\n<table>{caption}\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    return printable(text).replace("|", "\\|")


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in printable(text))
