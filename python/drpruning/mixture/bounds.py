"""Bounds on the mixture, the same for every strategy: the share of a domain, and the passes over its text.

The strategy's mixture ``w`` is replaced by the nearest one within the bounds, in relative entropy::

    argmin_q  sum_d q_d log(q_d / w_d)    over  low <= q <= high,  sum q = 1

The solution is ``q = clip(c w, low, high)`` for the one ``c`` with which it sums to one, so weights that are not at a
bound keep their proportions. Exponentiated weights continue from the bounded mixture: they are mirror descent on the
bounded set. A mixture within the bounds stays the same, bit by bit.

``max_epochs`` becomes a bound on the share, so that the stage cannot use more of a domain even if the weights stay ::

    high_d = (max_epochs_d domain_tokens_d - consumed_d) / (final_tokens - tokens)

While the mixture keeps this bound, the bound never falls. So bounds that are feasible at the start are feasible to the
end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import ConfigError
from drpruning.mixture.observation import Observation
from drpruning.mixture.settings import FRACTION, check_settings, documented, setting

Vector = NDArray[np.float64]
Bound = float | Mapping[str, float] | None

MAX_EPOCHS = 4
"""Up to four passes over the same text are nearly as good as new text (Muennighoff et al. 2023, section 5)."""
SLACK = 1e-9
"""Sums of bounds may violate their limit by this much, because of rounding."""
SMALLEST = 1e-300
"""A weight below this counts as zero: its reciprocal would overflow."""


@documented
@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits on the mixture; each is one number for all domains, or one for each domain it names.

    With ``max_epochs`` observations need ``final_tokens``, ``domain_tokens`` and ``consumed``.

    Example:
        >>> Bounds(max_share=0.5).nearest([0.8, 0.15, 0.05], ["web", "code", "books"]).round(9).tolist()
        [0.5, 0.375, 0.125]
    """

    min_share: Bound = setting(None, "Smallest weight of a domain.", **FRACTION)
    max_share: Bound = setting(None, "Largest weight of a domain.", **FRACTION)
    max_epochs: Bound = setting(
        None,
        "Passes over a domain's training tokens in a stage, at most. The count starts at 0 in each stage.",
        gt=0.0,
        lt=math.inf,
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def __bool__(self) -> bool:
        """Return whether there is any bound."""
        return any(bound is not None for bound in (self.min_share, self.max_share, self.max_epochs))

    def limits(self, domains: Sequence[str], observation: Observation | None = None) -> tuple[Vector, Vector]:
        """Return the smallest and the largest weight of each domain now, ``[n]`` each.

        Without an observation ``max_epochs`` is ignored.

        Raises:
            ConfigError: A bound names an unknown domain, no mixture is within the bounds, or ``max_epochs`` is set and
                the observation has no numbers of tokens.
        """
        low = _in_order("min_share", self.min_share, domains, 0.0)
        high = _in_order("max_share", self.max_share, domains, 1.0)
        epochs = _in_order("max_epochs", self.max_epochs, domains, math.inf)
        _check_feasible(domains, low, high, "min_share and max_share")
        if observation is None or self.max_epochs is None:
            return low, high
        whole, left = _allowed(domains, epochs, observation)
        _check_feasible(domains, low, np.minimum(high, whole), "max_share and max_epochs")
        # Rows are whole and draws may be random, so the rest can be a row below `low` or one
        return low, np.maximum(low, np.minimum(high, left))

    def nearest(
        self,
        mixture: Sequence[float] | Vector,
        domains: Sequence[str],
        observation: Observation | None = None,
        *,
        ratio: Sequence[float] | Vector | None = None,
    ) -> Vector:
        """Return the mixture within the bounds that is nearest to ``mixture`` (see the module).

        A domain with weight zero gets its smallest weight, unless all others are at their largest and sum to less than
        one; the rest is then shared in proportion to ``ratio`` (evenly without one).

        Raises:
            ConfigError: As for :meth:`limits`, or ``mixture`` is not one number for each of the domains.
        """
        weights = _vector("mixture", mixture, domains)
        low, high = self.limits(domains, observation)
        if ((low <= weights) & (weights <= high)).all():
            return weights
        if high.sum() <= 1:  # by rounding, or because all bounds are tight
            return np.asarray(high / high.sum())
        spare = np.ones(weights.size) if ratio is None else _vector("ratio", ratio, domains)
        some = weights > SMALLEST
        bounded = np.where(some, high, low)
        if bounded.sum() >= 1:
            bounded[some] = within(weights[some], low[some], high[some], 1 - low[~some].sum())
        else:
            bounded[~some] = within(spare[~some], low[~some], high[~some], 1 - high[some].sum())
        return np.asarray(bounded / bounded.sum())


def _vector(name: str, values: Any, domains: Sequence[str]) -> Vector:
    """Return numbers in the order of the domains, ``[n]``."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.shape != (len(domains),):
        raise ConfigError(
            f"{name} is {values!r}; expected {len(domains)} numbers, one for each of the domains {', '.join(domains)}",
            f"Pass a list in their order{f': list({name}.values())' if isinstance(values, Mapping) else ''}.",
        )
    return numbers


def within(mixture: Vector, low: Vector, high: Vector, total: float = 1.0) -> Vector:
    """Return ``clip(c * mixture, low, high)`` for the ``c`` with which it sums to ``total``.

    The bounds must satisfy ``sum low <= total <= sum high``.

    ``mixture`` is positive, ``[n]``.
    """
    # The sum grows with c, piecewise linearly: find the piece, then interpolate.
    corners = np.unique(np.concatenate([low / mixture, high / mixture]))
    sums = np.array([np.clip(c * mixture, low, high).sum() for c in corners])
    c = np.interp(total, sums, corners)
    bounded = np.clip(c * mixture, low, high)
    return np.asarray(bounded / (bounded.sum() / total) if bounded.any() else bounded)


def _allowed(domains: Sequence[str], epochs: Vector, observation: Observation) -> tuple[Vector, Vector]:
    """Return the largest shares that ``max_epochs`` allows in the whole stage, and in the rest of it, ``[n]`` each."""
    final_tokens, sizes, used = observation.final_tokens, observation.domain_tokens, observation.consumed
    if not final_tokens or sizes is None or used is None:
        raise ConfigError(
            "max_epochs is set, and the observation has no numbers of tokens",
            "Pass final_tokens, domain_tokens and consumed in every Observation.",
        )
    for domain, limit in zip(domains, epochs, strict=True):
        if math.isfinite(limit) and (domain not in sizes or domain not in used):
            raise ConfigError(f'max_epochs: domain_tokens or consumed of the observation lacks domain "{domain}"')
    size = np.array([sizes.get(domain, 0) for domain in domains], dtype=np.float64)
    consumed = np.array([used.get(domain, 0) for domain in domains], dtype=np.float64)
    free = ~np.isfinite(epochs)
    most = np.where(free, math.inf, np.where(free, 1.0, epochs) * size)
    remaining = final_tokens - observation.tokens
    left = np.maximum(0.0, most - consumed) / remaining if remaining > 0 else np.ones(len(domains))
    return np.minimum(1.0, most / final_tokens), np.minimum(1.0, left)


def _check_feasible(domains: Sequence[str], low: Vector, high: Vector, what: str) -> None:
    crossed = [domain for domain, least, most in zip(domains, low, high, strict=True) if least > most + SLACK]
    if crossed:
        d = list(domains).index(crossed[0])
        raise ConfigError(
            f'domain "{crossed[0]}" must have at least {low[d]:.6g} of the mixture and may have at most {high[d]:.6g}',
            f"Lower min_share, or raise {what}.",
        )
    if low.sum() > 1 + SLACK:
        raise ConfigError(f"min_share sums to {low.sum():.6g} over all domains; expected at most 1")
    if high.sum() < 1 - SLACK:
        raise ConfigError(
            f"{what} sum to {high.sum():.6g} over all domains; expected at least 1",
            "Raise a bound, add text, or shorten the stage.",
        )


def _in_order(name: str, bound: Bound, domains: Sequence[str], default: float) -> Vector:
    if not isinstance(bound, Mapping):
        return np.full(len(domains), default if bound is None else bound)
    unknown = [domain for domain in bound if domain not in domains]
    if unknown:
        raise ConfigError(f'{name} names domain "{unknown[0]}"; the domains are {", ".join(domains)}')
    return np.array([bound.get(domain, default) for domain in domains], dtype=np.float64)


UNBOUNDED = Bounds()
