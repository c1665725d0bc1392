"""Combine importance scores of several domains into one: by the ratio, evenly, or for the worst case of the ball.

The scores of a kind are divided by their sum in each domain, so that a domain's estimated loss of a cut is the share of
its importance that the cut removes, summed over kinds. Domains with large losses or gradients do not count more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drpruning import chi2
from drpruning.errors import ConfigError

Combination = Literal["ratio", "even", "worst_case"]
TOLERANCE = 1e-3  # of the smallest estimated loss; differences below it are far below the error of the scores
ITERATIONS = 200


@dataclass(frozen=True)
class CombinedScores:
    """Scores of all domains together.

    Attributes:
        scores: By kind, float32 in the shape of the gates, on the CPU.
        weights: The mixture of the domains' scores, float64 by domain.
        losses: The estimated loss of the cut by these scores, by domain: the removed share of importance, summed over
            kinds.
        worst: The largest mixture of ``losses`` over the ball.
        bound: No cut has a smaller worst case than this, up to the rounding of float32 scores.
    """

    scores: dict[str, Tensor]
    weights: dict[str, float]
    losses: dict[str, float]
    worst: float
    bound: float


def combine(
    scores: Mapping[str, Mapping[str, Tensor]],
    ratio: Mapping[str, float],
    removed: Mapping[str, int],
    combination: Combination,
    *,
    rho: float = 0.1,
    protected: Mapping[str, Tensor] | None = None,
) -> CombinedScores:
    """Combine the scores of each domain as ``sum_d q_d scores_d``.

    ``ratio`` sets q to the ratio p, ``even`` to equal shares. ``worst_case`` searches the cut S that minimises ::

        F(S) = max over q in the ball of sum_d q_d L_d(S),    L_d(S) = sum over kinds of the removed share of d

    For a fixed q the best cut removes the units of the smallest combined scores; call its value g(q). For a fixed cut
    the worst q is :func:`drpruning.chi2.worst_case`. The search alternates: the next q is the worst case of the mean
    losses of all cuts so far (fictitious play with best responses, Robinson 1951), starting from the ratio. It stops at
    a cut with F(S) within :data:`TOLERANCE` of the largest g(q), which bounds F of every cut from below, or after
    :data:`ITERATIONS` rounds, and returns the q of the best cut. That cut is never worse, by F, than that of the ratio.
    The bound also holds for fractions of units; over whole units a gap can remain at any number of rounds.

    Args:
        scores: By domain and kind, in the shape of the gates, see :func:`drpruning.pruning.importance.importance`.
        ratio: Reference ratio of the domains, the centre of the ball.
        removed: Units to remove by kind, in each row of a kind with one row for each block.
        combination: The rule.
        rho: Radius of the ball, for the halved divergence.
        protected: By kind, units that are never removed, bool in the shape of the gates.

    Raises:
        ConfigError: There is no domain, or a score is negative or not finite.
    """
    domains = list(scores)
    if not domains:
        raise ConfigError("importance per domain needs the scores of at least one domain, got none")
    cut = _Cut(scores, removed, protected or {})
    p = np.array([ratio[domain] for domain in domains], dtype=np.float64)
    p /= p.sum()
    q, best, best_worst, bound = p, p, np.inf, -np.inf
    total = np.zeros_like(p)
    for round_ in range(1, 1 + (ITERATIONS if combination == "worst_case" else 1)):
        losses = cut.losses(q)
        worst, _ = _worst(losses, p, rho)
        bound = max(bound, float(q @ losses))
        if worst < best_worst:
            best, best_worst = q, worst
        if best_worst - bound <= TOLERANCE * bound:
            break
        total += losses
        _, q = _worst(total / round_, p, rho)
    if combination == "even":
        best = np.full_like(p, 1 / len(p))
        best_worst, _ = _worst(cut.losses(best), p, rho)
    return cut.result(best, best_worst, min(bound, best_worst))


def _worst(losses: NDArray[np.float64], p: NDArray[np.float64], rho: float) -> tuple[float, NDArray[np.float64]]:
    q = chi2.worst_case(losses, p, rho).weights
    return float(q @ losses), q


class _Cut:
    """The cut by combined scores, for any mixture of the domains."""

    def __init__(
        self,
        scores: Mapping[str, Mapping[str, Tensor]],
        removed: Mapping[str, int],
        protected: Mapping[str, Tensor],
    ) -> None:
        self.domains = list(scores)
        self.removed = removed
        self.shapes = {kind: score.shape for kind, score in scores[self.domains[0]].items()}
        self.shares: dict[str, NDArray[np.float64]] = {}  # by kind [domains, rows, units]
        self.protected: dict[str, NDArray[np.bool_]] = {}
        for kind, shape in self.shapes.items():
            each = np.stack([scores[domain][kind].double().cpu().numpy() for domain in self.domains])
            if not (np.isfinite(each).all() and (each >= 0).all()):
                raise ConfigError(
                    f"importance of kind {kind!r} has a score that is negative or not finite; expected scores >= 0",
                    "Check that the model's losses on the calibration text are finite.",
                )
            each = each.reshape(len(each), -1, shape[-1])
            sums = each.sum(axis=(1, 2), keepdims=True)
            self.shares[kind] = np.divide(each, sums, out=np.zeros_like(each), where=sums > 0)
            if kind in protected:
                self.protected[kind] = protected[kind].cpu().numpy().reshape(-1, shape[-1])

    def combined(self, kind: str, q: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return ``sum_d q_d share_d``, [rows, units]: float32, as the gates are ordered by it."""
        return np.tensordot(q, self.shares[kind], axes=1).astype(np.float32)

    def losses(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the estimated loss of each domain if the units of the smallest scores under ``q`` are removed."""
        found = np.zeros(len(self.domains))
        for kind, share in self.shares.items():
            score = self.combined(kind, q)
            if kind in self.protected:
                score = np.where(self.protected[kind], np.inf, score)
            out = np.argsort(score, axis=-1, kind="stable")[:, : self.removed[kind]]
            found += np.take_along_axis(share, out[None], axis=-1).sum(axis=(1, 2))
        return found

    def result(self, q: NDArray[np.float64], worst: float, bound: float) -> CombinedScores:
        """Return the scores combined by ``q``."""
        losses = self.losses(q)
        return CombinedScores(
            scores={kind: torch.from_numpy(self.combined(kind, q)).view(shape) for kind, shape in self.shapes.items()},
            weights=dict(zip(self.domains, q.tolist(), strict=True)),
            losses=dict(zip(self.domains, losses.tolist(), strict=True)),
            worst=worst,
            bound=bound,
        )
