"""How fast gates and multipliers should move in a stage of so many steps, for those who do not want to try.

Both rates fall with the square root of the number of steps. A gate travels about 5 in log-alpha to close. Adam moves it
by about its rate a step, back and forth while its masks are random: over n steps a drift of rate * n, a wandering of
rate * sqrt(n). With rate = 3 / sqrt(n) the wandering is the same in every stage, and the drift, 3 * sqrt(n), is enough
from a few dozen steps on. The multipliers follow at a third of it: slower than the gates whose price they are, or the
two swing around each other.

Measured by ``benches/rates.py``; ``docs/masks.md`` has the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GATES, MULTIPLIERS = 3.0, 1.0
HIGHEST = 1.0  # the rate of the papers' recipes


@dataclass(frozen=True)
class MaskRates:
    """Adam's learning rates of gates and of multipliers."""

    gates: float
    multipliers: float


def mask_rates(steps: int) -> MaskRates:
    """Rates with which a stage of ``steps`` optimizer steps reaches its target.

    Example:
        >>> rates = mask_rates(200)
        >>> round(rates.gates, 3), round(rates.multipliers, 3)
        (0.212, 0.071)
    """
    root = math.sqrt(steps)
    return MaskRates(min(HIGHEST, GATES / root), min(HIGHEST, MULTIPLIERS / root))
