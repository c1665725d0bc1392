"""The best mixture under a law of mixtures: of the mean loss, of the worst case, or of anything between.

With target weights ``w``, reference losses ``l_ref`` and the chi-square ball ``Q`` of radius ``rho`` around ``w``
(:mod:`drpruning.chi2`), the objective of a mixture ``r`` is ::

    F(r) = mean over laws b of  max_{q in Q} sum_j q_j (L_bj(r) - l_ref_j)  +  kappa KL(r, prior)

``rho = 0`` is the weighted mean and ``rho = inf`` the worst target. The laws ``b`` are those fitted to randomly
weighted runs, so that a mixture which only one of them likes is not chosen. The losses are convex in ``r``, and so is
``F``: the search finds the global optimum, and returns a lower bound that proves how near it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import Bounds, LinearConstraint, minimize

from drpruning import _native
from drpruning.errors import WeightError
from drpruning.swarm.law import MixtureLaw

SMALLEST_SHARE = 1e-7
"""Least share of a domain that may be in the mixture: below it the derivative of ``r^gamma`` has no useful size."""

TOLERANCE = 1e-3
"""Largest gap between objective and lower bound, in the unit of the losses, of a mixture called optimal."""

_SMOOTHING = (1e-2, 1e-3, 1e-4, 1e-5)
"""Penalties on ``D(q, w)``, in parts of the losses' spread, that make ``F`` differentiable; each solution starts the
next search. The last costs at most ``1e-5 rho`` spreads."""

_REPEATS = 3
"""Further searches with the last penalty, each from the best mixture so far, while the gap is above a tenth of
:data:`TOLERANCE`."""


class SearchStatus(StrEnum):
    """What the search proves."""

    OPTIMAL = "optimal"
    """No mixture within the bounds has an objective lower by more than :data:`TOLERANCE`."""
    INEXACT = "inexact"
    """The search ended with a larger gap; the mixture is valid, and ``gap`` bounds what is lost."""


@dataclass(frozen=True, slots=True, eq=False)
class BestMixture:
    """The mixture found, with a bound that proves it.

    Attributes:
        mixture: Shares of the domains, float64 ``[d]``, sum 1.
        objective: ``F`` at the mixture, in the unit of the losses.
        lower_bound: No mixture within the bounds has a smaller objective.
        status: What the search proves.
        losses: Predicted losses of the targets at the mixture under each law, float64 ``[laws, t]``.
        target_weights: ``q``, the worst-case weights of the targets, averaged over the laws, float64 ``[t]``.
    """

    mixture: NDArray[np.float64]
    objective: float
    lower_bound: float
    status: SearchStatus
    losses: NDArray[np.float64]
    target_weights: NDArray[np.float64]

    @property
    def gap(self) -> float:
        """``objective - lower_bound``, in the unit of the losses."""
        return self.objective - self.lower_bound


def best_mixture(
    laws: Sequence[MixtureLaw],
    *,
    prior: ArrayLike | None = None,
    target_weights: ArrayLike | None = None,
    reference_loss: ArrayLike | None = None,
    rho: float = 0.0,
    kl: float = 0.0,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
) -> BestMixture:
    """Return the mixture that minimises the objective of this module within bounds.

    Args:
        laws: One law, or several that are averaged; of the same domains and targets.
        prior: Mixture ``[d]`` of the KL term; the search starts there. Without one: the even mixture.
        target_weights: ``w``, one positive number for each target, ``[t]``; without: all equal.
        reference_loss: What each loss is compared with, ``[t]``; without: 0.
        rho: Radius of the ball around ``w``, halved divergence, >= 0; infinity for the worst target.
        kl: ``kappa``, in the unit of the losses, >= 0; Olmix uses 0.1.
        lower: Least share, for all domains or each ``[d]``.
        upper: Largest share, likewise; caps of epochs are of this kind.

    Raises:
        WeightError: ``laws`` is empty, or the laws have different domains or targets; ``prior`` does not sum to 1;
            ``target_weights`` has an entry <= 0; ``rho`` or ``kl`` is negative or NaN, or ``kl`` infinite; a vector has
            another length, or an entry that is not finite; ``kl`` is positive and a domain has a least share, but
            no share in the prior; no mixture is within the bounds.

    Example:
        Two domains with a target each: the worst case takes equal shares.

        >>> from drpruning.swarm import Swarm, fit_law
        >>> shares = np.linspace(0.02, 0.98, 40)
        >>> mixtures = np.column_stack([shares, 1 - shares])
        >>> losses = 2 + np.array([0.3, 0.3]) * mixtures**-0.2
        >>> fit = fit_law(Swarm.of("ab", mixtures, "ab", losses), resamples=0)
        >>> best = best_mixture([fit.law], rho=math.inf)
        >>> best.mixture.round(2).tolist(), str(best.status)
        ([0.5, 0.5], 'optimal')
    """
    problem = _Problem.of(laws, prior, target_weights, reference_loss, rho, kl, lower, upper)
    mixture = problem.project(problem.prior)
    spread = max(float(np.ptp(problem.excess(mixture))), float(np.ptp(problem.losses_of_corners())), 1e-9)
    penalties = (0.0,) if rho == 0 else tuple(share * spread for share in _SMOOTHING)
    objective, lower_bound = math.inf, -math.inf
    for penalty in (*penalties, *[penalties[-1]] * _REPEATS):
        found = problem.minimise(mixture, penalty)
        value, bound = problem.certify(found, penalty)
        lower_bound = max(lower_bound, bound)
        if value < objective:
            objective, mixture = value, found
        if penalty == penalties[-1] and objective - lower_bound <= TOLERANCE / 10:
            break
    exact = objective - lower_bound <= TOLERANCE
    return BestMixture(
        mixture=mixture,
        objective=objective,
        lower_bound=lower_bound,
        status=SearchStatus.OPTIMAL if exact else SearchStatus.INEXACT,
        losses=np.stack([law.losses(mixture) for law in problem.laws]),
        target_weights=problem.worst_weights(mixture, penalties[-1]).mean(axis=0),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    laws: tuple[MixtureLaw, ...]
    prior: NDArray[np.float64]
    weights: NDArray[np.float64]
    reference: NDArray[np.float64]
    rho: float
    kl: float
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        laws: Sequence[MixtureLaw],
        prior: ArrayLike | None,
        target_weights: ArrayLike | None,
        reference_loss: ArrayLike | None,
        rho: float,
        kl: float,
        lower: ArrayLike,
        upper: ArrayLike,
    ) -> _Problem:
        if not laws:
            raise WeightError("laws is empty; expected at least one")
        domains, targets = len(laws[0].domains), len(laws[0].targets)
        if any((law.domains, law.targets) != (laws[0].domains, laws[0].targets) for law in laws):
            raise WeightError("the laws have different domains or targets; expected the same for all")
        shares = _vector("prior", np.full(domains, 1 / domains) if prior is None else prior, domains, least=0.0)
        if not math.isclose(shares.sum(), 1, abs_tol=1e-6):
            raise WeightError(f"prior sums to {shares.sum():.6g}; expected 1")
        weights = _vector("target_weights", np.ones(targets) if target_weights is None else target_weights, targets)
        if (weights <= 0).any():
            raise WeightError("target_weights holds a number <= 0; leave a target without weight out instead")
        if math.isnan(rho) or rho < 0 or not math.isfinite(kl) or kl < 0:
            raise WeightError(f"rho is {rho:g} and kl {kl:g}; both must be >= 0, and kl finite")
        least, most = _vector("lower", lower, domains, least=0.0), np.minimum(_vector("upper", upper, domains), 1.0)
        if kl > 0:
            # the divergence from a prior without a domain is infinite
            if ((shares == 0) & (least > 0)).any():
                bad = int(np.argmax((shares == 0) & (least > 0)))
                raise WeightError(
                    f"with kl {kl:g} the least share of {laws[0].domains[bad]!r} is {least[bad]:g} and its share in "
                    "the prior 0; expected a least share of 0",
                    "Raise its share in the prior, or set its least share or kl to 0.",
                )
            most = np.where(shares > 0, most, 0.0)
        if (least > most).any() or least.sum() > 1 + 1e-9 or most.sum() < 1 - 1e-9:
            raise WeightError(
                f"no mixture is within the bounds: least shares sum to {least.sum():.6g}, largest to {most.sum():.6g}, "
                "and each least share must be at most the largest",
                "Raise the largest shares (or the epochs allowed), or lower the least shares.",
            )
        least = np.minimum(np.maximum(least, SMALLEST_SHARE), most)
        reference = _vector("reference_loss", 0.0 if reference_loss is None else reference_loss, targets)
        return cls(tuple(laws), shares, weights / weights.sum(), reference, rho, kl, least, most)

    def excess(self, mixture: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``L_bj - l_ref_j``, float64 ``[laws, t]``."""
        return np.stack([law.losses(mixture) for law in self.laws]) - self.reference

    def losses_of_corners(self) -> NDArray[np.float64]:
        """Return the first law's excess losses at the mixtures nearest to one domain alone, ``[d, t]``."""
        corners = np.stack([self.project(row) for row in np.eye(len(self.prior))])
        return self.laws[0].losses(corners) - self.reference

    def worst_weights(self, mixture: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
        """Return ``q`` of each law, float64 ``[laws, t]``."""
        return np.stack([self._worst(excess, penalty) for excess in self.excess(mixture)])

    def _worst(self, excess: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
        if self.rho == 0:
            return self.weights
        penalties = np.full(len(excess), penalty)
        return _native.worst_case(excess, self.weights, self.rho, 0.0, penalties).weights

    def value(self, mixture: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        """Return the smoothed objective and its derivative by the shares, ``[d]``."""
        excess = self.excess(mixture)
        total, slope = 0.0, np.zeros(len(mixture))
        for law, losses in zip(self.laws, excess, strict=True):
            q = self._worst(losses, penalty)
            total += float(q @ losses) - penalty * self._divergence(q)
            slope += q @ law.gradients(mixture)
        total, slope = total / len(self.laws), slope / len(self.laws)
        if self.kl > 0:
            ratio = np.log(np.maximum(mixture, SMALLEST_SHARE) / np.where(self.prior > 0, self.prior, 1.0))
            total += self.kl * float(mixture @ ratio)
            slope += self.kl * (ratio + 1)
        return total, slope

    def _divergence(self, q: NDArray[np.float64]) -> float:
        return 0.5 * float((self.weights * (q / self.weights - 1) ** 2).sum())

    def minimise(self, start: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
        """Return the minimiser of the smoothed objective within the bounds."""
        found = minimize(
            self.value,
            start,
            args=(penalty,),
            jac=True,
            method="SLSQP",
            bounds=Bounds(self.lower, self.upper),
            constraints=LinearConstraint(np.ones((1, len(start))), 1.0, 1.0),
            options={"maxiter": 300, "ftol": 1e-10},
        )
        return self.project(found.x if np.isfinite(found.x).all() else start)

    def certify(self, mixture: NDArray[np.float64], penalty: float) -> tuple[float, float]:
        """Return the objective at ``mixture``, and a lower bound of the objective of all mixtures.

        For fixed weights ``q`` of the targets, ``sum_j q_j L_j`` is convex and nowhere above the maximum over ``q``:
        its tangent plane at ``mixture`` is below the objective everywhere, and its minimum within the bounds is a
        bound.
        """
        objective, _ = self.value(mixture, 0.0)
        smoothed, slope = self.value(mixture, penalty)
        at_mixture = smoothed + penalty * float(
            np.mean([self._divergence(q) for q in self.worst_weights(mixture, penalty)])
        )
        return objective, at_mixture + float(slope @ (self._cheapest(slope) - mixture))

    def _cheapest(self, slope: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mixture within the bounds that minimises ``slope . r``: the cheapest domains first."""
        mixture = self.lower.copy()
        left = 1 - mixture.sum()
        for domain in np.argsort(slope, kind="stable"):
            added = min(left, self.upper[domain] - mixture[domain])
            mixture[domain] += added
            left -= added
        return mixture

    def project(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the point shifted by one number for all domains and clipped to the bounds, so that it sums to 1."""
        low, high = -2.0, 2.0
        for _ in range(100):
            shift = (low + high) / 2
            low, high = (shift, high) if np.clip(point + shift, self.lower, self.upper).sum() < 1 else (low, shift)
        mixture = np.clip(point + high, self.lower, self.upper)
        return np.asarray(mixture / mixture.sum())


def _vector(name: str, value: ArrayLike, size: int, least: float = -math.inf) -> NDArray[np.float64]:
    numbers = np.broadcast_to(np.asarray(value, np.float64), (size,)).copy() if np.ndim(value) == 0 else np.array(
        value, np.float64
    )  # fmt: skip
    if numbers.shape != (size,) or not np.isfinite(numbers).all() or (numbers < least).any():
        raise WeightError(f"{name} is {np.asarray(value).tolist()}; expected one finite number or {size}, >= {least:g}")
    return numbers
