"""Writes the tables of docs/results.md from the results of the study: `python benches/study/page.py [PART RESULTS]`.

With PART, a key of PARTS, and RESULTS, the results.json of `drpruning compare`, these become the committed ones first.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

from drpruning.comparison.export_tables import describe
from drpruning.comparison.results import Results, read_results
from drpruning.comparison.tables import make_tables
from drpruning.tables.markdown import table_markdown

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results.md"
START, END = "<!-- tables: written by benches/study/page.py -->", "<!-- end of tables -->"
PARTS = {
    "study": ("The study", ("constant", "resheared", "paper", "one-shot", "off-sheared"), ()),
    "ablations": ("One thing changed at a time", ("drpruning",), ("Excess", "Paired", "What")),
    "even": ("An even ratio", ("constant",), ("Excess", "Paired")),
    "even-more-text": ("An even ratio, evaluations on 16,384 tokens", ("constant",), ("Excess", "Paired")),
}
"""By part: its title, the methods that differences are taken to, and how the titles of its tables begin (none: all)."""


def committed(part: str) -> Results:
    """The numbers that the page shows."""
    return Results.model_validate_json(gzip.decompress((HERE / f"{part}.json.gz").read_bytes()))


def commit(part: str, results: Results) -> None:
    """Replaces them; the same results give the same bytes."""
    (HERE / f"{part}.json.gz").write_bytes(gzip.compress(results.model_dump_json().encode(), mtime=0))


def tables(part: str) -> str:
    """The generated section of one part."""
    title, against, kept = PARTS[part]
    results = committed(part)
    found = [table for table in make_tables(results, against) if not kept or table.title.startswith(kept)]
    sections = [f"### {table.title}\n\n{table_markdown(table)}" for table in found]
    return "\n".join([f"## Tables: {title[0].lower()}{title[1:]}\n\n{describe(results)}\n", *sections])


def with_tables(page: str) -> str:
    """Return the page with its generated part replaced."""
    before, rest = page.split(START)
    made = "\n".join(tables(part) for part in PARTS)
    return f"{before}{START}\n\n{made}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        commit(sys.argv[1], read_results(Path(sys.argv[2])))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
