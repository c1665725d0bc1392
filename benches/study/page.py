"""Writes the tables of docs/results.md from the results of the study: `python benches/study/page.py [RESULTS]`.

With RESULTS, the results.json of a `drpruning compare`, they replace the committed ones first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from drpruning.comparison.pages import heading, markdown_table
from drpruning.comparison.results import Results, read_results, write_results
from drpruning.comparison.tables import make_tables

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results.md"
START, END = "<!-- tables: written by benches/study/page.py -->", "<!-- end of tables -->"
AGAINST = ("constant", "resheared", "paper", "off-sheared")


def tables(results: Results) -> str:
    """The generated part of the page."""
    parts = [heading(results) + "\n"]
    parts += [f"### {table.title}\n\n{markdown_table(table)}" for table in make_tables(results, AGAINST)]
    return "\n".join(parts)


def with_tables(page: str, results: Results) -> str:
    """The page with its generated part anew."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{tables(results)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_results(read_results(Path(sys.argv[1])), HERE)
    PAGE.write_text(
        with_tables(PAGE.read_text(encoding="utf-8"), read_results(HERE / "results.json")), encoding="utf-8"
    )
