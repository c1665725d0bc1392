"""The numbers of a run's tables: losses before and after by domain, and strategies compared.

The page, the terminal and the JSON output show the same numbers. Losses are held-out losses in nats per token; NaN
means not measured. Excess is the loss minus that of the base model in the same domain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drpruning.records import Losses, Record, RunStarted
from drpruning.report.read.run import domains_of, last, measured


@dataclass(frozen=True, kw_only=True)
class LossRow:
    """One domain, or a mean over domains, through pruning and recovery."""

    name: str
    ratio: float
    base: float
    pruned: float
    recovered: float

    @property
    def excess(self) -> float:
        """Loss after recovery minus the base's."""
        return self.recovered - self.base

    @property
    def excess_pruned(self) -> float:
        """Loss right after pruning minus the base's."""
        return self.pruned - self.base

    @property
    def recovery(self) -> float:
        """Loss after recovery minus the loss right after pruning: with :attr:`excess_pruned` it adds up to the excess.

        >>> row = LossRow(name="web", ratio=1.0, base=2.0, pruned=4.0, recovered=2.5)
        >>> row.excess_pruned, row.recovery, row.excess
        (2.0, -1.5, 0.5)
        """
        return self.recovered - self.pruned


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The before/after table.

    ``prunes`` is False for a run whose model keeps its shape: it has no pruned model. ``worst`` is the row with the
    largest excess after recovery, or after pruning so far.
    """

    rows: list[LossRow]
    prunes: bool
    mean: LossRow
    ratio_weighted: LossRow
    worst: LossRow | None
    worst_pruned: LossRow | None


@dataclass(frozen=True, kw_only=True)
class StrategyRow:
    """The result of one strategy. ``ratio_weighted`` weighs domains by the recipe's reference ratio."""

    name: str
    recovered: Losses
    excess: Losses
    worst_domain: str | None
    worst_excess: float
    mean: float
    ratio_weighted: float


@dataclass(frozen=True, kw_only=True)
class StrategyComparison:
    """Strategies side by side, from the same base; the first is the run itself."""

    domains: list[str]
    rows: list[StrategyRow]


def summary_table(records: Iterable[Record]) -> Summary:
    """Tabulate losses before and after; an unfinished run has NaN for what is not measured yet.

    Args:
        records: The records of one run, in order.

    Returns:
        One row per domain in the recipe's order, their plain mean and their mean weighted by the reference ratio.
        The mean is NaN if a domain is missing, because it would not compare with other means.
    """
    records = list(records)
    names = domains_of(records)
    ratio = _reference_ratio(records)
    base, pruned, recovered = (_losses(records, model) for model in ("base", "pruned", "recovered"))
    rows = [
        LossRow(
            name=name,
            ratio=ratio.get(name, math.nan),
            base=base.get(name, math.nan),
            pruned=pruned.get(name, math.nan),
            recovered=recovered.get(name, math.nan),
        )
        for name in names
    ]
    every = dict.fromkeys(names, 1.0)
    columns = (base, pruned, recovered)
    mean, weighted = ([_mean(names, losses, by) for losses in columns] for by in (every, ratio))
    return Summary(
        rows=rows,
        prunes=prunes(records),
        mean=LossRow(name="mean", ratio=math.nan, base=mean[0], pruned=mean[1], recovered=mean[2]),
        ratio_weighted=LossRow(
            name="ratio-weighted mean", ratio=math.nan, base=weighted[0], pruned=weighted[1], recovered=weighted[2]
        ),
        worst=max((row for row in rows if math.isfinite(row.excess)), key=lambda row: row.excess, default=None),
        worst_pruned=max(
            (row for row in rows if math.isfinite(row.excess_pruned)), key=lambda row: row.excess_pruned, default=None
        ),
    )


def compare_strategies(records_by_name: Mapping[str, Sequence[Record]]) -> StrategyComparison:
    """Tabulate the recovered losses of several strategies.

    Args:
        records_by_name: The records of each run under the name to show, the main run first. All start from the same
            base, so a run without the base's losses is compared with the first run's base.

    Returns:
        One row per strategy. Runs without a recovered model keep a row of NaN.
    """
    runs = {name: list(records) for name, records in records_by_name.items()}
    first: list[Record] = next(iter(runs.values()), [])
    domains = domains_of(first)
    ratio, base = _reference_ratio(first), _losses(first, "base")
    rows = []
    for name, records in runs.items():
        recovered = _losses(records, "recovered")
        start = base | _losses(records, "base")
        losses = {domain: recovered.get(domain, math.nan) for domain in domains}
        excess = {domain: loss - start.get(domain, math.nan) for domain, loss in losses.items()}
        known = {domain: value for domain, value in excess.items() if math.isfinite(value)}
        worst = max(known, key=known.__getitem__) if len(known) == len(domains) and known else None
        rows.append(
            StrategyRow(
                name=name,
                recovered=losses,
                excess=excess,
                worst_domain=worst,
                worst_excess=math.nan if worst is None else known[worst],
                mean=_mean(domains, losses, dict.fromkeys(domains, 1.0)),
                ratio_weighted=_mean(domains, losses, ratio),
            )
        )
    return StrategyComparison(domains=domains, rows=rows)


def prunes(records: Sequence[Record]) -> bool:
    """Return whether a run has a prune stage; True if its records do not say."""
    started = last(records, RunStarted)
    return started is None or not started.stages or "prune" in started.stages


def _losses(records: Iterable[Record], model: str) -> Losses:
    found = measured(records, model)
    return found.losses if found else {}


def _reference_ratio(records: Iterable[Record]) -> Losses:
    started = last(records, RunStarted)
    return started.reference_ratio if started else {}


def _mean(names: Sequence[str], losses: Losses, weights: Losses) -> float:
    """Return the mean of ``losses`` over ``names``; NaN if a loss or a weight is missing."""
    total = sum(weights.get(name, math.nan) for name in names)  # not fsum, which raises where sum overflows to infinity
    if not 0 < total < math.inf:
        return math.nan
    return sum(weights[name] / total * losses.get(name, math.nan) for name in names)
