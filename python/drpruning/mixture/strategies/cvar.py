"""Conditional value at risk over domains: the mixture of the worst fraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning.errors import ConfigError, WeightError
from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CVaR(RuleStrategy):
    """Topic CVaR (Oren et al. 2019): every mixture that the training mixture contains to the fraction ``alpha``.

    ``w = argmax sum_d w_d loss_d`` over ``floor p_d <= w_d <= p_d / alpha``, ``sum w = 1``, with ``p`` the reference
    ratio: the worst domains get ``1 / alpha`` times their ratio until the mass is used up (:func:`worst_fraction`).

    Given reference losses, ``loss - reference_loss`` takes the place of ``loss``: the paper's baselined losses, there
    from a bigram model of each topic. A domain that was given none where others were is measured against its first
    finite loss; without any the losses themselves are compared, and the domain with the highest entropy wins.

    The paper smooths the losses of batches over time; held-out losses need no smoothing. With ``floor=0``, the paper's
    set, domains that are not among the worst are not trained on at all until the next evaluation.

    A domain whose loss is missing, NaN or infinite keeps its weight, the others share the rest (``"incomplete"``).

    Attributes:
        alpha: The fraction, above 0 and at most 1; 1 is the reference ratio.
        floor: Least ratio of a domain's weight to its reference ratio, 0 to 1.
        bounds: Limits on the mixture.
    """

    name: ClassVar[str] = "cvar"
    alpha: float = 0.2
    floor: float = 0.1
    bounds: Bounds = UNBOUNDED

    def __post_init__(self) -> None:
        _check(self.alpha, self.floor)

    def rule(self, evaluation: Evaluation) -> Decision:
        """Return the mixture of the worst fraction of the domains with a loss."""
        compared, reference = evaluation.baselined_losses()
        known = evaluation.known
        if not known.any():
            return Decision("held", reference)
        ratio = evaluation.ratio[known]
        shares = worst_fraction(compared[known], ratio / ratio.sum(), self.alpha, self.floor)
        return evaluation.divide(shares, "fraction", reference)


def worst_fraction(excess_loss: ArrayLike, p: ArrayLike, alpha: float, floor: float = 0.0) -> Vector:
    """``argmax <q, excess_loss>`` over ``floor p <= q <= p / alpha``, ``sum q = 1``; in closed form.

    Every domain starts at its floor; then the worst are filled up to ``p / alpha``, one after the other, while there is
    mass. Equal losses share in proportion to ``p``, which makes the answer unique and blind to the domains' order.

    Args:
        excess_loss: Finite, ``[n]``, in any unit.
        p: The reference mixture, ``[n]``: positive, sum one.
        alpha: The fraction, in ``(0, 1]``.
        floor: Smallest ratio ``q_i / p_i``, in ``[0, 1]``.

    Raises:
        WeightError: A loss is not finite, or the shapes differ.
        ConfigError: ``alpha`` or ``floor`` is out of range.

    Example:
        The worst half of four equal domains:

        >>> worst_fraction([0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], alpha=0.5).tolist()
        [0.0, 0.5, 0.0, 0.5]
    """
    _check(alpha, floor)
    loss, ratio = np.asarray(excess_loss, dtype=np.float64), np.asarray(p, dtype=np.float64)
    if loss.ndim != 1 or loss.shape != ratio.shape or not np.isfinite(loss).all():
        raise WeightError(f"losses {loss.tolist()} and ratio {ratio.tolist()}: wanted a finite loss for each share")
    weights, left = floor * ratio, 1 - floor
    for level in np.unique(loss)[::-1]:
        tied = loss == level
        mass = ratio[tied].sum()
        given = min(left, (1 / alpha - floor) * mass)
        weights[tied] += given * ratio[tied] / mass
        left -= given
        if left <= 0:
            break
    return np.asarray(weights / weights.sum())


def _check(alpha: float, floor: float) -> None:
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha is {alpha}; it must be above 0 and at most 1")
    if not 0 <= floor <= 1:
        raise ConfigError(f"floor is {floor}; it must be between 0 and 1")
