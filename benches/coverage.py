"""Measure how often the 95% intervals of `drpruning compare` and `drpruning eval` contain the true difference.

    python benches/coverage.py --out benches/coverage.json       # simulate, then write docs/benchmarks/coverage.md
    python benches/coverage.py --page                            # write the tables of the page again

A simulated study has two methods, a base, five domains and documents in groups. The truth is the difference on all
documents and over all seeds that the study could have drawn; with one seed, on all documents for that seed. The
intervals are computed by :class:`drpruning.comparison.metrics.RunMetrics`.

Populations of groups, by their effect on the difference between the methods (mean 1):

- ``normal``: standard deviation 0.3;
- ``skewed``: log-normal, sigma 0.7;
- ``rare``: one group in twenty has four times the effect of the others, as the licence texts of the study.

Documents have log-normal lengths (sigma 0.9, 30 to 1,500 tokens), groups a geometric number of documents (mean 2).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.comparison.methods import Method
from drpruning.comparison.metrics import MEAN, WEIGHTED, WORST, RunMetrics
from drpruning.comparison.results import DocumentSums, Results, RunResult
from drpruning.files import write_text
from drpruning.intervals import Difference
from drpruning.tables import Row, Table
from drpruning.tables.markdown import table_markdown

Array = NDArray[np.float64]
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "coverage.md"
START, END = "<!-- tables: written by benches/coverage.py -->", "<!-- end of tables -->"

DOMAINS = ("a", "b", "c", "d", "e")
RATIO = np.array([0.6, 0.2, 0.1, 0.06, 0.04])
LEVEL_EXCESS = np.array([0.30, 0.28, 0.29, 0.27, 0.30])
OTHER = {"clear": np.array([0.2, 0.35, 0.4, 0.5, 0.8]), "level": np.array([0.31, 0.30, 0.30, 0.28, 0.30])}
"""Excess of the other method by domain: one domain is clearly the worst, or all are alike, as those of the first."""
OF_SEEDS, OF_BOTH = 0.02, 0.1
"""Standard deviations between seeds: of the loss of a domain, and of a document."""
CASES = (("normal", "clear"), ("skewed", "clear"), ("rare", "clear"), ("skewed", "level"))
SIZES, SEEDS = (10, 20, 50, 100, 200), (1, 2, 3, 5)
METRICS = (MEAN, WEIGHTED, WORST, "e")
LARGEST_BINS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class Study:
    """Results of a simulated study, and the true losses over the base of each method, ``[seeds, domains]``."""

    results: Results
    truth: dict[str, Array]


def effects(generator: np.random.Generator, population: str, groups: int) -> Array:
    """Draw the effect of each group, mean 1."""
    if population == "normal":
        return 1 + 0.3 * generator.standard_normal(groups)
    if population == "skewed":
        return np.exp(0.7 * generator.standard_normal(groups) - 0.7**2 / 2)
    heavy = np.where(generator.random(groups) < 0.05, 4.0, 1.0) / 1.15
    return heavy * (1 + 0.2 * generator.standard_normal(groups))


def simulate(generator: np.random.Generator, population: str, case: str, groups: int, seeds: int) -> Study:
    """Draw documents, seeds and losses of the methods ``x`` and ``y``."""
    own = {name: generator.normal(0, OF_SEEDS, (seeds, len(DOMAINS))) for name in "xy"}
    truth = {"x": LEVEL_EXCESS + own["x"], "y": OTHER[case] + own["y"]}
    base: dict[str, DocumentSums] = {}
    nats: dict[str, list[dict[str, Any]]] = {name: [{} for _ in range(seeds)] for name in "xy"}
    for at, domain in enumerate(DOMAINS):
        numbers = np.repeat(np.arange(groups), generator.geometric(0.5, groups))
        count = len(numbers)
        tokens = np.clip(np.exp(6 + 0.9 * generator.standard_normal(count)), 30, 1500).round()
        shared = effects(generator, population, groups)
        other = 0.7 * shared + 0.3 * effects(generator, population, groups)
        level = 3 + 0.5 * generator.standard_normal(count)
        of_document = 1 + 0.2 * generator.standard_normal(count)
        base[domain] = _sums(tokens, level * tokens, numbers)
        excess = {"x": LEVEL_EXCESS[at] * shared[numbers] * of_document}
        excess["y"] = OTHER[case][at] * other[numbers] * of_document
        for name in "xy":
            for seed in range(seeds):
                noise = OF_BOTH * generator.standard_normal(count)
                losses = level + excess[name] + own[name][seed, at] + noise
                nats[name][seed][domain] = _sums(tokens, losses * tokens, numbers)
    runs = [
        RunResult.model_construct(method=name, seed=seed, recovered=_losses(documents), documents=documents)
        for name, by_seed in nats.items()
        for seed, documents in enumerate(by_seed)
    ]
    results = Results.model_construct(
        methods={"x": Method(), "y": Method()},
        seeds=list(range(seeds)),
        domains=list(DOMAINS),
        reference_ratio=dict(zip(DOMAINS, RATIO.tolist(), strict=True)),
        base=dict.fromkeys(range(seeds), _losses(base)),
        base_documents=dict.fromkeys(range(seeds), base),
        runs=runs,
    )
    return Study(results, truth)


def intervals(
    study: Study, seeds: Sequence[int] = SEEDS, resamples: int = 500
) -> Iterable[tuple[str, int, Difference]]:
    """Yield the difference ``x`` minus ``y`` for each metric and number of seeds."""
    metrics = RunMetrics(study.results, resamples=resamples)
    for count in seeds:
        for metric in METRICS:
            difference = metrics.difference(metric, "x", "y", range(count))
            assert difference is not None
            yield metric, count, difference


def true_difference(metric: str, excess: dict[str, Array]) -> float:
    """Return the mean over seeds of a metric of ``x`` minus that of ``y``; excess ``[seeds, domains]``."""
    if metric == WORST:
        return float((excess["x"].max(axis=1) - excess["y"].max(axis=1)).mean())
    difference = (excess["x"] - excess["y"]).mean(axis=0)
    if metric == MEAN:
        return float(difference.mean())
    return float(difference @ RATIO) if metric == WEIGHTED else float(difference[DOMAINS.index(metric)])


def expected_difference(metric: str, case: str) -> float:
    """Return the true difference over all seeds."""
    if metric != WORST:
        return true_difference(metric, {"x": LEVEL_EXCESS[None], "y": OTHER[case][None]})
    drawn = np.random.default_rng(1).normal(0, OF_SEEDS, (2, 200_000, len(DOMAINS)))
    return true_difference(metric, {"x": LEVEL_EXCESS + drawn[0], "y": OTHER[case] + drawn[1]})


def measure(population: str, case: str, groups: int, trials: int, seed: int = 0) -> list[dict[str, Any]]:
    """Simulate studies of one size; return a dictionary for each metric and number of seeds."""
    generator = np.random.default_rng([seed, groups])
    expected = {metric: expected_difference(metric, case) for metric in METRICS}
    found = defaultdict(list)
    for _ in range(trials):
        study = simulate(generator, population, case, groups, max(SEEDS))
        for metric, seeds, difference in intervals(study):
            first = {name: values[:1] for name, values in study.truth.items()}
            truth = true_difference(metric, first) if seeds == 1 else expected[metric]
            assert difference.support is not None
            side = int(truth > difference.high) - int(truth < difference.low)
            found[metric, seeds].append((side, difference.high - difference.low, difference.support.largest))
    cells = []
    for (metric, seeds), rows in found.items():
        sides, widths, largest = (np.array(column) for column in zip(*rows, strict=True))
        bins = np.clip(np.searchsorted(LARGEST_BINS, largest, side="right") - 1, 0, len(LARGEST_BINS) - 2)
        cells.append(
            {
                "population": population, "case": case, "groups": groups, "metric": metric, "seeds": seeds,
                "studies": trials, "covered": int((sides == 0).sum()), "above": int((sides > 0).sum()),
                "below": int((sides < 0).sum()), "median_width": round(float(np.median(widths)), 4),
                "by_largest": [[int((bins == at).sum()), int((sides[bins == at] == 0).sum())]
                               for at in range(len(LARGEST_BINS) - 1)],
            }
        )  # fmt: skip
    return cells


def _added(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return two cells of the same place and number of studies as one."""
    sums = {name: first[name] + second[name] for name in ("studies", "covered", "above", "below")}
    width = round((first["median_width"] + second["median_width"]) / 2, 4)
    by_largest = (np.array(first["by_largest"]) + np.array(second["by_largest"])).tolist()
    return {**first, **sums, "median_width": width, "by_largest": by_largest}


def _sums(tokens: Array, nats: Array, groups: NDArray[np.int64]) -> DocumentSums:
    return DocumentSums.model_construct(tokens=tokens, nats=nats, groups=groups)


def _losses(documents: dict[str, Any]) -> dict[str, float]:
    return {domain: float(np.sum(sums.nats) / np.sum(sums.tokens)) for domain, sums in documents.items()}


def tables(cells: Sequence[dict[str, Any]]) -> str:
    """Return the tables of the page."""
    by_place = {(c["population"], c["case"], c["groups"], c["metric"], c["seeds"]): c for c in cells}
    texts = []
    names = {MEAN: "plain mean", WEIGHTED: "weighted mean", WORST: "worst domain", "e": "one domain"}
    for population, case in CASES:
        if not any(place[:2] == (population, case) for place in by_place):
            continue
        rows = []
        for groups in SIZES:
            shown = [by_place.get((population, case, groups, metric, seeds)) for metric in METRICS for seeds in SEEDS]
            rows.append(Row.of(str(groups), *("" if c is None else _percent(c) for c in shown)))
        columns = ["groups", *(f"{names[metric]}, {seeds}" for metric in METRICS for seeds in SEEDS)]
        texts.append(f"### {population}, {case}\n\n{table_markdown(Table(columns, rows))}")
    rows = []
    for groups in SIZES:
        sums = np.sum(
            [c["by_largest"] for c in cells if c["groups"] == groups and c["metric"] in (WORST, "e")], axis=0
        )  # fmt: skip
        parts = ["–" if count < 100 else f"{100 * covered / count:.0f}%" for count, covered in sums]
        rows.append(Row.of(str(groups), *parts))
    edges = [f"{low:.0%} to {high:.0%}" for low, high in itertools.pairwise(LARGEST_BINS)]
    texts.append("### By the share of the largest group\n\n" + table_markdown(Table(["groups", *edges], rows)))
    return "\n".join(texts)


def _percent(cell: dict[str, Any]) -> str:
    return f"{100 * cell['covered'] / cell['studies']:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--page", action="store_true", help="Only write the page from --out.")
    arguments = parser.parse_args()
    cells: list[dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.page else []
    if not arguments.page:
        for groups in SIZES:
            for population, case in CASES:
                halves = [measure(population, case, groups, arguments.trials // 2, seed) for seed in (0, 1)]
                cells += map(_added, *halves)
                write_text(arguments.out, "[\n" + ",\n".join(map(json.dumps, cells)) + "\n]\n")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    write_text(PAGE, f"{before}{START}\n\n{tables(cells)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
