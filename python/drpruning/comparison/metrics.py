"""What the runs of a comparison reached: losses under resampled documents, tokens to reach a loss, mean mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from drpruning.comparison.results import DocumentSums, Results, RunResult
from drpruning.intervals import Difference, paired_difference

Array = NDArray[np.float64]
RESAMPLES = 2000

WORST, MEAN, WEIGHTED = "worst excess", "plain mean", "ratio-weighted mean"


class RunMetrics:
    """Losses of all runs, as measured and under resampled documents.

    Args:
        results: The results of the comparison.
        resamples: Number of resamples of the documents.
        seed: Seed of the resamples.
    """

    def __init__(self, results: Results, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.results = results
        self.domains = results.domains
        self.ratio = np.array([results.reference_ratio[domain] for domain in self.domains])
        generator = np.random.default_rng(seed)
        some = results.runs[0].documents
        sizes = {domain: len(some[domain].tokens) for domain in self.domains}
        self.documents = min(sizes.values())
        self.counts = {
            domain: generator.multinomial(max(size - 1, 1), np.full(size, 1 / size), size=resamples).astype(np.float64)
            for domain, size in sizes.items()
        }
        self._base = {
            each: self._losses(results.base[each], documents) for each, documents in results.base_documents.items()
        }
        self._runs = {(run.method, run.seed): self._losses(run.recovered, run.documents) for run in results.runs}

    def seeds(self, *methods: str) -> list[int]:
        """Return the seeds for which each of these methods has a run and the base is measured."""
        return [
            seed
            for seed in self.results.seeds
            if seed in self._base and all((method, seed) in self._runs for method in methods)
        ]

    def metric(self, name: str, method: str, seed: int) -> tuple[float, Array]:
        """Return one metric of a run, as measured and float64 ``[B]`` for the resamples.

        Args:
            name: :data:`WORST`, :data:`MEAN`, :data:`WEIGHTED`, or a domain, whose excess over the base is returned.
            method: Name of the method.
            seed: Seed of the run.
        """
        losses = self._runs[method, seed]
        values = self._metric(name)(losses, self._base[seed])
        return float(values[0]), values[1:]

    def difference(self, name: str, method: str, other: str) -> Difference | None:
        """Return ``method`` minus ``other``; None if they have no seed in common."""
        seeds = self.seeds(method, other)
        if not seeds or method == other:
            return None
        pairs = [(self.metric(name, method, seed), self.metric(name, other, seed)) for seed in seeds]
        measured = np.array([first[0] - second[0] for first, second in pairs])
        resampled = np.stack([first[1] - second[1] for first, second in pairs], axis=1)
        return paired_difference(measured, resampled, self.documents)

    def average(self, name: str, method: str) -> float:
        """Return the mean of a metric over the seeds of a method; NaN without a seed."""
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

    def _losses(self, measured: Mapping[str, float], documents: Mapping[str, DocumentSums]) -> Array:
        """Return float64 ``[1 + B, domains]``: losses as measured, then for each resample."""
        columns = []
        for domain in self.domains:
            counts = self.counts[domain]
            nats, tokens = np.array(documents[domain].nats), np.array(documents[domain].tokens)
            columns.append(np.concatenate([[measured[domain]], (counts @ nats) / (counts @ tokens)]))
        return np.stack(columns, axis=1)


def tokens_to_reach(runs: Sequence[RunResult], target: Mapping[int, float]) -> tuple[float, int]:
    """Return the fraction of the continued pretraining after which the plain mean loss reaches a target.

    Args:
        runs: Runs of one method.
        target: By seed, the plain mean to reach, on the text of the evaluations in training.

    Returns:
        The mean fraction over the runs that reach the target, interpolated linearly between evaluations; and the number
        of these runs.
    """
    found = []
    for run in runs:
        points = [point for point in run.points if point.stage == "continue"]
        if not points:
            continue  # a baseline model
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
    """Return, by seed, the plain mean loss at the last evaluation."""
    return {run.seed: float(np.mean(list(run.points[-1].losses.values()))) for run in runs if run.points}


def mean_mixture(runs: Sequence[RunResult], stage: str, domains: Sequence[str]) -> dict[str, float]:
    """Return the mixture that a stage was trained on, mean over its tokens and the runs; empty without the stage."""
    mixtures = []
    for run in runs:
        points = [point for point in run.points if point.stage == stage]
        if len(points) < 2:
            continue
        spans = np.diff([point.tokens for point in points])
        weights = np.array([[point.weights.get(domain, 0.0) for domain in domains] for point in points[:-1]])
        mixtures.append(spans @ weights / spans.sum())
    return dict(zip(domains, np.mean(mixtures, axis=0).tolist(), strict=True)) if mixtures else {}
