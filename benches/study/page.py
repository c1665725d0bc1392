"""Write the tables of docs/benchmarks/study.md from the committed results: `python benches/study/page.py`.

`page.py PART RESULTS` first replaces the committed results of PART, a key of PARTS, by RESULTS, the results.json of
`drpruning compare`. `page.py PART` prints all tables of PART with all columns, and writes nothing.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from drpruning.comparison.export_tables import describe
from drpruning.comparison.results import Results, read_results
from drpruning.comparison.tables import make_tables
from drpruning.tables import Table
from drpruning.tables.markdown import table_markdown

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmarks" / "study.md"
START, END = "<!-- tables: written by benches/study/page.py -->", "<!-- end of tables -->"
PARTS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "study": (
        "Strategies, references, distillation",
        {
            "constant": (),
            "drpruning": ("resheared", "paper", "lower", "cvar", "chi_square", "one-shot", "distilled"),
            "off-sheared": ("off-paper", "off-drpruning", "off-lower"),
            "first-sheared": ("first-drpruning",),
            "one-shot": ("one-shot-distilled",),
            "distilled": ("one-shot-distilled",),
        },
    ),
    "ablations": ("Ablations of DRPruning", {"drpruning": ()}),
    "even": ("Uniform reference ratio", {"constant": ()}),
    "even-more-text": ("Uniform reference ratio, evaluations on 16,384 tokens", {"constant": ()}),
}
"""Title of each part; methods that differences are taken to, each with the rows that the page shows (empty: all)."""


def committed(part: str) -> Results:
    """Return the committed results of ``part``."""
    return Results.model_validate_json(gzip.decompress((HERE / f"{part}.json.gz").read_bytes()))


def commit(part: str, results: Results) -> None:
    """Replace the committed results of ``part``; equal results give equal bytes."""
    (HERE / f"{part}.json.gz").write_bytes(gzip.compress(results.model_dump_json().encode(), mtime=0))


def section(part: str, *, every: bool = False) -> str:
    """Return the section of ``part``: with ``every`` all tables with all rows and columns, otherwise those of the page.

    The page shows excess losses, and paired differences of the summary columns.
    """
    title, against = PARTS[part]
    results = committed(part)
    tables = make_tables(results, list(against))
    if not every:
        excess = [table for table in tables if table.title.startswith("Excess")]
        paired = [table for table in tables if table.title.startswith("Paired")]
        tables = excess + [
            summary(table, results.domains, rows) for table, rows in zip(paired, against.values(), strict=True)
        ]
    texts = [f"#### {table.title}\n\n{table_markdown(table)}" for table in tables]
    return "\n".join([f"### {title}\n\n{describe(results)}\n", *texts])


def summary(table: Table, domains: Sequence[str], methods: Sequence[str]) -> Table:
    """Return ``table`` without domains, with the rows of ``methods`` (empty: all); its note is that of all cells."""
    columns = [at for at, name in enumerate(table.columns) if name not in domains]
    rows = [row for row in table.rows if not methods or row.cells[0].text in methods]
    return replace(
        table,
        columns=[table.columns[at] for at in columns],
        rows=[replace(row, cells=tuple(row.cells[at] for at in columns)) for row in rows],
    )


def with_tables(page: str) -> str:
    """Return ``page`` with its generated part replaced."""
    before, rest = page.split(START)
    sections = "\n".join(section(part) for part in PARTS)
    return f"{before}{START}\n\n{sections}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case [part]:
            print(section(part, every=True))
        case arguments:
            if arguments:
                commit(arguments[0], read_results(Path(arguments[1])))
            PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
