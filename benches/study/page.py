"""Write the tables of pages in docs/benchmarks from committed results: `python benches/study/page.py`.

`page.py PART RESULTS` first replaces the committed results of PART, of PAGES, SPARSITY or CUTS, by RESULTS, the
results.json of `drpruning compare`. `page.py PART` prints all tables of PART with all columns, and writes nothing.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from drpruning.comparison.difference_table import marked
from drpruning.comparison.export_tables import describe
from drpruning.comparison.metrics import MEAN, WORST, RunMetrics
from drpruning.comparison.pareto import pareto_of, write_pareto
from drpruning.comparison.results import Results, read_results
from drpruning.comparison.tables import make_tables
from drpruning.files import write_bytes
from drpruning.formatting import percent, signed
from drpruning.tables import Cell, Row, Table
from drpruning.tables.markdown import table_markdown

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "benchmarks"
START, END = "<!-- tables: written by benches/study/page.py -->", "<!-- end of tables -->"
Parts = dict[str, tuple[str, dict[str, tuple[str, ...]]]]
"""Title of each part; methods that differences are taken to, each with the rows that the page shows (empty: all)."""
STUDY: Parts = {
    "study": (
        "Strategies, references, distillation",
        {
            "constant": (),
            "drpruning": ("tempered", "resheared", "paper", "one-shot", "distilled", "one-shot-distilled"),
            "off-sheared": ("off-drpruning",),
            "one-shot": ("one-shot-distilled",),
        },
    ),
    "even": ("Uniform reference ratio", {"constant": ()}),
    "ablations": ("Ablations of DRPruning", {"drpruning": ()}),
}
MIXTURES: Parts = {
    "mixtures-distilled": ("Skewed ratio, with distillation", {"constant": ()}),
    "mixtures-lower": ("Skewed ratio, with distillation: references that predictions may only lower", {"constant": ()}),
    "mixtures-plain": ("Skewed ratio, without distillation", {"constant": ()}),
    "mixtures-plain-all": ("Skewed ratio, without distillation: all rows, one seed", {"constant": ()}),
    "mixtures-larger": ("A base of 1.4 million parameters, without distillation", {"constant": ()}),
    "mixtures-repeat": (
        "Small domains repeated six times, without distillation",
        {"constant": ()},
    ),
    "mixtures-other": (
        "Other text, another ratio, without distillation",
        {
            "constant": ("tempered", "drpruning-lower", "drpruning-lower-tempered"),
            "drpruning-lower": tuple(
                f"drpruning-lower-{change}" for change in ("bound-2", "rho-0.05", "rho-0.2", "delta-0.1", "noise-0")
            ),
        },
    ),
    "mixtures-other-32768": ("Other text: evaluations on 32,768 tokens of each domain", {"constant": ()}),
}
MASKS: Parts = {
    "masks": ("Masks on 5% of the tokens, and cycles", {"one-shot": ()}),
    "crossing": (
        "A cut or masks in 400, 1,600 and 6,400 steps",
        {f"cut-{steps}": (f"masks-5-{steps}", f"masks-20-{steps}") for steps in (400, 1600, 6400)},
    ),
}
EQUAL = {
    "equal-compute": "A base of 0.3 million parameters, trained at the reference ratio",
    "equal-compute-lower": "The same base: references that predictions may only lower, and other centres",
    "equal-compute-larger": "A base of 1.4 million parameters, trained at the reference ratio",
    "equal-compute-larger-lower": "The same base: references that predictions may only lower, and other centres",
    "equal-compute-largest": "A base of 5.2 million parameters, trained at the reference ratio",
    "equal-compute-even": "A base of 0.3 million parameters, trained on equal shares",
}
OTHERS = {
    "repaired-constant": ("repaired-tempered",),
    "repaired-distilled": ("sheared", "published", "activation-distilled"),
}
LOWER = {
    "repaired": ("repaired-lower",),
    "repaired-tempered": ("repaired-lower-tempered", "repaired-distilled-lower-tempered"),
    "repaired-distilled": ("repaired-distilled-lower",),
}
CENTRES = {
    "repaired-constant": ("repaired-milder", "repaired-slow-tempered"),
    "repaired-lower-tempered": ("repaired-slow-tempered", "repaired-fixed-tempered"),
}
DISTILLED_CENTRES = {
    "repaired-distilled-lower-tempered": ("repaired-distilled-slow-tempered", "repaired-distilled-fixed-tempered"),
}
EQUAL_ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "equal-compute": OTHERS,
    "equal-compute-lower": {"repaired-tempered": ()} | CENTRES | DISTILLED_CENTRES,
    "equal-compute-larger": OTHERS,
    "equal-compute-larger-lower": {"repaired-tempered": ()} | CENTRES,
    "equal-compute-largest": {"repaired-constant": ("repaired-tempered", "activation-distilled")},
    "equal-compute-even": LOWER | CENTRES | DISTILLED_CENTRES,
}
EQUAL_COMPUTE: Parts = {part: (title, {"one-shot-distilled": (), **EQUAL_ROWS[part]}) for part, title in EQUAL.items()}
SPARSITY = {
    "sparsity-20": ("sparsity-20",),
    "sparsity-35": ("sparsity-35",),
    "sparsity-45": ("equal-compute", "equal-compute-lower"),
    "sparsity-55": ("sparsity-55",),
    "sparsity-71": ("sparsity-71",),
}
"""The parts with the results of each sparsity; a method's are those of the first part that has it."""
SPARSITY_ROWS = (
    "one-shot-distilled",
    "constant",
    "activation-distilled",
    "repaired-constant",
    "repaired-tempered",
    "repaired-distilled-lower-tempered",
)
QUICKSTART: Parts = {"quickstart": ("Methods compared", {"constant": ()})}
CUTS: Parts = {"cuts": ("Cuts by importance", {"taylor": ()})}
PAGES = {
    "study": STUDY,
    "mixtures": MIXTURES,
    "masks": MASKS,
    "equal_compute": EQUAL_COMPUTE,
    "../tutorials/quickstart": QUICKSTART,
}
"""The parts of each page, by its place from docs/benchmarks; a part without committed results is left out."""


def path_of(part: str) -> Path:
    """Return the path of the committed results of ``part``."""
    return HERE / f"{part}.json.gz"


def committed(part: str) -> Results:
    """Return the committed results of ``part``."""
    return Results.model_validate_json(gzip.decompress(path_of(part).read_bytes()))


def commit(part: str, results: Results) -> None:
    """Replace the committed results of ``part``; equal results give equal bytes."""
    text = re.sub(r'"[^"]*/corpora/demo-[0-9a-f]+"', '"demo"', results.model_dump_json())  # not a path of this machine
    path_of(part).write_bytes(gzip.compress(text.encode(), mtime=0))


def section(part: str, *, every: bool = False) -> str:
    """Return the section of ``part``: with ``every`` all tables with all rows and columns, otherwise those of the page.

    The page shows excess losses, and paired differences of the summary columns.
    """
    title, against = (STUDY | MIXTURES | MASKS | EQUAL_COMPUTE | QUICKSTART | CUTS)[part]
    results = committed(part)
    tables = make_tables(results, list(against))
    if not every:
        excess = [table for table in tables if table.title.startswith("Excess")]
        paired = [table for table in tables if table.title.startswith("Paired")]
        cost = [table for table in tables if table.title.startswith("Cost")] if part in EQUAL_COMPUTE else []
        tables = excess + [
            summary(table, results.domains, rows) for table, rows in zip(paired, against.values(), strict=True)
        ]
        tables += cost
    figure = [f"![Worst excess against ratio-weighted mean]({part}.png)\n"] if has_figure(part, results) else []
    texts = [f"#### {table.title}\n\n{table_markdown(table)}" for table in tables]
    return "\n".join([f"### {title}\n\n{describe(results)}\n", *figure, *texts])


def sparsity_section() -> str:
    """Return the section of whole methods by sparsity: worst and mean excess, marked by the difference to the first."""
    known = {name: parts for name, parts in SPARSITY.items() if all(path_of(part).exists() for part in parts)}
    parts = {name: [RunMetrics(committed(part)) for part in known[name]] for name in known}
    removed = {
        name: percent(1 - found[0].results.runs[0].parameters / found[0].results.base_parameters)
        for name, found in parts.items()
    }
    texts = ["### By sparsity\n"]
    for title, metric in (("Worst excess", WORST), ("Mean excess", MEAN)):
        rows = [
            Row.of(method, *(_sparsity_cell(metric, method, found) for found in parts.values()))
            for method in SPARSITY_ROWS
        ]
        table = Table(["method", *removed.values()], rows, title=title)
        texts.append(f"#### {title} by sparsity, nats per token\n\n{table_markdown(table)}")
    texts.append(
        "Columns: fraction of the base's parameters that is removed. Two seeds; 45%: three, from the tables above. "
        "Bold: better than one-shot-distilled, italics: worse, and the 95% interval of the paired difference excludes "
        "zero, without a correction for the number of comparisons.\n"
    )
    return "\n".join(texts)


def _sparsity_cell(metric: str, method: str, found: Sequence[RunMetrics]) -> Cell:
    runs = next(each for each in found if each.results.of(method))
    base = fmean(fmean(runs.results.base[seed].values()) for seed in runs.seeds(method)) if metric == MEAN else 0.0
    value = runs.average(metric, method) - base
    return marked(Cell(signed(value), value), runs.difference(metric, method, SPARSITY_ROWS[0]))


def summary(table: Table, domains: Sequence[str], methods: Sequence[str]) -> Table:
    """Return ``table`` without domains, with the rows of ``methods`` (empty: all); its note is that of all cells."""
    columns = [at for at, name in enumerate(table.columns) if name not in domains]
    rows = [row for row in table.rows if not methods or row.cells[0].text in methods]
    return replace(
        table,
        columns=[table.columns[at] for at in columns],
        rows=[replace(row, cells=tuple(row.cells[at] for at in columns)) for row in rows],
    )


def with_tables(name: str, page: str) -> str:
    """Return the text ``page`` of the page ``name`` with its generated part replaced."""
    before, rest = page.split(START)
    sections = [section(part) for part in PAGES[name] if path_of(part).exists()]
    if name == "equal_compute" and any(path_of(part).exists() for part in SPARSITY):
        sections.append(sparsity_section())
    return "\n".join([f"{before}{START}\n", *sections, f"{END}{rest.split(END)[1]}"])


def has_figure(part: str, results: Results) -> bool:
    """Return whether the page has a figure of ``part``: of several seeds, and of more rows than a sentence compares."""
    return part in MIXTURES and len(results.seeds) > 1 and len(results.methods) > 3


def draw_trade(part: str) -> None:
    """Draw worst excess against ratio-weighted mean of ``part`` into docs/benchmarks."""
    plot = pareto_of(committed(part), "constant")
    assert plot is not None
    with TemporaryDirectory() as folder:
        png, _ = write_pareto(plot, Path(folder))
        write_bytes(DOCS / f"{part}.png", png.read_bytes())


def main(arguments: Sequence[str]) -> None:
    """Print or replace a part, and write the pages."""
    if len(arguments) == 1:
        print(section(arguments[0], every=True))
        return
    if arguments:
        commit(arguments[0], read_results(Path(arguments[1])))
        if has_figure(arguments[0], committed(arguments[0])):
            draw_trade(arguments[0])
    for name in PAGES:
        path = DOCS / f"{name}.md"
        path.write_text(with_tables(name, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
