"""Write the tables of docs/benchmarks/study.md from the committed results: `python benches/study/page.py`.

`page.py PART RESULTS` first replaces the committed results of PART, a key of PARTS, by RESULTS, the results.json of
`drpruning compare`. `page.py PART` prints all tables of PART with all columns, and writes nothing.
"""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path

from drpruning.comparison.pages import heading, markdown_table
from drpruning.comparison.results import Results, read_results
from drpruning.comparison.tables import make_tables

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "benchmarks" / "study.md"
START, END = "<!-- tables: written by benches/study/page.py -->", "<!-- end of tables -->"
PARTS = {
    "study": ("Strategies, references, distillation", ("constant", "resheared", "paper", "one-shot", "off-sheared")),
    "ablations": ("Ablations of DRPruning", ("drpruning",)),
    "even": ("Uniform reference ratio", ("constant",)),
    "even-more-text": ("Uniform reference ratio, evaluations on 16,384 tokens", ("constant",)),
}
"""Title of each part, and the methods that differences are taken to."""
SHOWN = ("Excess", "Paired")
"""First words of the titles of the tables that the page shows."""


def committed(part: str) -> Results:
    """Return the committed results of ``part``."""
    return Results.model_validate_json(gzip.decompress((HERE / f"{part}.json.gz").read_bytes()))


def commit(part: str, results: Results) -> None:
    """Replace the committed results of ``part``; equal results give equal bytes."""
    (HERE / f"{part}.json.gz").write_bytes(gzip.compress(results.model_dump_json().encode(), mtime=0))


def section(part: str, *, every: bool = False) -> str:
    """Return the section of ``part``: with ``every`` all tables with all columns, otherwise those of the page.

    On the page, paired differences are those of the summary columns, not of single domains.
    """
    title, against = PARTS[part]
    results = committed(part)
    texts = []
    for table in make_tables(results, against):
        if every:
            texts.append(f"#### {table.title}\n\n{markdown_table(table)}")
        elif table.title.startswith(SHOWN):
            shown = table
            if table.title.startswith("Paired"):
                columns = [at for at, name in enumerate(table.columns) if name not in results.domains]
                shown = replace(
                    table,
                    columns=[table.columns[at] for at in columns],
                    rows=[[row[at] for at in columns] for row in table.rows],
                    strong={(row, columns.index(at)) for row, at in table.strong if at in columns},
                    note="",
                )
            texts.append(f"#### {table.title}\n\n{markdown_table(shown)}")
    return "\n".join([f"### {title}\n\n{heading(results)}\n", *texts])


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
