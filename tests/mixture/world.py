"""A world in which the right mixture can be computed: each domain's loss falls with the tokens trained on of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from drpruning.mixture import Observation, State, Strategy, Update

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Progress:
    """A moment of a simulated stage at which a training loop updates the mixture.

    Attributes:
        step: Steps so far.
        consumed: Tokens of each domain so far, ``[n]``.
        before: Those at the update before.
        evaluated: Whether the loop evaluates here; if not, only training losses are known.
    """

    step: int
    consumed: Vector
    before: Vector
    evaluated: bool


def simulate(
    strategy: Strategy,
    state: State,
    observe: Callable[[Progress], Observation],
    *,
    steps: int,
    eval_every: int,
    tokens: int,
) -> tuple[Vector, list[Update]]:
    """Train a stage as the training loop does, with its updates between evaluations and its probes.

    Returns:
        The tokens of each domain at the end, ``[n]``, and the updates of the strategy.
    """

    def evaluated(step: int) -> bool:
        return step % eval_every == 0 or step == steps or step == strategy.probe_end(state)

    step, updates = 0, []
    consumed = before = np.zeros(len(state["domains"]))
    while True:
        state, update = strategy.update(state, observe(Progress(step, consumed, before, evaluated(step))))
        updates.append(update)
        if step == steps:
            return consumed, updates
        start = step
        while step == start or not (evaluated(step) or strategy.update_due(state, step, tokens * step // steps)):
            step += 1
        share = np.array([update.weights[domain] for domain in state["domains"]])
        before, consumed = consumed, consumed + tokens * (step - start) / steps * share


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
        """Return ``loss - E`` after these tokens of each domain."""
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
        steps = 10 * evaluations

        def observe(now: Progress) -> Observation:
            return self.observe(now, steps)

        return simulate(strategy, state, observe, steps=steps, eval_every=10, tokens=self.tokens)

    def observe(self, now: Progress, steps: int) -> Observation:
        losses, drawn = self.losses(now.consumed), now.consumed > now.before
        training = self.named((losses + self.losses(now.before)) / 2)
        return Observation(
            step=now.step,
            tokens=self.tokens * now.step // steps,
            params=1e6,
            losses=self.named(losses) if now.evaluated else {},
            final_tokens=self.tokens,
            domain_tokens=dict.fromkeys(self.domains, 40_000),
            consumed={domain: round(n) for domain, n in zip(self.domains, now.consumed, strict=True)},
            training_losses={
                domain: training[domain] for domain, some in zip(self.domains, drawn, strict=True) if some
            },
        )
