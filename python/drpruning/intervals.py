"""Standard errors and 95% intervals: of a mean, of a ratio over documents, of a difference between models or methods.

Two sources of chance enter a comparison of methods: the seeds (base, order of the data, gates) and the choice of the
held-out documents.

- *Seeds.* Runs of two methods with the same seed are a pair. The variance of the pairs' differences has (pairs - 1)
  degrees of freedom.
- *Documents.* All runs are measured on the same documents, so the choice of documents does not show between seeds. The
  documents of each domain are resampled with replacement, the same resample for all runs (a bootstrap with one document
  less than there are, which leaves the variance unbiased: Rao and Wu 1988). The second variance is that of the mean
  difference over the resamples; its degrees of freedom are those of the domain with the fewest documents.

The interval is ``difference +- t sqrt(seeds + documents)``, Student's t with Satterthwaite's degrees of freedom. A
bootstrap over seeds would not help: with three seeds its nominal 95% interval covers at most 75%, because no resample
leaves the range of the three. With one seed only the documents count; the note of the table states it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95
NORMAL_95 = 1.96
"""Standard errors on either side of the mean that cover 95% of a normal distribution."""


@dataclass(frozen=True)
class Difference:
    """A value minus another one, with its 95% interval. Losses are in nats per token: below zero the first is better.

    Attributes:
        value: The difference; of several pairs their mean.
        standard_error: NaN if it is unknown.
        quantile: Half the width of the interval in standard errors.
        pairs: Number of pairs (seeds).
    """

    value: float
    standard_error: float
    quantile: float = NORMAL_95
    pairs: int = 1

    @property
    def half_width(self) -> float:
        """Half the width of the interval; NaN if the standard error is unknown."""
        return self.quantile * self.standard_error

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


def student_quantile(degrees: float, level: float = LEVEL) -> float:
    """Return the ``(1 + level) / 2`` quantile of Student's t with ``degrees`` of freedom, which may be infinite.

    >>> round(student_quantile(2), 4), round(student_quantile(math.inf), 4)
    (4.3027, 1.96)
    """
    from scipy.special import stdtrit  # noqa: PLC0415 - a run without intervals need not load scipy

    return float(stdtrit(degrees, (1 + level) / 2))


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


def ratio_standard_error(values: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    """Return the standard error of ``sum(values) / sum(weights)`` over independent documents; NaN for fewer than two.

    Linearised: the residuals ``values - ratio * weights`` have mean zero, and their spread is the ratio's (Cochran
    1977, 6.4).

    >>> import numpy as np
    >>> round(ratio_standard_error(np.array([1.0, 3.0]), np.array([1, 1])), 6)
    1.0
    """
    count = len(values)
    if count < 2:
        return math.nan
    residuals = values - values.sum() / weights.sum() * weights
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / weights.sum())


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """Return the mean of independent differences, each counted alike: the variances add."""
    count = len(differences)
    return Difference(
        sum(item.value for item in differences) / count,
        math.sqrt(sum(item.standard_error**2 for item in differences)) / count,
    )


def paired_difference(
    differences: NDArray[np.float64],
    resampled: NDArray[np.float64],
    documents: float = math.inf,
    level: float = LEVEL,
) -> Difference:
    """Return the mean of paired differences with its interval over seeds and documents.

    Args:
        differences: float64 ``[S]``, one for each pair.
        resampled: float64 ``[B, S]``, the same on each resample of the documents.
        documents: Number of documents of the domain with the fewest.
        level: Of the interval.

    Example:
        >>> import numpy as np
        >>> found = paired_difference(np.array([-0.3, -0.2, -0.25]), np.zeros((10, 3)))
        >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
        (-0.25, -0.374, -0.126)
    """
    pairs = differences.size
    of_documents = float(resampled.mean(axis=1).var(ddof=1)) if len(resampled) > 1 else 0.0
    of_seeds = float(differences.var(ddof=1)) / pairs if pairs > 1 else 0.0
    variance = of_seeds + of_documents
    spent = of_documents**2 / max(documents - 1, 1) + (of_seeds**2 / (pairs - 1) if pairs > 1 else 0.0)
    degrees = variance**2 / spent if spent > 0 else math.inf
    return Difference(float(differences.mean()), math.sqrt(variance), student_quantile(degrees, level), pairs)
