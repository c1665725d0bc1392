"""What the runs of a comparison reached: losses under resampled documents, tokens to reach a loss, mean mixtures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from drpruning.comparison.results import Results, RunResult
from drpruning.errors import StateError
from drpruning.intervals import RESAMPLES, Array, Difference, DomainResamples, ResampledRatios, paired_difference

WORST, MEAN, WEIGHTED = "worst excess", "plain mean", "ratio-weighted mean"


class RunMetrics:
    """Losses of all runs, as measured and under resampled groups of documents.

    Args:
        results: The results of the comparison.
        resamples: Number of resamples of the groups.
        seed: Seed of the resamples.

    Raises:
        StateError: Two runs were measured on different documents.
    """

    def __init__(self, results: Results, resamples: int = RESAMPLES, seed: int = 0) -> None:
        _check_documents(results)
        self.results = results
        self.domains = results.domains
        self.ratio = np.array([results.reference_ratio[domain] for domain in self.domains])
        generator = np.random.default_rng(seed)
        self._resamples = {
            domain: DomainResamples(
                np.array(sums.tokens), None if sums.groups is None else np.array(sums.groups), generator, resamples
            )
            for domain, sums in ((domain, results.runs[0].documents[domain]) for domain in self.domains)
        }
        self._runs = {(run.method, run.seed): run for run in results.runs}
        self._differences: dict[tuple[str, str, str], Difference | None] = {}

    def seeds(self, *methods: str) -> list[int]:
        """Return the seeds for which each of these methods has a run and the base is measured."""
        return [
            seed
            for seed in self.results.seeds
            if seed in self.results.base_documents and all((method, seed) in self._runs for method in methods)
        ]

    def metric(self, name: str, method: str, seed: int) -> float:
        """Return one metric of a run.

        Args:
            name: :data:`WORST`, :data:`MEAN`, :data:`WEIGHTED`, or a domain, whose excess over the base is returned.
            method: Name of the method.
            seed: Seed of the run.
        """
        recovered, base = self._runs[method, seed].recovered, self.results.base[seed]
        losses = np.array([recovered[domain] for domain in self.domains])
        excess = losses - np.array([base[domain] for domain in self.domains])
        if name in (MEAN, WEIGHTED):
            return float(losses @ self._weights(name))
        return float(excess.max() if name == WORST else excess[self.domains.index(name)])

    def difference(self, name: str, method: str, other: str, seeds: Sequence[int] | None = None) -> Difference | None:
        """Return ``method`` minus ``other``; None if they have no seed in common.

        Args:
            name: See :meth:`metric`.
            method: Name of the method.
            other: Name of the other method.
            seeds: Seeds to use; None: all in common.
        """
        if seeds is not None:
            return self._difference(name, method, other, seeds)
        key = (name, method, other)
        if key not in self._differences:
            self._differences[key] = self._difference(*key, self.seeds(method, other))
        return self._differences[key]

    def _difference(self, name: str, method: str, other: str, seeds: Sequence[int]) -> Difference | None:
        if not seeds or method == other:
            return None
        measured = [self.metric(name, method, seed) - self.metric(name, other, seed) for seed in seeds]
        found = self._worst(method, other, seeds) if name == WORST else self._linear(name, method, other, seeds)
        return paired_difference(np.array(measured), found)

    def average(self, name: str, method: str, other: str | None = None) -> float:
        """Return the mean of a metric over the seeds of a method; NaN without a seed.

        With ``other``, a method of other seeds is placed by the paired difference, see :func:`paired_mean`.
        """
        values, reference = (
            {seed: self.metric(name, each, seed) for seed in self.seeds(each)} for each in (method, other or method)
        )
        return paired_mean(values, reference)

    def _linear(self, name: str, method: str, other: str, seeds: Sequence[int]) -> ResampledRatios:
        """Resample a mean over domains, or one domain: the documents' differences are averaged over the seeds."""
        domains, places = [], []
        for at, (domain, weight) in enumerate(zip(self.domains, self._weights(name), strict=True)):
            if weight:
                places.append(at)
                gains = [self._nats(method, seed, domain) - self._nats(other, seed, domain) for seed in seeds]
                domains.append((self._resamples[domain], np.mean(gains, axis=0)[None], np.array([weight])))
        found = ResampledRatios.of(domains)
        return replace(found, support=replace(found.support, domain=places[found.support.domain]))

    def _worst(self, method: str, other: str, seeds: Sequence[int]) -> ResampledRatios:
        """Resample the difference of the worst excesses: in each resample each run has its own worst domain."""
        values = [
            np.array(
                [
                    self._nats(name, seed, domain) - np.array(self.results.base_documents[seed][domain].nats)
                    for name in (method, other)
                    for seed in seeds
                ]
            )
            for domain in self.domains
        ]
        excess = np.stack(
            [self._resamples[domain].ratios(each) for domain, each in zip(self.domains, values, strict=True)]
        )  # [domains, 1 + B, runs]
        signs = np.repeat([1.0, -1.0], len(seeds)) / len(seeds)
        worst = excess.argmax(axis=0)
        return ResampledRatios.of(
            [
                (self._resamples[domain], each, (worst == at) * signs)
                for at, (domain, each) in enumerate(zip(self.domains, values, strict=True))
            ]
        )

    def _weights(self, name: str) -> Array:
        """Return the weight of each domain in a mean, or one for a single domain."""
        if name == MEAN:
            return np.full(len(self.domains), 1 / len(self.domains))
        if name == WEIGHTED:
            return self.ratio
        return np.array([float(domain == name) for domain in self.domains])

    def _nats(self, method: str, seed: int, domain: str) -> Array:
        return np.array(self._runs[method, seed].documents[domain].nats)


def paired_mean(values: Mapping[int, float], reference: Mapping[int, float]) -> float:
    """Return a mean over seeds that compares with the mean of ``reference``, whatever seeds either has.

    Seeds differ by more than methods do: the mean of a method without the seed of the highest losses would look better
    than it is.

    Args:
        values: A number of a method by seed.
        reference: The same number of the method that it is compared with.

    Returns:
        The mean of the values. If the seeds differ, the mean of ``reference`` plus the mean difference over the seeds
        in common. NaN without a value.
    """
    common = [seed for seed in values if seed in reference]
    if values.keys() == reference.keys() or not common:
        return float(np.mean(list(values.values()))) if values else math.nan
    difference = np.mean([values[seed] - reference[seed] for seed in common])
    return float(np.mean(list(reference.values())) + difference)


def seeds_note(results: Results, other: str) -> str:
    """Return a sentence about the methods that have other seeds than ``other``; empty without one."""
    expected = {run.seed for run in results.of(other)}
    found = {name: {run.seed for run in results.of(name)} for name in results.methods}
    names = [name for name, seeds in found.items() if seeds & expected and seeds != expected]
    if not names:
        return ""
    return f"Other seeds than {other}: {', '.join(names)}; their means are {other}'s plus the paired difference."


def _check_documents(results: Results) -> None:
    """Check that all models were measured on equally many documents of each domain."""
    first = results.runs[0]
    measured = {f"the run {run.method}, seed {run.seed}": run.documents for run in results.runs}
    measured |= {f"the base of seed {seed}": documents for seed, documents in results.base_documents.items()}
    for label, documents in measured.items():
        for domain in results.domains:
            got, expected = (len(each[domain].nats) for each in (documents, first.documents))
            if got != expected:
                raise StateError(
                    f"{label} was measured on {got} documents of the domain {domain!r}, the run {first.method}, seed "
                    f"{first.seed} on {expected}: their losses do not compare",
                    "Remove the run folders, or the files of bases/ and models/, that were measured on other text, "
                    "then rerun the command.",
                )


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
