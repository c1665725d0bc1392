"""Tables of paired differences: marks of better and worse, corrected for their number, and intervals too narrow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from drpruning.comparison.metrics import MEAN, WEIGHTED, WORST, RunMetrics
from drpruning.formatting import NONE, signed
from drpruning.intervals import LEVEL, TOO_NARROW, Difference, benjamini_hochberg, few_groups
from drpruning.tables import Cell, Row, Table

SUMMARY = (WORST, MEAN, WEIGHTED)


def difference_table(metrics: RunMetrics, columns: Sequence[str], other: str, title: str, note: str = "") -> Table:
    """Tabulate the differences of all methods to ``other``; its note has the number of comparisons and the warnings.

    Args:
        metrics: The runs.
        columns: Metrics, see :meth:`RunMetrics.metric`.
        other: Name of the method.
        title: Title of the table.
        note: Sentences before the others of the note.
    """
    rows: list[tuple[str, list[Difference | None]]] = []
    for method in metrics.results.methods:
        differences = [metrics.difference(name, method, other) for name in columns]
        if any(difference is not None for difference in differences):
            rows.append((method, differences))
    every = [found for _, differences in rows for found in differences if found is not None and _is_known(found)]
    passed = dict(zip(map(id, every), benjamini_hochberg([found.p_value for found in every]), strict=True))
    cells = [
        Row.of(
            method,
            str(max(found.pairs for found in differences if found is not None)),
            *(difference_cell(found, passed=passed.get(id(found), False)) for found in differences),
        )
        for method, differences in rows
    ]
    sentences = [
        note,
        "Below zero the method is better. Means over pairs with the same seed, with 95% intervals over seeds and "
        "held-out documents (over documents alone if there is one seed). Bold: better, italics: worse, and the "
        "interval excludes zero. Domains: excess.",
        _multiplicity(every, sum(passed.values())),
        *(warning(columns, rows, metrics.domains) if rows else ()),
    ]
    return Table(["method", "seeds", *columns], cells, title=title, note=" ".join(filter(None, sentences)))


def difference_cell(difference: Difference | None, *, passed: bool = True) -> Cell:
    """Return the cell of a difference; a dagger if it is marked and does not pass the correction."""
    if difference is None:
        return Cell(NONE)
    dagger = "" if passed or not difference.excludes_zero else "†"
    interval = f"[{signed(difference.low)}, {signed(difference.high)}]{dagger}" if _is_known(difference) else ""
    return marked(Cell(signed(difference.value), difference.value, interval), difference)


def marked(cell: Cell, difference: Difference | None) -> Cell:
    """Mark a cell as better or worse by a difference whose interval excludes zero."""
    if difference is None or not difference.excludes_zero:
        return cell
    return replace(cell, best=difference.value < 0, worse=difference.value > 0)


def warning(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Difference | None]]], domains: Sequence[str]
) -> list[str]:
    """Return a sentence that names the columns whose intervals may be too narrow, and why; empty without one."""
    reasons = []
    for at, column in enumerate(columns):
        found = [differences[at] for _, differences in rows]
        reason = few_groups([each for each in found if each is not None], domains, mean=column in (MEAN, WEIGHTED))
        if reason:
            reasons.append(f"{column} ({reason})")
    return [TOO_NARROW.format("; ".join(reasons))] if reasons else []


def _multiplicity(differences: Sequence[Difference], passed: int) -> str:
    if not differences:
        return ""
    excluded = sum(found.excludes_zero for found in differences)
    text = (
        f"{len(differences)} comparisons, of which {(1 - LEVEL) * len(differences):.1f} would exclude zero by chance "
        f"if no method differed; {excluded} do, and {passed} of them pass Benjamini-Hochberg at 5%"
    )
    return text + (" (†: not passed)." if passed < excluded else ".")


def _is_known(difference: Difference) -> bool:
    return math.isfinite(difference.half_width)
