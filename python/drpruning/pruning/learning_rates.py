"""Learning rates of gates and multipliers for a pruning stage of a given number of steps.

Both rates fall with the square root of the number of steps, n. Adam moves a gate by about its rate in each step, in
both directions while its masks are random: over n steps a random walk of length rate * sqrt(n).

- Gates, 6 / sqrt(n): from the start at log-alpha 2 a gate reaches the clamp at -4.6 in about sqrt(n) steps. The
  random walk, 6, is shorter than the range of the clamp, 9.2.
- Multipliers, a fifteenth of the gates' rate. A clamped gate keeps a positive probability of being active, so a small
  miss of constant sign remains until one more gate moves. Adam divides a gradient by its size: meanwhile the linear
  multiplier moves by its rate in each step, however small the miss is. While a gate crosses its range, the linear
  multiplier moves by 9.2 / 15 = 0.6. This must be less than the gradient that the quadratic multiplier, 100 at the
  start, adds at a miss of 0.01: 2 * 100 * 0.01 = 2. Otherwise more gates follow the first, and the size overshoots.

Measured by ``benches/gate_learning_rates.py``; ``docs/masks.md`` has the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GATES, MULTIPLIERS = 6.0, 0.4
DETERMINISTIC_GATES = 2.0
"""Deterministic gates need not cross the range, only change their order: the random walk has the length over which
:meth:`.MaskedModel.init_from_importance` spreads the gates of a row."""
QUADRATIC_MULTIPLIER_INIT = 100.0
HIGHEST = 1.0  # the rate of the papers' recipes


@dataclass(frozen=True)
class MaskRates:
    """Adam's learning rates of gates and of multipliers."""

    gates: float
    multipliers: float


def mask_rates(steps: int, *, deterministic: bool = False) -> MaskRates:
    """Return rates with which a stage of ``steps`` optimizer steps reaches its target.

    Args:
        steps: Optimizer steps of the stage.
        deterministic: Whether the gates are deterministic; their multipliers have no effect.

    Example:
        >>> rates = mask_rates(200)
        >>> round(rates.gates, 3), round(rates.multipliers, 3)
        (0.424, 0.028)
    """
    root = math.sqrt(steps)
    return MaskRates(
        min(HIGHEST, (DETERMINISTIC_GATES if deterministic else GATES) / root), min(HIGHEST, MULTIPLIERS / root)
    )


def max_adam_step(rate: float, betas: tuple[float, float]) -> float | None:
    """Bound the distance that one step of Adam without weight decay moves a parameter, for any gradients.

    With b1, b2 the betas and g the gradients, Adam's step t is rate * m / sqrt(v), where

        m = (1 - b1) / (1 - b1^t) * sum of b1^i g,  v = (1 - b2) / (1 - b2^t) * sum of b2^i g^2,  i = 0 .. t - 1.

    By Cauchy and Schwarz (sum of b1^i g)^2 <= sum of (b1^2 / b2)^i * sum of b2^i g^2. So with r = b1^2 / b2

        m^2 / v <= (1 - b1)^2 / ((1 - b2) (1 - r)) * (1 - r^t) (1 - b2^t) / (1 - b1^t)^2,

    and the last factor is at most 1, since a + b >= 2 sqrt(a b) for a = r^t, b = b2^t, a b = b1^(2 t).

    Args:
        rate: Learning rate.
        betas: b1 and b2.

    Returns:
        The bound; None for b1^2 >= b2, where no bound exists.

    Example:
        >>> [round(max_adam_step(0.1, betas), 4) for betas in ((0.9, 0.95), (0.9, 0.999))]
        [0.1165, 0.727]
        >>> max_adam_step(0.1, (0.9, 0.8)) is None
        True
    """
    first, second = betas
    if first**2 >= second:
        return None
    return rate * (1 - first) / math.sqrt((1 - second) * (1 - first**2 / second))
