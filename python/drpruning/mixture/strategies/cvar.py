"""Conditional value at risk over domains: the mixture of the worst fraction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning.errors import WeightError
from drpruning.mixture.bounds import UNBOUNDED, Bounds
from drpruning.mixture.observation import UpdateStatus
from drpruning.mixture.settings import FRACTION, documented, setting
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy

Vector = NDArray[np.float64]


@documented
@dataclass(frozen=True, kw_only=True)
class CVaR(RuleStrategy):
    """Topic CVaR (Oren et al. 2019): the worst of all mixtures ``w`` with ``alpha w_d <= p_d`` in each domain ``d``.

    ``w = argmax sum_d w_d loss_d`` over ``floor p_d <= w_d <= p_d / alpha``, ``sum w = 1``, with ``p`` the reference
    ratio: the worst domains get ``1 / alpha`` times their ratio until the mass is used up (:func:`worst_fraction`).

    Given reference losses, ``loss - reference_loss`` takes the place of ``loss``: the paper's baselined losses, there
    from a bigram model of each topic. A domain that was given none where others were is measured against its first
    finite loss; without any the losses themselves are compared, and the domain with the highest entropy wins.

    The paper smooths the losses of batches over time; held-out losses need no smoothing. With ``floor=0``, the paper's
    set, domains that are not among the worst are not trained on at all until the next evaluation.

    A domain whose loss is missing, NaN or infinite keeps its weight, the others share the rest.
    """

    name: ClassVar[str] = "cvar"
    alpha: float = setting(
        0.2,
        "Mass of the reference ratio that the worst domains make up. With 1 the mixture is the reference ratio.",
        gt=0.0,
        le=1.0,
    )
    floor: float = setting(0.1, "Smallest weight of a domain, as a multiple of its reference ratio.", **FRACTION)
    bounds: Bounds = UNBOUNDED

    def rule(self, evaluation: Evaluation) -> Decision:
        """Return the mixture of the worst fraction of the domains with a loss."""
        compared, reference = evaluation.baselined_losses()
        known = evaluation.known
        if not known.any():
            return Decision(UpdateStatus.UNCHANGED, reference)
        ratio = evaluation.ratio[known]
        shares = worst_fraction(compared[known], ratio / ratio.sum(), self.alpha, self.floor)
        return evaluation.divide(shares, UpdateStatus.WORST_FRACTION, reference)


def worst_fraction(excess_loss: ArrayLike, reference_ratio: ArrayLike, alpha: float, floor: float = 0.0) -> Vector:
    """Return ``argmax <q, excess_loss>`` over ``floor p <= q <= p / alpha``, ``sum q = 1``, ``p`` the reference ratio.

    The solution has a closed form. Every domain starts at its floor; the worst domains are then raised to
    ``p / alpha``, one after the other, until no mass is left. Equal losses share in proportion to ``p``, so the
    solution is unique and independent of the order of the domains.

    Args:
        excess_loss: Finite, ``[n]``, in any unit.
        reference_ratio: The reference ratio ``p``, ``[n]``: positive, sum one.
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
    CVaR(alpha=alpha, floor=floor)  # refuses values out of range
    loss, ratio = np.asarray(excess_loss, dtype=np.float64), np.asarray(reference_ratio, dtype=np.float64)
    if loss.ndim != 1 or loss.shape != ratio.shape or not np.isfinite(loss).all():
        raise WeightError(
            f"excess_loss {loss.tolist()} and reference_ratio {ratio.tolist()}: expected a finite loss for each share"
        )
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
