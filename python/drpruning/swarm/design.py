"""Propose the mixtures of a swarm: draws around a prior, within bounds and caps by the text there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import WeightError
from drpruning.mixture.bounds import Bounds, within

STRENGTHS = (0.5, 50.0)
"""Smallest and largest total of a Dirichlet distribution's parameters, drawn log-uniformly for each mixture: small
totals give mixtures near corners of the simplex, large ones mixtures near the prior."""

TEMPERATURE = 0.5
"""Power of the prior that half of the draws surround, so that rare domains reach large shares in some runs (RegMix uses
the same power)."""

_SLACK = 1e-3
"""Of a bound in millionths, because of rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """Proposed runs.

    Attributes:
        domains: Names, ``[d]``.
        mixtures: Float64 ``[n, d]``, rows sum to 1; the first is the prior, the second the even mixture if it is
            another one, where the bounds allow them.
        subsample: Part of each domain's text that the small runs read, so that a share means as many epochs in a small
            run as in the target run; 1 where no such runs are described.
        bounds: Least and largest share of each domain, float64 ``[2, d]``.
    """

    domains: tuple[str, ...]
    mixtures: NDArray[np.float64]
    subsample: float
    bounds: NDArray[np.float64]

    def rounded(self) -> Design:
        """Return the design with shares in millionths within the bounds: see :func:`round_shares`."""
        low, high = (dict(zip(self.domains, each, strict=True)) for each in self.bounds.tolist())
        rows = [
            list(round_shares(dict(zip(self.domains, mixture, strict=True)), low, high).values())
            for mixture in self.mixtures.tolist()
        ]
        return replace(self, mixtures=np.array(rows, np.float64))


def propose(
    prior: Mapping[str, float],
    runs: int,
    *,
    domain_tokens: Mapping[str, float] | None = None,
    run_tokens: float | None = None,
    target_tokens: float | None = None,
    max_epochs: float = 4.0,
    min_share: Mapping[str, float] | float = 0.0,
    max_share: Mapping[str, float] | float = 1.0,
    seed: int = 0,
) -> Design:
    """Propose mixtures of small runs.

    Mixtures are drawn from Dirichlet distributions around the prior and around the prior to the power
    :data:`TEMPERATURE`, in turn, with totals drawn from :data:`STRENGTHS`. A draw divides what
    the least shares leave. A draw above the largest shares, or with a domain for more than ``max_epochs``, is replaced
    by the nearest mixture within. A law of ``d`` domains has ``d + 4`` parameters per target: propose at least twice as
    many runs.

    A proxy that trains on fewer tokens than the target run repeats small domains less, and then prefers them more than
    the target run will. With ``run_tokens`` and ``target_tokens``, the caps are those of the target run, and
    ``subsample`` is ``run_tokens / target_tokens``: small runs that read this part of each domain repeat it as often as
    the target run does.

    Args:
        prior: Mixture to draw around; each share positive.
        runs: Number of mixtures, >= 2.
        domain_tokens: Tokens that each domain has; without them the text caps nothing.
        run_tokens: Tokens of a small run.
        target_tokens: Tokens of the run that the mixture is for; without: the small run's.
        max_epochs: How often the text of a domain may be read.
        min_share: Least share, one for all domains or by domain (0 where not named).
        max_share: Largest share, likewise (1 where not named).
        seed: Of the draws.

    Raises:
        WeightError: ``prior`` has fewer than two shares, or shares that are not positive or do not sum to 1; ``runs``
            is below 2; with ``domain_tokens``: a domain has no positive number, the tokens of a run or ``max_epochs``
            are not positive, or the text is too short for a run.
        ConfigError: A bound is not a share or names an unknown domain, or no mixture is within the bounds.

    Example:
        >>> design = propose({"web": 0.9, "code": 0.1}, 16, domain_tokens={"web": 9e9, "code": 1e8}, run_tokens=1e9)
        >>> design.mixtures.shape, bool(design.mixtures[:, 1].max() <= 0.4 + 1e-9)
        ((16, 2), True)
    """
    domains = tuple(prior)
    shares = np.array([prior[name] for name in domains], np.float64)
    if len(shares) < 2 or not np.isfinite(shares).all() or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise WeightError(f"prior is {dict(prior)}; expected at least two positive shares that sum to 1")
    if runs < 2:
        raise WeightError(f"runs is {runs}; expected at least 2")
    low, high = Bounds(min_share=min_share, max_share=max_share).limits(domains)
    if domain_tokens is not None:
        caps = _caps(domains, domain_tokens, target_tokens or run_tokens, max_epochs)
        high = np.minimum(high, caps)
        least, most = (dict(zip(domains, bound.tolist(), strict=True)) for bound in (low, high))
        Bounds(min_share=least, max_share=most).limits(domains)  # some mixture is within both
    rng = np.random.default_rng(seed)
    tempered = shares**TEMPERATURE / (shares**TEMPERATURE).sum()
    mixtures = [_bounded(start, low, high) for start in (shares / shares.sum(), np.full(len(shares), 1 / len(shares)))]
    if np.allclose(mixtures[0], mixtures[1], rtol=0, atol=1e-6):  # a run that repeats a mixture shows nothing of others
        mixtures.pop()
    for number in range(len(mixtures), runs):
        strength = math.exp(rng.uniform(*np.log(STRENGTHS)))
        drawn = low + (1 - low.sum()) * rng.dirichlet(strength * (shares, tempered)[number % 2])
        mixtures.append(_bounded(drawn, low, high))
    subsample = 1.0 if run_tokens is None or target_tokens is None else min(1.0, run_tokens / target_tokens)
    return Design(domains, np.stack(mixtures), subsample, np.stack([low, high]))


def round_shares(
    mixture: Mapping[str, float], low: Mapping[str, float] | None = None, high: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the shares in millionths, each at least one, that sum to 1 as a recipe needs them.

    Args:
        mixture: Share of each domain, within the bounds.
        low: Least share of each domain; without: 0.
        high: Largest share of each domain; without: 1. A largest share of 0 counts as a millionth, and bounds that
            leave less than a millionth between them are exceeded by as much.

    Example:
        >>> round_shares({"web": 2 / 3, "code": 1 / 3, "math": 1e-12})
        {'web': 0.666666, 'code': 0.333333, 'math': 1e-06}
        >>> round_shares({"web": 2 / 3, "code": 1 / 3}, high={"web": 0.6666665, "code": 1.0})
        {'web': 0.666666, 'code': 0.333334}
    """
    parts, room = {}, {}
    for domain, share in mixture.items():
        most = 1_000_000 if high is None else max(1, math.floor(high[domain] * 1_000_000 + _SLACK))
        least = 1 if low is None else max(1, math.ceil(low[domain] * 1_000_000 - _SLACK))
        least = min(least, most)
        parts[domain] = min(max(least, round(share * 1_000_000)), most)
        room[domain] = (least - parts[domain], most - parts[domain])
    left = 1_000_000 - sum(parts.values())
    descending = sorted(parts, key=lambda domain: -parts[domain])
    for domain in descending:
        added = min(max(left, room[domain][0]), room[domain][1])
        parts[domain] += added
        left -= added
    parts[descending[0]] += left
    return {domain: part / 1_000_000 for domain, part in parts.items()}


def _caps(
    domains: tuple[str, ...], domain_tokens: Mapping[str, float], tokens: float | None, max_epochs: float
) -> NDArray[np.float64]:
    """Return the largest share of each domain in a run of ``tokens`` tokens."""
    if missing := [name for name in domains if not domain_tokens.get(name, 0.0) > 0]:
        raise WeightError(f"domain_tokens lacks {missing[0]!r}; expected a positive number for each domain")
    if tokens is None or not tokens > 0 or not max_epochs > 0:
        raise WeightError(f"tokens of a run are {tokens}, max_epochs is {max_epochs:g}; expected positive numbers")
    caps = np.minimum(1.0, max_epochs * np.array([domain_tokens[name] for name in domains]) / tokens)
    if caps.sum() < 1:
        raise WeightError(
            f"the domains have text for {caps.sum():.3g} of a run of {tokens:g} tokens at {max_epochs:g} epochs",
            "Allow more epochs, or plan a shorter run.",
        )
    return np.asarray(caps)


def _bounded(mixture: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest mixture within the bounds; a share of zero counts as 1e-9."""
    if ((low <= mixture) & (mixture <= high)).all():
        return mixture
    return within(np.maximum(mixture, 1e-9), low, high)
