"""How sure a difference between two methods is: intervals over seeds and held-out documents.

Two things would change the numbers if the comparison were made again: the seeds (base, order of the data, gates) and
the held-out documents that happened to be chosen. Both count:

- *Seeds.* Runs of two methods with the same seed are a pair. The spread of the pairs' differences gives a variance
  with (pairs - 1) degrees of freedom.
- *Documents.* All runs are measured on the same documents, so what these favour does not show between seeds. Within
  each domain they are drawn again with replacement, the same draw for all runs (a bootstrap of one document less than
  there are, which leaves the variance unbiased: Rao and Wu 1988); the spread of the mean difference over draws is the
  second variance, with as many degrees of freedom as the domain with the fewest documents has.

The interval is ``difference +- t sqrt(seeds + documents)``, Student's t at Satterthwaite's degrees of freedom. A
bootstrap over seeds would be no help: with three of them its nominal 95% cover 75% at most, since no draw leaves the
range of the three. With one seed only the documents count, and the table says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from drpruning.comparison.results import Documents, Results, RunResult

Array = NDArray[np.float64]
LEVEL = 0.95
DRAWS = 2000

WORST, MEAN, WEIGHTED = "worst excess", "plain mean", "ratio-weighted mean"


@dataclass(frozen=True)
class Difference:
    """A method's metric minus another's, nats per token; below zero the first is better.

    Attributes:
        value: Mean over the pairs.
        low: Lower end of the 95% interval.
        high: Upper end.
        pairs: Seeds that both have.
    """

    value: float
    low: float
    high: float
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def interval(differences: Array, drawn: Array, documents: float = math.inf, level: float = LEVEL) -> Difference:
    """The mean of paired differences and its interval.

    Args:
        differences: One for each pair, ``[S]``.
        drawn: The same under each draw of the documents, ``[B, S]``.
        documents: How many there are, in the domain with the fewest.
        level: Of the interval.

    Example:
        >>> found = interval(np.array([-0.3, -0.2, -0.25]), np.zeros((10, 3)))
        >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
        (-0.25, -0.374, -0.126)
    """
    pairs = differences.size
    value = float(differences.mean())
    of_documents = float(drawn.mean(axis=1).var(ddof=1)) if len(drawn) > 1 else 0.0
    of_seeds = float(differences.var(ddof=1)) / pairs if pairs > 1 else 0.0
    variance = of_seeds + of_documents
    spent = of_documents**2 / max(documents - 1, 1) + (of_seeds**2 / (pairs - 1) if pairs > 1 else 0.0)
    freedom = variance**2 / spent if spent > 0 else math.inf
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    return Difference(value, value - half, value + half, pairs)


class Measured:
    """Losses of all runs, as measured and under draws of the documents.

    Args:
        results: The comparison.
        draws: How often the documents are drawn again.
        seed: Of the draws.
    """

    def __init__(self, results: Results, draws: int = DRAWS, seed: int = 0) -> None:
        self.results = results
        self.domains = results.domains
        self.ratio = np.array([results.reference_ratio[domain] for domain in self.domains])
        generator = np.random.default_rng(seed)
        some = results.runs[0].documents
        sizes = {domain: len(some[domain].tokens) for domain in self.domains}
        self.documents = min(sizes.values())
        self.counts = {
            domain: generator.multinomial(max(size - 1, 1), np.full(size, 1 / size), size=draws).astype(np.float64)
            for domain, size in sizes.items()
        }
        self._base = {
            each: self._losses(results.base[each], documents) for each, documents in results.base_documents.items()
        }
        self._runs = {(run.method, run.seed): self._losses(run.recovered, run.documents) for run in results.runs}

    def seeds(self, *methods: str) -> list[int]:
        """The seeds for which every one of these methods has a run and the base is measured."""
        return [
            seed
            for seed in self.results.seeds
            if seed in self._base and all((method, seed) in self._runs for method in methods)
        ]

    def metric(self, name: str, method: str, seed: int) -> tuple[float, Array]:
        """One number of a run: as measured, and ``[B]`` under the draws.

        Args:
            name: :data:`WORST`, :data:`MEAN`, :data:`WEIGHTED` or a domain, whose excess over the base it then is.
            method: Whose.
            seed: Which run.
        """
        losses = self._runs[method, seed]
        values = self._metric(name)(losses, self._base[seed])
        return float(values[0]), values[1:]

    def difference(self, name: str, method: str, other: str) -> Difference | None:
        """``method`` minus ``other``; None if they have no seed in common."""
        seeds = self.seeds(method, other)
        if not seeds or method == other:
            return None
        pairs = [(self.metric(name, method, seed), self.metric(name, other, seed)) for seed in seeds]
        measured = np.array([ours[0] - theirs[0] for ours, theirs in pairs])
        drawn = np.stack([ours[1] - theirs[1] for ours, theirs in pairs], axis=1)
        return interval(measured, drawn, self.documents)

    def average(self, name: str, method: str) -> float:
        """A metric's mean over the seeds of a method; NaN without one."""
        seeds = self.seeds(method)
        return float(np.mean([self.metric(name, method, seed)[0] for seed in seeds])) if seeds else math.nan

    def _metric(self, name: str) -> Callable[[Array, Array], Array]:
        if name == WORST:
            return lambda losses, base: np.asarray((losses - base).max(axis=1))
        if name == MEAN:
            return lambda losses, _base: np.asarray(losses.mean(axis=1))
        if name == WEIGHTED:
            return lambda losses, _base: np.asarray(losses @ self.ratio)
        at = self.domains.index(name)
        return lambda losses, base: np.asarray(losses[:, at] - base[:, at])

    def _losses(self, measured: Mapping[str, float], documents: Mapping[str, Documents]) -> Array:
        """``[1 + B, domains]``: as measured, then under each draw."""
        columns = []
        for domain in self.domains:
            counts = self.counts[domain]
            nats, tokens = np.array(documents[domain].nats), np.array(documents[domain].tokens)
            columns.append(np.concatenate([[measured[domain]], (counts @ nats) / (counts @ tokens)]))
        return np.stack(columns, axis=1)


def tokens_to_reach(runs: Sequence[RunResult], target: Mapping[int, float]) -> tuple[float, int]:
    """The part of the continued pretraining after which the plain mean loss is down to a target.

    Args:
        runs: Of one method.
        target: By seed the plain mean to reach, on the text that strategies see.

    Returns:
        The mean fraction over the runs that get there, straight lines between evaluations; and how many do.
    """
    found = []
    for run in runs:
        points = [point for point in run.points if point.stage == "continue"]
        if not points:
            continue  # a finished model
        curve = np.array([[point.tokens, np.mean(list(point.losses.values()))] for point in points])
        below = np.flatnonzero(curve[:, 1] <= target.get(run.seed, -math.inf))
        if below.size == 0:
            continue
        at = int(below[0])
        tokens = curve[at, 0]
        if at > 0:
            (before, high), (after, low) = curve[at - 1], curve[at]
            tokens = before + (after - before) * (high - target[run.seed]) / (high - low)
        found.append(tokens / curve[-1, 0])
    return (float(np.mean(found)) if found else math.nan), len(found)


def final_means(runs: Sequence[RunResult]) -> dict[int, float]:
    """By seed, the plain mean loss at the last evaluation."""
    return {run.seed: float(np.mean(list(run.points[-1].losses.values()))) for run in runs if run.points}


def mean_mixture(runs: Sequence[RunResult], stage: str, domains: Sequence[str]) -> dict[str, float]:
    """The mixture that a stage was trained on: weights over its tokens, mean of the runs; empty if there was none."""
    mixtures = []
    for run in runs:
        points = [point for point in run.points if point.stage == stage]
        if len(points) < 2:
            continue
        spans = np.diff([point.tokens for point in points])
        weights = np.array([[point.weights.get(domain, 0.0) for domain in domains] for point in points[:-1]])
        mixtures.append(spans @ weights / spans.sum())
    return dict(zip(domains, np.mean(mixtures, axis=0).tolist(), strict=True)) if mixtures else {}
