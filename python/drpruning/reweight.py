"""The strategies that choose the data mixture after every evaluation.

A strategy is a frozen dataclass of settings. Its state is plain JSON-able data that the caller keeps, so that a run
can be saved, resumed and replayed::

    strategy = DRPruning(rho=0.1)
    state = strategy.init(["web", "code"], {"web": 0.8, "code": 0.2})
    state, update = strategy.update(state, Observation(step=50, tokens=10**6, params=1e8,
                                                       losses={"web": 2.1, "code": 1.2}, final_tokens=10**8))
    sampler.set_weights(update.weights)

``losses`` are held-out losses in nats per token. A strategy never answers with NaN: a domain whose loss is missing, NaN
or infinite keeps the weight it had, the others share the rest, and the status of the update is ``"incomplete"``
(``"held"`` if no domain has a loss: every weight stays).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from drpruning.chi2 import worst_case
from drpruning.errors import ConfigError, StateError, WeightError
from drpruning.scaling import fit_scaling_law

State = dict[str, Any]
Vector = NDArray[np.float64]

STATE_VERSION = 1

LARGEST_LOSS = 1e6
"""Nats per token; a number beyond this is a failure of the evaluation, and is treated as a missing loss."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What an evaluation found.

    Attributes:
        step: Optimizer steps taken in this stage.
        tokens: Tokens trained on in this stage.
        params: Parameters in use; the expected number while masks close.
        losses: Held-out loss of each domain, nats per token.
        final_tokens: Tokens this stage will have at its end; needed by strategies that predict.
        final_params: Parameters in use at the end of the stage; ``params`` if not given.
    """

    step: int
    tokens: int
    params: float
    losses: Mapping[str, float]
    final_tokens: int | None = None
    final_params: float | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """The mixture from the next batch on, and why. Mappings go from domain to number.

    Attributes:
        weights: The mixture, every entry finite and >= 0, sum one.
        reference_ratio: The mixture at the centre of the ball, after this update.
        status: What decided the weights: ``"constant"``, ``"loading"``, a status of the ball (``"boundary"``,
            ``"face"``, ``"center"``), or ``"incomplete"`` or ``"held"`` when losses were missing.
        reference_loss: The loss each domain was measured against.
        excess_loss: Loss less reference loss, for the domains that had a loss.
        predicted_loss: The law's prediction for the end of the stage, for the domains that have one.
        divergence: Halved chi-square divergence of the weights from the ratio they were chosen around.
    """

    weights: dict[str, float]
    reference_ratio: dict[str, float]
    status: str
    reference_loss: dict[str, float] | None = None
    excess_loss: dict[str, float] | None = None
    predicted_loss: dict[str, float] | None = None
    divergence: float | None = None


class Strategy(Protocol):
    """Chooses the mixture from the losses. Implementations are frozen dataclasses of settings."""

    name: ClassVar[str]

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """The state before the first evaluation, as JSON-able data; ``state["weights"]`` is the mixture to start with.

        Args:
            domains: Their names; the order of everything in the state.
            reference_ratio: Mixture to start from, positive, sum one.
            reference_loss: Loss each domain should reach, nats per token, if known.

        Raises:
            WeightError: A domain is missing or unknown, or a number is not as described.
        """

    def next_stage(self, state: State) -> State:
        """The state for the start of another stage of the same run: what is learned stays, the curves begin anew."""

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """The next state and the mixture to use from the next batch on; ``state`` itself is not changed."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The reference ratio, whatever the losses: the baseline of every comparison."""

    name: ClassVar[str] = "constant"

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """See :meth:`Strategy.init`; a reference loss only shows up as excess loss in the updates."""
        return _new_state(self.name, domains, reference_ratio, reference_loss)

    def next_stage(self, state: State) -> State:
        """See :meth:`Strategy.next_stage`."""
        return _copy(self.name, state)

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """See :meth:`Strategy.update`."""
        state = _copy(self.name, state)
        losses = _losses(state, observation)
        reference = _vector(state["reference_loss"])
        return state, _describe(state, "constant", losses, reference)


@dataclass(frozen=True, kw_only=True)
class ShearedLoading:
    """Dynamic batch loading of Sheared LLaMA (Xia et al. 2023, algorithm 1): exponential weights on the excess.

    ``w <- softmax(log w + eta max(0, loss - reference_loss))``, then ``w <- (1 - smoothing) w + smoothing / n``. The
    weights multiply up from update to update; nothing but the smoothing pulls them back.

    Reference losses are those given to :meth:`init` (in the paper: predicted from models of several sizes). A domain
    without one is measured against its first finite loss, so only a loss above the start counts as excess.

    Attributes:
        eta: Step size, per nat.
        smoothing: Share of the uniform mixture blended in.
    """

    name: ClassVar[str] = "sheared"
    eta: float = 1.0
    smoothing: float = 1e-4

    def __post_init__(self) -> None:
        _check_range("eta", self.eta, 0.0, math.inf)
        _check_range("smoothing", self.smoothing, 0.0, 1.0)

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """See :meth:`Strategy.init`."""
        return _new_state(self.name, domains, reference_ratio, reference_loss)

    def next_stage(self, state: State) -> State:
        """See :meth:`Strategy.next_stage`: weights and reference losses stay."""
        return _copy(self.name, state)

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """See :meth:`Strategy.update`."""
        state = _copy(self.name, state)
        losses = _losses(state, observation)
        reference = _fill(_vector(state["reference_loss"]), losses)
        state["reference_loss"] = _nullable(reference)
        known = np.isfinite(losses)
        if not known.any():
            return state, _describe(state, "held", losses, reference)
        weights = np.array(state["weights"])
        mass = weights[known].sum()
        step = self.eta * np.maximum(0.0, losses[known] - reference[known])
        shares = weights[known] * np.exp(step - step.max())
        smooth = (1 - self.smoothing) * shares / shares.sum() + self.smoothing / known.sum()
        weights[known] = mass * smooth
        state["weights"] = (weights / weights.sum()).tolist()
        return state, _describe(state, "loading" if known.all() else "incomplete", losses, reference)


@dataclass(frozen=True, kw_only=True)
class DRPruning:
    """Distributionally robust mixture with predicted reference losses and a moving ratio (Deng et al. 2024, section 3).

    After each evaluation, in this order:

    1. *Reference loss.* A scaling law is fitted to each domain's points of this stage and asked for the loss at the
       stage's end. A prediction counts if the law is identified and its 90% band is narrow enough; it is capped by the
       lowest loss seen in the stage, and never rises. Until the first domain has a prediction, all are measured against
       the reference losses given to :meth:`init` or, without one, against their first finite loss; afterwards a
       domain that still has none is measured against the smaller of that and its lowest loss in the stage.
    2. *Weights.* ``q = worst_case(losses - reference_loss, p, rho, floor)``, ``p`` the reference ratio.
    3. *Ratio.* ``p <- delta q + (1 - delta) p``, kept between ``1 / ratio_bound`` and ``ratio_bound`` times the initial
       ratio. A domain that stays behind can so gain more than one ball allows.

    The defaults are those of the paper's code for thousands of steps and many evaluations. With some 20 evaluations
    use a larger ``delta`` (0.2), fewer ``min_points`` and a wider ``ratio_bound``, or the ratio hardly moves.
    ``predict_after=1`` switches predictions off up to the last evaluation; ``delta=0`` keeps the ratio where it is.

    Give :meth:`init` reference losses where you can, such as those of the unpruned model. Without them, a domain that
    the mixture neglects falls slowly, is therefore predicted to end high, shows little excess and stays neglected.

    While masks close, the loss rises from that of the unpruned model; that lowest loss then is the reference, and the
    excess is what pruning has cost the domain so far.

    Attributes:
        rho: Radius of the ball, halved chi-square divergence. The paper and its code halve too.
        delta: How far the ratio follows the weights at each update, 0 to 1.
        floor: Least ratio of a domain's weight to its reference ratio, 0 to 1.
        collect_after: Fraction of the stage after which points are kept for the law.
        predict_after: Fraction of the stage after which predictions are made.
        min_points: Points a prediction needs; at least 4.
        max_band: Half width, in nats, of the 90% band beyond which a prediction is not believed.
        move_after: Fraction of the stage after which the ratio moves.
        ratio_bound: Bound on the ratio's change, as a factor, >= 1.
    """

    name: ClassVar[str] = "drpruning"
    rho: float = 0.1
    delta: float = 0.1
    floor: float = 0.2
    collect_after: float = 0.02
    predict_after: float = 0.10
    min_points: int = 10
    max_band: float = 0.3
    move_after: float = 0.20
    ratio_bound: float = 2.0

    def __post_init__(self) -> None:
        _check_range("rho", self.rho, 0.0, math.inf)
        for name in ("delta", "collect_after", "predict_after", "move_after"):
            _check_range(name, getattr(self, name), 0.0, 1.0)
        if not 0 <= self.floor < 1:
            raise ConfigError(f"floor is {self.floor}; it must be at least 0 and below 1")
        _check_range("min_points", self.min_points, 4, math.inf)
        _check_range("max_band", self.max_band, 0.0, math.inf)
        _check_range("ratio_bound", self.ratio_bound, 1.0, math.inf)

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """See :meth:`Strategy.init`."""
        state = _new_state(self.name, domains, reference_ratio, reference_loss)
        state["initial_ratio"] = list(state["reference_ratio"])
        return self._forget_curves(state)

    def next_stage(self, state: State) -> State:
        """See :meth:`Strategy.next_stage`: weights, ratio and reference losses stay; points and predictions go."""
        return self._forget_curves(_copy(self.name, state))

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """See :meth:`Strategy.update`.

        Raises:
            ConfigError: ``observation.final_tokens`` is missing, so there is no end of the stage to predict.
        """
        if not observation.final_tokens:
            raise ConfigError(
                "DRPruning predicts losses at the end of the stage, and the observation has no final_tokens",
                "Pass final_tokens=<tokens of the whole stage> in every Observation.",
            )
        state = _copy(self.name, state)
        final_tokens = observation.final_tokens
        progress = observation.tokens / final_tokens
        losses = _losses(state, observation)
        known = np.isfinite(losses)
        fallback = _fill(_vector(state["reference_loss"]), losses)
        lowest = np.fmin(_vector(state["lowest_loss"]), losses)
        state["reference_loss"], state["lowest_loss"] = _nullable(fallback), _nullable(lowest)
        if progress >= self.collect_after and observation.tokens > 0:
            state["points"].append([observation.tokens, float(observation.params), _nullable(losses)])
        predicted = np.full(losses.size, np.nan)
        if progress >= self.predict_after:
            final_params = observation.params if observation.final_params is None else observation.final_params
            predicted = self._predict(state, final_params, final_tokens)
        trusted = np.fmin(predicted, _vector(state["trusted"]))
        trusted = np.minimum(trusted, lowest)  # NaN, where there is no prediction, stays NaN
        state["trusted"] = _nullable(trusted)
        if np.isfinite(trusted).any():
            reference = np.where(np.isfinite(trusted), trusted, np.fmin(fallback, lowest))
        else:
            reference = fallback
        if not known.any():
            return state, _describe(state, "held", losses, reference, predicted=predicted)

        weights, ratio = np.array(state["weights"]), np.array(state["reference_ratio"])
        around = ratio.copy()
        center = ratio[known] / ratio[known].sum()
        worst = worst_case(losses[known] - reference[known], center, self.rho, self.floor)
        status = worst.status if known.all() else "incomplete"
        weights[known] = weights[known].sum() * worst.weights
        weights /= weights.sum()
        state["weights"] = weights.tolist()
        if known.all() and progress >= self.move_after:
            initial = np.array(state["initial_ratio"])
            moved = self.delta * weights + (1 - self.delta) * ratio
            ratio = _within(moved, initial / self.ratio_bound, initial * self.ratio_bound)
            state["reference_ratio"] = ratio.tolist()
        return state, _describe(state, status, losses, reference, predicted=predicted, around=around)

    def _forget_curves(self, state: State) -> State:
        unknown = [None] * len(state["domains"])
        return state | {"points": [], "lowest_loss": list(unknown), "trusted": list(unknown)}

    def _predict(self, state: State, final_params: float, final_tokens: float) -> Vector:
        """The believable predictions for the end of the stage; NaN where there is none."""
        predicted = np.full(len(state["domains"]), np.nan)
        for d in range(predicted.size):
            points = [(params, tokens, row[d]) for tokens, params, row in state["points"] if row[d] is not None]
            if len(points) < self.min_points:
                continue
            law = fit_scaling_law(*zip(*points, strict=True))
            value, low, high = law.predict(final_params, final_tokens)
            if law.status == "identified" and high - low <= 2 * self.max_band:
                predicted[d] = value
        return predicted


STRATEGIES: dict[str, type[Constant] | type[ShearedLoading] | type[DRPruning]] = {
    cls.name: cls for cls in (Constant, ShearedLoading, DRPruning)
}
"""Name, as recipes and records write it, to class."""


def _new_state(
    name: str,
    domains: Sequence[str],
    reference_ratio: Mapping[str, float],
    reference_loss: Mapping[str, float] | None,
) -> State:
    if len(set(domains)) != len(domains) or not domains:
        raise WeightError(f"domains must be different names, at least one; got {list(domains)}")
    _check_names("reference ratio", domains, reference_ratio, complete=True)
    _check_names("reference loss", domains, reference_loss or {}, complete=False)
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
        "weights": list(ratio),
        "reference_ratio": ratio,
        "reference_loss": [None if loss is None else float(loss) for loss in map((reference_loss or {}).get, domains)],
    }


def _copy(name: str, state: State) -> State:
    """A copy that can be changed without changing ``state``, once it is known to be ours."""
    if (state.get("strategy"), state.get("version")) != (name, STATE_VERSION):
        raise StateError(
            f"the state is of strategy {state.get('strategy')!r} version {state.get('version')!r}, "
            f"wanted {name!r} version {STATE_VERSION}",
            "Resume with the strategy and the version of drpruning that wrote it, or start anew.",
        )
    return {key: list(value) if isinstance(value, list) else value for key, value in state.items()}


def _losses(state: State, observation: Observation) -> Vector:
    """Losses in the state's order; NaN for a domain that has none, or one that cannot be a loss."""
    _check_names("loss", state["domains"], observation.losses, complete=False)
    losses = np.array([observation.losses.get(domain, math.nan) for domain in state["domains"]], dtype=np.float64)
    losses[~(np.abs(losses) < LARGEST_LOSS)] = np.nan
    return losses


def _describe(
    state: State,
    status: str,
    losses: Vector,
    reference: Vector,
    *,
    predicted: Vector | None = None,
    around: Vector | None = None,
) -> Update:
    domains = state["domains"]
    weights = np.array(state["weights"])
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
        divergence=float(0.5 * ((weights - center) ** 2 / center).sum()),
    )


def _within(mixture: Vector, low: Vector, high: Vector) -> Vector:
    """``clip(c * mixture, low, high)`` for the ``c`` that makes it sum to one; ``sum low <= 1 <= sum high``."""
    # The sum grows with c, piecewise linearly: find the piece, then interpolate.
    corners = np.unique(np.concatenate([low / mixture, high / mixture]))
    sums = np.array([np.clip(c * mixture, low, high).sum() for c in corners])
    c = np.interp(1.0, sums, corners)
    bounded = np.clip(c * mixture, low, high)
    return np.asarray(bounded / bounded.sum())


def _fill(known: Vector, losses: Vector) -> Vector:
    return np.where(np.isfinite(known), known, losses)


def _vector(values: Sequence[float | None]) -> Vector:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _nullable(values: Vector) -> list[float | None]:
    """JSON has no NaN."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _check_names(what: str, domains: Sequence[str], given: Mapping[str, float], *, complete: bool) -> None:
    unknown = [domain for domain in given if domain not in domains]
    missing = [domain for domain in domains if domain not in given]
    if unknown:
        raise WeightError(f'{what} names domain "{unknown[0]}"; the domains are {", ".join(domains)}')
    if complete and missing:
        raise WeightError(f'{what} of domain "{missing[0]}" is missing')


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        wanted = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigError(f"{name} is {value}; it must be {wanted}")
