"""The tables of a comparison as files: Markdown, LaTeX and one HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from drpruning.comparison.results import Results
from drpruning.files import write_text
from drpruning.formatting import NONE, held_out, printable
from drpruning.report.page.render import script_policy, sort_script
from drpruning.report.page.sections import environment
from drpruning.report.page.svg import pareto_svg
from drpruning.report.pareto import ParetoPlot
from drpruning.tables import Table
from drpruning.tables.html import table_html
from drpruning.tables.latex import table_latex
from drpruning.tables.markdown import escape_markdown, table_markdown


def export_tables(
    results: Results, tables: Sequence[Table], folder: Path, plot: ParetoPlot | None = None, verdict: str = ""
) -> list[Path]:
    """Write ``compare.html``, ``compare.md`` and ``compare.tex``; each replaces an earlier one atomically.

    Args:
        results: The results.
        tables: Their tables.
        folder: Where the files are written.
        plot: The figure of the page, after the tables of primary endpoints.
        verdict: First sentences of the pages, see :func:`.results_verdict`.
    """
    texts = {
        "html": html_page(results, tables, plot, verdict),
        "md": markdown_page(results, tables, verdict),
        "tex": latex_tables(results, tables),
    }
    files = []
    for ending, text in texts.items():
        files.append(folder / f"compare.{ending}")
        write_text(files[-1], text, errors="replace")
    return files


def describe(results: Results) -> str:
    """Describe what was compared, in one paragraph."""
    models = [name for name, method in results.methods.items() if method.model]
    budget = next((name for name in results.methods if name not in models), NONE)
    runs, failed = sum(run.method not in models for run in results.runs), len(results.failed)
    text = (
        f"{len(results.methods) - len(models)} methods with {len(results.seeds)} seeds of the recipe {results.name}: "
        f"{runs} runs finished, {failed} failed. A base of {results.base_parameters:,} parameters; "
        + (
            "equal tokens for all methods."
            if results.equal == "tokens"
            else f"each run charges the FLOPs of {budget} with the same seed, within half a step."
        )
    )
    if results.final_eval_tokens:
        text += f" Losses are measured on {held_out(results.final_eval_tokens, 'test')}"
        if results.eval_tokens:
            seen = held_out(results.eval_tokens, "validation")
            text += f"; strategies, and the tokens that reach another's loss, on {seen}"
        text += "."
    if omitted := results.omitted_seeds():
        text += f" {omitted}"
    if models:
        text += f" Baseline models: {', '.join(models)}."
    return text + "".join(f" Failed: {label}: {reason}." for label, reason in results.failed.items())


def markdown_page(results: Results, tables: Sequence[Table], verdict: str = "") -> str:
    """Return a page of Markdown."""
    title = f"# {escape_markdown(results.name)}: methods compared"
    parts = ["\n\n".join([title, *(escape_markdown(text) for text in (verdict, describe(results)) if text)]) + "\n"]
    parts += [f"## {table.title}\n\n{table_markdown(table)}" for table in tables]
    return "\n".join(parts)


def latex_tables(results: Results, tables: Sequence[Table]) -> str:
    """Return the tables for a document that loads booktabs."""
    parts = [f"% {' '.join(printable(describe(results)).split())}\n% needs \\usepackage{{booktabs}}\n"]
    return "\n".join([*parts, *map(table_latex, tables)])


def html_page(results: Results, tables: Sequence[Table], plot: ParetoPlot | None = None, verdict: str = "") -> str:
    """Return one page, in the style of a run's report, that needs no network; its script only sorts tables."""
    style = (resources.files("drpruning.report.page") / "templates" / "report.css").read_text(encoding="utf-8")
    script = f"{sort_script()}makeTablesSortable(document);\n"
    title = f"{escape(printable(results.name))}: methods compared"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{script_policy(script)}">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{title}</h1>\n",
        f"<p><strong>{escape(printable(verdict))}</strong></p>\n" if verdict else "",
        f"<p>{escape(printable(describe(results)))}</p>\n",
    ]
    sections = [
        f"<section>\n<h2>{escape(table.title)}</h2>\n{table_html(_sortable(table), 'methods')}</section>\n"
        for table in tables
    ]
    if plot is not None:
        first = sum(table.title.startswith("Primary") for table in tables)
        macros: Any = environment().get_template("parts.html.j2").module
        sections.insert(first, f"<section>\n{macros.figure(plot, pareto_svg(plot))}</section>\n")
    return "".join([*parts, *sections]) + f"</main>\n<script>{script}</script>\n</body>\n</html>\n"


def _sortable(table: Table) -> Table:
    """Make a table of numbers sortable."""
    return replace(table, sortable=any(math.isfinite(cell.value) for row in table.rows for cell in row.cells))
