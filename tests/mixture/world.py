"""A world in which the right mixture can be computed: each domain's loss falls with the tokens trained on of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from drpruning.mixture import Observation, Strategy, Update

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """``loss_d = E_d + A_d (start_d + n_d)^-b_d``, ``n_d`` the tokens of domain d so far.

    ``books`` has the largest coefficient and the smallest share; ``code`` the smallest exponent.
    """

    domains: tuple[str, ...] = ("web", "code", "books")
    ratio: tuple[float, ...] = (0.7, 0.2, 0.1)
    E: tuple[float, ...] = (2.0, 1.0, 3.0)
    A: tuple[float, ...] = (8.0, 5.0, 12.0)
    b: tuple[float, ...] = (0.3, 0.25, 0.3)
    start: float = 1000.0
    tokens: int = 100_000

    def excess(self, consumed: Vector) -> Vector:
        """Return ``loss - E`` after so many tokens of each domain."""
        return np.array(self.A) * (self.start + consumed) ** -np.array(self.b)

    def losses(self, consumed: Vector) -> Vector:
        return np.array(self.E) + self.excess(consumed)

    def named(self, values: Any) -> dict[str, float]:
        return dict(zip(self.domains, map(float, values), strict=True))

    def minimax(self) -> tuple[float, Vector]:
        """Return the least possible largest excess at the end, and the mixture that reaches it: all are equal there."""
        A, b = np.array(self.A), np.array(self.b)

        def needed(level: float) -> Vector:
            return np.maximum(0.0, (A / level) ** (1 / b) - self.start)

        level = brentq(lambda level: needed(level).sum() - self.tokens, 1e-3, 10.0, xtol=1e-14)
        return level, needed(level) / self.tokens

    def run(
        self, strategy: Strategy, evaluations: int = 100, *, reference_loss: dict[str, float] | None = None
    ) -> tuple[Vector, list[Update]]:
        """Train to the end; return the tokens of each domain and the updates of the strategy."""
        state = strategy.init(self.domains, self.named(self.ratio), reference_loss=reference_loss)
        consumed, updates = np.zeros(len(self.domains)), []
        for k in range(evaluations + 1):
            state, update = strategy.update(state, self.observe(k, evaluations, consumed))
            updates.append(update)
            if k < evaluations:
                consumed = consumed + self.tokens / evaluations * np.array([update.weights[d] for d in self.domains])
        return consumed, updates

    def observe(self, k: int, evaluations: int, consumed: Vector) -> Observation:
        return Observation(
            step=10 * k,
            tokens=self.tokens * k // evaluations,
            params=1e6,
            losses=self.named(self.losses(consumed)),
            final_tokens=self.tokens,
            domain_tokens=dict.fromkeys(self.domains, 40_000),
            consumed={domain: round(n) for domain, n in zip(self.domains, consumed, strict=True)},
        )
