"""Static mixtures by name: from the sizes of the domains alone.

================== ========================================================================================
``natural``        shares in proportion to the domains' tokens
``uniform``        equal shares
``temperature:a``  shares in proportion to the tokens to the power ``a``; 1 is natural, 0 uniform (the ``alpha`` of
                   XLM-R, Conneau et al. 2020; ``1 / T`` of mT5)
``unimax:e``       equal shares, but no domain is read more than ``e`` times (UniMax, Chung et al. 2023); the
                   rest goes to the larger domains in equal shares
================== ========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from drpruning.errors import WeightError

NAMES = ("natural", "uniform", "temperature:A", "unimax:EPOCHS")


def static_mixture(name: str, domain_tokens: Mapping[str, float], tokens: float | None = None) -> dict[str, float]:
    """Return the mixture called ``name``.

    Args:
        name: ``natural``, ``uniform``, ``temperature:0.5`` or ``unimax:4``, with any non-negative power and any
            positive number of epochs.
        domain_tokens: Training tokens of each domain, positive.
        tokens: Tokens of the run, which ``unimax`` needs.

    Raises:
        WeightError: The name is unknown, a number is out of its range, or ``unimax`` lacks the tokens of the run.

    Example:
        >>> sizes = {"web": 9e9, "code": 1e9, "math": 1e8}
        >>> {domain: round(share, 3) for domain, share in static_mixture("temperature:0.5", sizes).items()}
        {'web': 0.695, 'code': 0.232, 'math': 0.073}
        >>> {domain: round(share, 3) for domain, share in static_mixture("unimax:4", sizes, tokens=4e9).items()}
        {'web': 0.45, 'code': 0.45, 'math': 0.1}
    """
    if not domain_tokens or not all(math.isfinite(size) and size > 0 for size in domain_tokens.values()):
        raise WeightError(f"domain_tokens is {dict(domain_tokens)}; expected a positive number for each domain")
    rule, _, text = name.partition(":")
    if rule in ("natural", "uniform") and not text:
        return _power(domain_tokens, 1.0 if rule == "natural" else 0.0)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if rule == "temperature" and math.isfinite(number) and number >= 0:
        return _power(domain_tokens, number)
    if rule == "unimax" and math.isfinite(number) and number > 0:
        if tokens is None or not tokens > 0:
            raise WeightError(f"{name!r} needs the tokens of the run; got {tokens}")
        return _unimax(domain_tokens, tokens, number)
    raise WeightError(f"no static mixture is called {name!r}; expected one of {', '.join(NAMES)}")


def _power(sizes: Mapping[str, float], power: float) -> dict[str, float]:
    largest = max(sizes.values())
    parts = {domain: (size / largest) ** power for domain, size in sizes.items()}
    total = math.fsum(parts.values())
    return {domain: part / total for domain, part in parts.items()}


def _unimax(sizes: Mapping[str, float], tokens: float, epochs: float) -> dict[str, float]:
    """Give each domain, the smallest first, an equal part of what is left, up to its cap.

    If all domains are at their caps before the run ends, the shares are those of the caps.
    """
    budget: dict[str, float] = {}
    left = tokens
    for number, domain in enumerate(sorted(sizes, key=lambda each: sizes[each])):
        budget[domain] = min(left / (len(sizes) - number), epochs * sizes[domain])
        left -= budget[domain]
    total = math.fsum(budget.values())
    return {domain: budget[domain] / total for domain in sizes}
