"""Standard errors and 95% intervals: of a mean, of a ratio over documents, of a difference between models or methods.

Two sources of chance enter a comparison of methods: the seeds (base, order of the data, gates) and the choice of the
held-out documents.

- *Seeds.* Runs of two methods with the same seed are a pair. The variance of the pairs' differences has (pairs - 1)
  degrees of freedom.
- *Documents.* All runs are measured on the same documents, so the choice of documents does not show between seeds.
  Documents of one source file resemble each other: the unit is the group of documents. The groups of each domain are
  resampled with replacement, the same resample for all runs, and each resample gives the difference divided by the
  standard error in the resample: a symmetric bootstrap-t (Hall 1988), which widens with the skewness of the documents.
  The documents' degrees of freedom are those of the Student's t with the same quantile, and at most those of the number
  of groups.

The interval is ``difference +- sqrt(t1^2 seeds + t2^2 documents)``: each variance has a separate quantile, t1 of
Student's t with (pairs - 1) degrees of freedom, t2 of the bootstrap-t (Zou and Donner 2008). One quantile with
Satterthwaite's degrees of freedom would cover as little as 87% where two seeds have most of the variance. A bootstrap
over seeds would not help: with three seeds its nominal 95% interval covers at most 75%, because no resample leaves the
range of the three. With one seed only the documents count; the note of the table states it.
docs/benchmarks/coverage.md has the coverage in simulated studies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
NORMAL_95 = 1.96
"""Standard errors on either side of the mean that cover 95% of a normal distribution."""
RESAMPLES = 2000
FEWEST_DEGREES = 2.0
"""Least degrees of freedom of a bootstrap-t. A group far from the others gives quantiles without bound, although the
interval is too narrow only where such a group is missing: the limit does not lower the coverage with 10 groups."""
MOST_GROUPS = 1000
"""Groups of a domain that are resampled; at this number the resamples of a domain take 16 MB."""

FEW_GROUPS, FEW_GROUPS_OF_MEANS = 50, 10
"""Groups in a domain below which simulated intervals hold the truth in fewer than 92%: of one domain or the worst, and
of a mean over domains (docs/benchmarks/coverage.md)."""
TOO_NARROW = (
    "Warning: these intervals may be too narrow: {}. In simulated studies of this size as few as 88% of the nominal "
    "95% intervals hold the truth. More held-out documents help, more seeds do not."
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GroupSupport:
    """The groups of documents on which a difference rests.

    Attributes:
        domain: Index of the domain with the largest variance.
        groups: Number of its groups.
        largest: Share of the largest group in the variance over documents, 0 to 1.
    """

    domain: int
    groups: int
    largest: float


@dataclass(frozen=True)
class Difference:
    """A value minus another one, with its 95% interval. Losses are in nats per token: below zero the first is better.

    Attributes:
        value: The difference; of several pairs their mean.
        standard_error: NaN if it is unknown.
        degrees: Degrees of freedom of the Student's t whose 95% interval this is; infinite for a normal distribution.
        pairs: Number of pairs (seeds).
        support: The groups of documents that carry the variance; None if they are unknown.
        selected_from: Number of differences of which this is the largest: its interval then covers all of them together
            (Bonferroni).
    """

    value: float
    standard_error: float
    degrees: float = math.inf
    pairs: int = 1
    support: GroupSupport | None = None
    selected_from: int = 1

    @property
    def half_width(self) -> float:
        """Half the width of the interval; NaN if the standard error is unknown."""
        return student_quantile(self.degrees, 1 - (1 - LEVEL) / self.selected_from) * self.standard_error

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def p_value(self) -> float:
        """Two-sided p-value of no difference, below 0.05 if the interval excludes zero; NaN if unknown."""
        from scipy.special import stdtr  # noqa: PLC0415 - a run without intervals need not load scipy

        if self.standard_error == 0:
            return 1.0 if self.value == 0 else 0.0
        return 2 * float(stdtr(self.degrees, -abs(self.value) / self.standard_error))


def few_groups(differences: Sequence[Difference], domains: Sequence[str], *, mean: bool) -> str:
    """Return why intervals may be too narrow: few groups of documents in a domain; empty if they are enough.

    A group with a large share of the variance is named. Its share does not predict the coverage: the interval is too
    narrow where such a group exists and is not among the held-out documents.

    Args:
        differences: Differences of one metric, of several methods.
        domains: Names of the domains.
        mean: Whether the metric is a mean over domains.
    """
    supports = [found.support for found in differences if found.support is not None]
    few = [found for found in supports if found.groups < (FEW_GROUPS_OF_MEANS if mean else FEW_GROUPS)]
    if not few:
        return ""
    fewest = min(few, key=lambda found: (found.groups, -found.largest))
    text = f"{fewest.groups} groups of documents in {domains[fewest.domain]}"
    return text + (f", one with {100 * fewest.largest:.0f}% of the variance" if fewest.largest > 0.5 else "")


def student_quantile(degrees: float, level: float = LEVEL) -> float:
    """Return the ``(1 + level) / 2`` quantile of Student's t with ``degrees`` of freedom, which may be infinite.

    >>> round(student_quantile(2), 4), round(student_quantile(math.inf), 4)
    (4.3027, 1.96)
    """
    from scipy.special import stdtrit  # noqa: PLC0415 - a run without intervals need not load scipy

    return float(stdtrit(degrees, (1 + level) / 2))


def degrees_of_quantile(quantile: float, fewest: float = FEWEST_DEGREES) -> float:
    """Return the degrees of freedom of the Student's t with this 97.5% quantile, at least ``fewest``.

    >>> round(degrees_of_quantile(student_quantile(7)), 6), degrees_of_quantile(1.9), degrees_of_quantile(math.inf)
    (7.0, inf, 2.0)
    """
    from scipy.special import stdtridf  # noqa: PLC0415 - a run without intervals need not load scipy

    if quantile <= NORMAL_95 + 1e-4:
        return math.inf
    if quantile >= student_quantile(fewest):
        return fewest
    return float(stdtridf((1 + LEVEL) / 2, quantile))


def benjamini_hochberg(p_values: Sequence[float], rate: float = 1 - LEVEL) -> list[bool]:
    """Return which differences are discoveries at a false discovery rate (Benjamini and Hochberg 1995).

    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.9])
    [True, False, False, False]
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    passed = [rank for rank, at in enumerate(order, 1) if p_values[at] <= rate * rank / len(p_values)]
    return [rank < max(passed, default=0) for rank in np.argsort(order).tolist()]


def student_half_width(values: Sequence[float], level: float = LEVEL) -> float:
    """Return half the width of Student's interval for the mean of ``values``; NaN for fewer than two.

    >>> round(student_half_width([1.0, 2.0, 3.0]), 4)
    2.4841
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return student_quantile(len(values) - 1, level) * math.sqrt(variance / len(values))


def difference_of_parts(value: float, parts: Sequence[NDArray[np.float64]]) -> Difference:
    """Return a sum of means with its interval over parts of equal size (batch means); NaN for fewer than two parts.

    Args:
        value: The sum, nats per token.
        parts: float64 ``[parts]`` for each term; terms are independent. Their degrees of freedom are Satterthwaite's.

    >>> found = difference_of_parts(2.0, [np.array([1.0, 2.0, 3.0])])
    >>> round(found.half_width, 4), found.excludes_zero
    (2.4841, False)
    """
    if not parts or any(each.size < 2 for each in parts):
        return Difference(value, math.nan)
    variances = [float(each.var(ddof=1)) / each.size for each in parts]
    total = sum(variances)
    spent = sum(variance**2 / (each.size - 1) for variance, each in zip(variances, parts, strict=True))
    return Difference(value, math.sqrt(total), total**2 / spent if spent > 0 else math.inf)


def sum_by_group(values: NDArray[Any], groups: NDArray[np.int64] | None) -> Array:
    """Return the sums over the documents of each group, float64 ``[..., groups]``.

    More than :data:`MOST_GROUPS` groups are pooled into that many, which leaves standard errors unbiased.

    Args:
        values: ``[..., documents]``.
        groups: int64 ``[documents]``, equal numbers for documents of one group; None: each document is a group.

    >>> sum_by_group(np.array([1.0, 2.0, 4.0]), np.array([7, 3, 7]))
    array([2., 5.])
    """
    documents = values.shape[-1]
    if groups is None and documents <= MOST_GROUPS:
        return np.asarray(values, dtype=np.float64)
    owners = np.arange(documents) if groups is None else np.unique(groups, return_inverse=True)[1]
    owners = owners % MOST_GROUPS
    sums = np.zeros((int(owners.max()) + 1, *values.shape[:-1]))
    np.add.at(sums, owners, np.moveaxis(values, -1, 0))
    return np.moveaxis(sums, 0, -1)


def ratio_standard_error(
    values: NDArray[np.float64], weights: NDArray[np.int64], groups: NDArray[np.int64] | None = None
) -> float:
    """Return the standard error of ``sum(values) / sum(weights)`` over independent groups; NaN for fewer than two.

    Linearised: the residuals ``values - ratio * weights`` have mean zero, and their spread is the ratio's (Cochran
    1977, 6.4).

    Args:
        values: float64 ``[documents]``.
        weights: int64 ``[documents]``.
        groups: int64 ``[documents]``, see :func:`sum_by_group`.

    >>> round(ratio_standard_error(np.array([1.0, 3.0]), np.array([1, 1])), 6)
    1.0
    """
    values, sizes = sum_by_group(values, groups), sum_by_group(weights, groups)
    count = len(values)
    if count < 2:
        return math.nan
    residuals = values - values.sum() / sizes.sum() * sizes
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / sizes.sum())


class DomainResamples:
    """Resamples of the groups of one domain, with replacement; the first row has each group once, as measured.

    Args:
        weights: ``[documents]``, such as tokens.
        groups: int64 ``[documents]``, see :func:`sum_by_group`.
        generator: Draws the resamples.
        resamples: Number of resamples ``B``.
    """

    def __init__(
        self,
        weights: NDArray[Any],
        groups: NDArray[np.int64] | None,
        generator: np.random.Generator,
        resamples: int = RESAMPLES,
    ) -> None:
        self.groups = groups
        self.weights = sum_by_group(weights, groups)
        count = self.weights.size
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
        self.counts: Array = np.concatenate([np.ones((1, count)), drawn])
        self.totals: Array = self.counts @ self.weights

    def ratios(self, values: NDArray[Any]) -> Array:
        """Return ``sum(values) / sum(weights)``, float64 ``[1 + B, K]``, of values ``[K, documents]``."""
        return np.asarray(self.counts @ sum_by_group(values, self.groups).T / self.totals[:, None])

    def variances(self, values: NDArray[Any], coefficients: Array) -> tuple[Array, Array]:
        """Return the linearised variances of a sum of ratios, and what each group adds to the first.

        Args:
            values: ``[K, documents]``.
            coefficients: float64 ``[1 + B, K]``, factors of the ratios; or ``[K]`` if all resamples have the same.

        Returns:
            float64 ``[1 + B]`` and float64 ``[groups]``; NaN for fewer than two groups.
        """
        count = self.weights.size
        sums = sum_by_group(values, self.groups)
        if coefficients.ndim == 1:
            sums, coefficients = coefficients[None] @ sums, np.ones((len(self.counts), 1))
        ratios = ((self.counts @ sums.T) * coefficients).sum(axis=1) / self.totals
        columns = np.concatenate([sums, self.weights[None]]).T
        factors = np.concatenate([coefficients, -ratios[:, None]], axis=1)  # residual of a group: columns @ factors
        products = (columns[:, :, None] * columns[:, None, :]).reshape(count, -1)
        squares = (self.counts @ products).reshape(-1, factors.shape[1], factors.shape[1])
        sums_of_squares = np.einsum("bk,bkl,bl->b", factors, squares, factors)
        scale = (count / (count - 1) if count > 1 else math.nan) / self.totals**2
        return scale * np.maximum(sums_of_squares, 0.0), scale[0] * (columns @ factors[0]) ** 2


@dataclass(frozen=True)
class ResampledRatios:
    """A sum of ratios over the documents of several domains, as measured and on each resample.

    Attributes:
        values: float64 ``[1 + B]``; the first is as measured.
        variances: float64 ``[1 + B]``, their linearised variances.
        degrees: Degrees of freedom of the first variance by the numbers of groups (Satterthwaite over domains).
        support: The groups that carry it.
    """

    values: Array
    variances: Array
    degrees: float
    support: GroupSupport

    @classmethod
    def of(cls, domains: Sequence[tuple[DomainResamples, NDArray[Any], Array]]) -> ResampledRatios:
        """Add up domains: for each its resamples, the values ``[K, documents]``, and the factors of their ratios.

        The factors are those of :meth:`DomainResamples.variances`.
        """
        values = sum((each.ratios(sums) * factors).sum(axis=1) for each, sums, factors in domains)
        parts = [each.variances(sums, factors) for each, sums, factors in domains]
        measured = np.array([variances[0] for variances, _ in parts])
        groups = np.array([each.weights.size for each, _, _ in domains])
        total = float(measured.sum())
        spent = float((measured**2 / np.maximum(groups - 1, 1)).sum())
        largest = max(float(of_groups.max()) for _, of_groups in parts)
        domain = int(measured.argmax())
        return cls(
            values=np.asarray(values),
            variances=np.asarray(sum(variances for variances, _ in parts)),
            degrees=total**2 / spent if spent > 0 else math.inf,
            support=GroupSupport(domain, int(groups[domain]), largest / total if total > 0 else 0.0),
        )

    @property
    def bootstrap_degrees(self) -> float:
        """Degrees of freedom of the Student's t whose 95% interval is the symmetric bootstrap-t interval."""
        moved = np.abs(self.values[1:] - self.values[0])
        if not moved.size or not self.variances[0] > 0:
            return math.inf
        errors = np.sqrt(self.variances[1:])
        steps = np.where(moved <= 1e-12, 0.0, moved / np.maximum(errors, 1e-300))
        return degrees_of_quantile(float(np.quantile(steps, LEVEL)))

    def difference(self) -> Difference:
        """Return the value with its interval over documents."""
        degrees = min(self.degrees, self.bootstrap_degrees)
        return Difference(float(self.values[0]), math.sqrt(self.variances[0]), degrees, support=self.support)


def paired_difference(differences: Array, documents: ResampledRatios) -> Difference:
    """Return the mean of paired differences with its interval over seeds and documents.

    Args:
        differences: float64 ``[S]``, one for each pair.
        documents: Their mean over the pairs under resampled documents.
    """
    pairs = differences.size
    over_documents = replace(documents.difference(), value=float(differences.mean()), pairs=pairs)
    if pairs == 1:
        return over_documents
    of_seeds = math.sqrt(float(differences.var(ddof=1)) / pairs)
    error = math.hypot(of_seeds, over_documents.standard_error)
    half_width = math.hypot(student_quantile(pairs - 1) * of_seeds, over_documents.half_width)
    degrees = degrees_of_quantile(half_width / error, fewest=1.0) if error > 0 else math.inf
    return replace(over_documents, standard_error=error, degrees=degrees)
