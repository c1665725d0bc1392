"""What all strategies share: the state they begin with, reading losses into it, and telling what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import ConfigError, StateError, WeightError
from drpruning.reweight.bounds import Bounds
from drpruning.reweight.observation import Observation, State, Update

Vector = NDArray[np.float64]

STATE_VERSION = 1

LARGEST_LOSS = 1e6
"""Nats per token; a number beyond this is a failure of the evaluation, and is treated as a missing loss."""


def new_state(
    name: str,
    domains: Sequence[str],
    reference_ratio: Mapping[str, float],
    reference_loss: Mapping[str, float] | None,
    bounds: Bounds,
) -> State:
    """The state of a strategy before the first evaluation: the reference ratio, within the bounds on shares."""
    if len(set(domains)) != len(domains) or not domains:
        raise WeightError(f"domains must be different names, at least one; got {list(domains)}")
    check_names("reference ratio", domains, reference_ratio, complete=True)
    check_names("reference loss", domains, reference_loss or {}, complete=False)
    for domain, share in reference_ratio.items():
        if not (math.isfinite(share) and share > 0):
            raise WeightError(f'reference ratio of domain "{domain}" is {share}; it must be positive and finite')
    for domain, loss in (reference_loss or {}).items():
        if not math.isfinite(loss):
            raise WeightError(f'reference loss of domain "{domain}" is {loss}; it must be finite')
    total = math.fsum(reference_ratio.values())
    if abs(total - 1) > 1e-6:
        raise WeightError(f"reference ratio sums to {total}; it must sum to 1")
    ratio = [float(reference_ratio[domain]) / total for domain in domains]
    return {
        "version": STATE_VERSION,
        "strategy": name,
        "domains": list(domains),
        "weights": bounds.nearest(ratio, domains).tolist(),
        "reference_ratio": ratio,
        "reference_loss": [None if loss is None else float(loss) for loss in map((reference_loss or {}).get, domains)],
    }


def copy_state(name: str, state: State) -> State:
    """A copy that can be changed without changing ``state``, once it is known to be ours."""
    if (state.get("strategy"), state.get("version")) != (name, STATE_VERSION):
        raise StateError(
            f"the state is of strategy {state.get('strategy')!r} version {state.get('version')!r}, "
            f"wanted {name!r} version {STATE_VERSION}",
            "Resume with the strategy and the version of drpruning that wrote it, or start anew.",
        )
    return {key: list(value) if isinstance(value, list) else value for key, value in state.items()}


def read_losses(state: State, observation: Observation) -> Vector:
    """Losses in the state's order; NaN for a domain that has none, or one that cannot be a loss."""
    check_names("loss", state["domains"], observation.losses, complete=False)
    losses = np.array([observation.losses.get(domain, math.nan) for domain in state["domains"]], dtype=np.float64)
    losses[~(np.abs(losses) < LARGEST_LOSS)] = np.nan
    return losses


def first_losses(state: State, losses: Vector) -> Vector:
    """The reference losses given, and for the others the first loss each domain had, which is remembered."""
    reference = fill(vector(state["reference_loss"]), losses)
    state["reference_loss"] = nullable(reference)
    return reference


def fixed_baselines(state: State, losses: Vector) -> tuple[Vector, Vector]:
    """What robust optimisation compares, and the reference losses behind it (NaN where there are none).

    Without a single reference loss that is the losses themselves. Otherwise it is the excess over the reference
    losses given, and for a domain that was given none, over its first loss.
    """
    if all(loss is None for loss in state["reference_loss"]):
        return losses, np.full(losses.size, np.nan)
    reference = first_losses(state, losses)
    return losses - reference, reference


def spread(state: State, known: NDArray[np.bool_], shares: Vector) -> Vector:
    """The mixture in which the domains with a loss share, as ``shares`` says, what they had; the others stay."""
    weights = np.array(state["weights"])
    weights[known] = weights[known].sum() * shares
    return np.asarray(weights / weights.sum())


def settle(
    state: State,
    bounds: Bounds,
    observation: Observation,
    status: str,
    losses: Vector,
    reference: Vector,
    *,
    wanted: Vector | None = None,
    predicted: Vector | None = None,
    band: Sequence[Vector] = (),
    around: Vector | None = None,
) -> Update:
    """Puts the mixture wanted (missing: the one that was) within the bounds, into the state and into an update.

    Args:
        state: Changed: its weights are the bounded mixture afterwards.
        bounds: The strategy's.
        observation: What the update was asked with; says how much text is left.
        status: What decided the weights.
        losses: In the state's order, NaN where there is none.
        reference: Reference losses, NaN where there is none.
        wanted: The strategy's mixture.
        predicted: Predicted losses, NaN where there is none.
        band: Low and high ends of the bands of the predictions.
        around: The ratio the mixture was chosen around; missing: the state's reference ratio.
    """
    domains = state["domains"]
    weights = np.array(state["weights"]) if wanted is None else wanted
    touched: tuple[str, ...] = ()
    if bounds:
        ratio = np.array(state["reference_ratio"])
        bounded = bounds.nearest(weights, domains, observation, ratio=ratio)
        low, high = bounds.limits(domains, observation)
        at_bound = (bounded <= low * (1 + 1e-12)) & (low > 0) | (bounded >= high * (1 - 1e-12)) & (high < 1)
        touched = tuple(domain for domain, flag in zip(domains, at_bound, strict=True) if flag)
        weights = bounded
    state["weights"] = weights.tolist()
    center = np.array(state["reference_ratio"]) if around is None else around

    def mapping(values: Vector | None) -> dict[str, float] | None:
        """The domains that have a number; None if there is none."""
        if values is None or not np.isfinite(values).any():
            return None
        return {domain: float(value) for domain, value in zip(domains, values, strict=True) if math.isfinite(value)}

    return Update(
        weights=dict(zip(domains, state["weights"], strict=True)),
        reference_ratio=dict(zip(domains, state["reference_ratio"], strict=True)),
        status=status,
        reference_loss=mapping(reference),
        excess_loss=mapping(losses - reference),
        predicted_loss=mapping(predicted),
        predicted_band=_paired(*map(mapping, band)) if band else None,
        divergence=float(0.5 * ((weights - center) ** 2 / center).sum()),
        bounded=touched,
    )


def _paired(low: dict[str, float] | None, high: dict[str, float] | None) -> dict[str, list[float]] | None:
    return {domain: [low[domain], high[domain]] for domain in low} if low and high else None


def fill(known: Vector, losses: Vector) -> Vector:
    """``known`` where it is a number, ``losses`` elsewhere."""
    return np.where(np.isfinite(known), known, losses)


def vector(values: Sequence[float | None]) -> Vector:
    """Numbers from JSON, which has null where we have NaN."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def nullable(values: Vector) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [float(value) if math.isfinite(value) else None for value in values]


def check_names(what: str, domains: Sequence[str], given: Mapping[str, float], *, complete: bool) -> None:
    """Refuses numbers for unknown domains, and with ``complete`` also a domain without one."""
    unknown = [domain for domain in given if domain not in domains]
    missing = [domain for domain in domains if domain not in given]
    if unknown:
        raise WeightError(f'{what} names domain "{unknown[0]}"; the domains are {", ".join(domains)}')
    if complete and missing:
        raise WeightError(f'{what} of domain "{missing[0]}" is missing')


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuses a setting outside ``[low, high]``."""
    if not low <= value <= high:
        wanted = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigError(f"{name} is {value}; it must be {wanted}")
