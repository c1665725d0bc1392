"""Propose the mixtures of a swarm: draws around a prior that the data can serve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import WeightError

STRENGTHS = (0.5, 50.0)
"""Smallest and largest total of a Dirichlet distribution's parameters, drawn log-uniformly for each mixture: small
totals give mixtures near corners of the simplex, large ones mixtures near the prior."""

TEMPERATURE = 0.5
"""Power of the prior that half of the draws surround, so that rare domains reach large shares in some runs (RegMix uses
the same power)."""


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """Proposed runs.

    Attributes:
        domains: Names, ``[d]``.
        mixtures: Float64 ``[n, d]``, rows sum to 1; the first is the prior, the second the even mixture, where the
            caps allow them.
        subsample: Part of each domain's text that the small runs read, so that a share means as many epochs in a small
            run as in the target run; 1 where no such runs are described.
    """

    domains: tuple[str, ...]
    mixtures: NDArray[np.float64]
    subsample: float


def propose(
    prior: Mapping[str, float],
    runs: int,
    *,
    domain_tokens: Mapping[str, float] | None = None,
    run_tokens: float | None = None,
    target_tokens: float | None = None,
    max_epochs: float = 4.0,
    seed: int = 0,
) -> Design:
    """Propose mixtures of small runs.

    Mixtures are drawn from Dirichlet distributions around the prior and around the prior to the power
    :data:`TEMPERATURE`, in turn, with totals drawn from :data:`STRENGTHS`. A draw that needs a domain for more than
    ``max_epochs`` is projected to the caps. A law of ``d`` domains has ``d + 4`` parameters per target: propose at
    least twice as many runs.

    A proxy that trains on fewer tokens than the target run repeats small domains less, and then prefers them more than
    the target run will. With ``run_tokens`` and ``target_tokens``, the caps are those of the target run, and
    ``subsample`` is ``run_tokens / target_tokens``: small runs that read this part of each domain repeat it as often as
    the target run does.

    Args:
        prior: Mixture to draw around; each share positive.
        runs: Number of mixtures, >= 2.
        domain_tokens: Tokens that each domain has; without them nothing is capped.
        run_tokens: Tokens of a small run.
        target_tokens: Tokens of the run that the mixture is for; without: the small run's.
        max_epochs: How often the text of a domain may be read.
        seed: Of the draws.

    Raises:
        WeightError: An argument is not as described, or the caps leave no mixture.

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
    tokens = target_tokens or run_tokens
    caps = np.ones(len(shares))
    if domain_tokens is not None:
        missing = [name for name in domains if not domain_tokens.get(name, 0.0) > 0]
        if missing or tokens is None or not tokens > 0 or not max_epochs > 0:
            raise WeightError(
                f"domain_tokens lacks {missing}, tokens of a run are {tokens}, max_epochs {max_epochs:g}; "
                "expected positive numbers for all domains"
            )
        caps = np.minimum(1.0, max_epochs * np.array([domain_tokens[name] for name in domains]) / tokens)
    if caps.sum() < 1:
        raise WeightError(
            f"the domains have text for {caps.sum():.3g} of a run of {tokens:g} tokens at {max_epochs:g} epochs",
            "Allow more epochs, or plan a shorter run.",
        )
    rng = np.random.default_rng(seed)
    tempered = shares**TEMPERATURE / (shares**TEMPERATURE).sum()
    mixtures = [_cap(shares / shares.sum(), caps), _cap(np.full(len(shares), 1 / len(shares)), caps)]
    for number in range(2, runs):
        strength = math.exp(rng.uniform(*np.log(STRENGTHS)))
        drawn = rng.dirichlet(strength * (shares, tempered)[number % 2])
        mixtures.append(_cap(drawn, caps))
    subsample = 1.0 if run_tokens is None or target_tokens is None else min(1.0, run_tokens / target_tokens)
    return Design(domains, np.stack(mixtures), subsample)


def round_shares(mixture: Mapping[str, float]) -> dict[str, float]:
    """Return the shares in millionths, each at least one, that sum to 1 as a recipe needs them.

    Example:
        >>> round_shares({"web": 2 / 3, "code": 1 / 3, "math": 1e-12})
        {'web': 0.666666, 'code': 0.333333, 'math': 1e-06}
    """
    parts = {domain: max(1, round(share * 1_000_000)) for domain, share in mixture.items()}
    largest = max(parts, key=lambda domain: parts[domain])
    parts[largest] += 1_000_000 - sum(parts.values())
    return {domain: part / 1_000_000 for domain, part in parts.items()}


def _cap(mixture: NDArray[np.float64], caps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale the shares by one factor and clip them to the caps, so that they sum to 1."""
    capped = np.minimum(mixture, caps)
    for _ in range(len(caps)):
        free = capped < caps
        missing = 1 - capped.sum()
        if missing <= 1e-12 or not free.any():
            break
        base = np.where(free, np.maximum(mixture, 1e-9), 0.0)
        capped = np.minimum(capped + missing * base / base.sum(), caps)
    return np.asarray(capped / capped.sum())
