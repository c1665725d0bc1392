"""DRPruning: the worst mixture in a chi-square ball, with predicted reference losses and a ratio that moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import ConfigError
from drpruning.mixture.bounds import UNBOUNDED, Bounds, within
from drpruning.mixture.curves import (
    CURVES,
    TINY,
    collect_after,
    fit_laws,
    needed_points,
    no_curves,
    predict_published_losses,
    remember,
)
from drpruning.mixture.observation import State, UpdateStatus
from drpruning.mixture.settings import FRACTION, documented, setting
from drpruning.mixture.state_schema import LOSSES, RATIO, Entries
from drpruning.mixture.strategies.chi_square import (
    Solver,
    ball_floor,
    ball_radius,
    ball_solver,
    best_response,
    check_solver,
    noise_multiple,
    noise_of,
)
from drpruning.mixture.strategy import Decision, Evaluation, RuleStrategy, nullable, vector
from drpruning.scaling import LearningRates

Vector = NDArray[np.float64]
Predictions = Literal["replace", "lower"]
RatioRule = Literal["factor", "published"]
Law = Literal["robust", "published"]

PUBLISHED: dict[str, Any] = {
    "rho": 0.1,
    "delta": 0.1,
    "floor": 0.2,
    "collect_after_fraction": 0.02,
    "predict_after_fraction": 0.1,
    "min_points": 11,
    "predictions": "replace",
    "move_ratio_after_fraction": 0.2,
    "ratio_bound": 2.0,
    "ratio_rule": "published",
    "initial_floor": 0.0,
    "update_after_fraction": 0.1,
    "noise": 0.0,
    "law": "published",
    "carry_over": False,
    "solver": "published",
}
"""Settings of the paper's public code (``DRO_loading_callback.py``, ``DRO_server.py`` and the scripts of
hexuandeng/DRPruning at ac442bb); ``docs/fidelity.md`` lists the differences to the defaults."""


LEAST_SHARE = 8 * TINY
"""Smallest share of the reference ratio: its reciprocal is finite, also after the rounding of a sum."""


@documented
@dataclass(frozen=True, kw_only=True)
class DRPruning(RuleStrategy):
    """Distributionally robust mixture with predicted reference losses and a moving ratio (Deng et al. 2024, section 3).

    After each evaluation, in this order:

    1. *Reference loss.* A scaling law is fitted to each domain's points of this stage, with the learning rates of the
       stage if the observation has them. It predicts the loss at the end of the stage. A prediction counts if the law
       is identified and its 90% band is narrow enough; it is at most the lowest loss in the stage, and
       never rises. The reference loss is the smaller of the prediction and the loss given to :meth:`init` or, without
       one, the first finite loss. With ``predictions="replace"``, as in the paper, a prediction replaces the loss
       given, also by a higher one, from the first domain's prediction on; a domain that has none is then measured
       against the smaller of the loss given and its lowest loss in the stage.
    2. *Weights.* ``q = worst_case(losses - reference_loss, p, rho, floor, noise)``, ``p`` the reference ratio; then no
       weight is below ``initial_floor`` times the initial ratio.
    3. *Ratio.* ``p <- delta q + (1 - delta) p``, kept between ``1 / ratio_bound`` and ``ratio_bound`` times the initial
       ratio. A domain that stays behind can so gain more than one ball allows.

    :meth:`published` has the settings of the paper's public code; ``docs/fidelity.md`` lists each difference to the
    defaults and its measured effect. How far the ratio moves in a stage depends on ``delta`` times the number of
    evaluations: with 20 evaluations and 0.1 it hardly moves, with 60 it ends at the weights. Recipes of ``drpruning
    init`` have 1.5 / evaluations. ``delta=0`` keeps the ratio where it is; ``predict_after_fraction=1`` switches
    predictions off up to the last evaluation.

    Give :meth:`init` reference losses where you can, such as those of the unpruned model. Without them, a domain that
    the mixture neglects falls slowly, is therefore predicted to end high, shows little excess and stays neglected.

    While units are pruned, the loss rises from that of the unpruned model. Then this lowest loss is the reference, and
    the excess is what pruning has cost the domain so far.

    A domain whose loss is missing, NaN or infinite keeps its share of the ratio, and its weight if the ball and the
    floor contain it; the others get the worst case for them over the rest of the ball. Its curve has a gap.

    Example:
        One update with numbers. The excess ``v`` is (0.1, 0.6, 0.2) nats; under ``p`` its mean is ``m`` = 0.21 and its
        variance ``V`` = 0.0389. No floor is reached, so ``q = p (1 + (v - m) / sqrt(V / (2 rho)))``: code gets 0.325.
        The ratio follows a tenth of the way.

        >>> from drpruning import Observation
        >>> strategy = DRPruning(rho=0.05)
        >>> reference = {"web": 2.0, "code": 1.0, "books": 3.0}
        >>> state = strategy.init(list(reference), {"web": 0.7, "code": 0.2, "books": 0.1}, reference_loss=reference)
        >>> seen = Observation(
        ...     step=300, tokens=300_000, params=1e6, losses={"web": 2.1, "code": 1.6, "books": 3.2}, final_tokens=10**6
        ... )
        >>> state, update = strategy.update(state, seen)
        >>> {domain: round(weight, 4) for domain, weight in update.weights.items()}
        {'web': 0.5765, 'code': 0.3251, 'books': 0.0984}
        >>> {domain: round(share, 4) for domain, share in update.reference_ratio.items()}
        {'web': 0.6877, 'code': 0.2125, 'books': 0.0998}
        >>> str(update.status), round(update.divergence, 12)
        ('boundary', 0.05)
    """

    name: ClassVar[str] = "drpruning"
    state_entries: ClassVar[Entries] = {**CURVES, "initial_ratio": RATIO, "lowest_loss": LOSSES, "trusted": LOSSES}
    rho: float = ball_radius(0.1)
    delta: float = setting(
        0.1, "Step of the reference ratio towards the weights after each evaluation, as a fraction.", **FRACTION
    )
    floor: float = ball_floor(0.2)
    collect_after_fraction: float = collect_after(0.02)
    predict_after_fraction: float = setting(
        0.10, "Fraction of the stage after which predicted reference losses are used.", **FRACTION
    )
    min_points: int = needed_points(10)
    max_band: float = setting(
        0.3, "Half width of the 90% band of a prediction, in nats, above which the prediction is rejected.", ge=0.0
    )
    predictions: Predictions = setting(
        "lower",
        "Use of a prediction where a reference loss was given: `lower` it and never raise it, or `replace` it, as in "
        "the paper.",
    )
    move_ratio_after_fraction: float = setting(
        0.20, "Fraction of the stage after which the reference ratio moves.", **FRACTION
    )
    ratio_bound: float = setting(
        4.0, "Largest factor between the reference ratio of a domain and its initial reference ratio.", ge=1.0
    )
    ratio_rule: RatioRule = setting(
        "factor",
        "Method to keep the reference ratio within ratio_bound: `factor` for the nearest ratio, or `published` for the "
        "clamps of the paper's public code, which also keep it between the smallest and the largest initial share and "
        "divide by the sum after each clamp.",
    )
    initial_floor: float = setting(
        0.2,
        "Smallest weight of a domain, as a multiple of its initial reference ratio. Weights are raised to it after the "
        "worst case, so such a mixture may be outside the ball. With 0 a weight can fall to floor / ratio_bound of the "
        "initial ratio.",
        **FRACTION,
    )
    update_after_fraction: float = setting(
        0.0, "Fraction of the stage before the weights move for the first time.", **FRACTION
    )
    noise: float = noise_multiple(1.0)
    law: Law = setting(
        "robust",
        "Fit of the scaling law: `robust` as in `drpruning fit`, or `published` for the Huber loss of the public code "
        "over each domain's tokens, without learning rates (needs torch).",
    )
    carry_over: bool = setting(
        True,
        "Whether the stage continue starts from the weights and the reference ratio at the end of the stage prune, "
        "instead of the initial reference ratio.",
    )
    solver: Solver = ball_solver("exact")
    bounds: Bounds = UNBOUNDED

    @classmethod
    def published(cls, **settings: Any) -> DRPruning:
        """Return the strategy with the settings of the paper's public code, and ``settings`` in their place."""
        return cls(**{**PUBLISHED, **settings})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_solver(self.solver, self.rho)

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """See :meth:`Strategy.init`."""
        state = super().init(domains, reference_ratio, reference_loss=reference_loss)
        return state | {"initial_ratio": list(state["reference_ratio"])}

    def stage_state(self, state: State) -> State:
        """Return empty curves and no predictions; without ``carry_over`` the initial ratio and weights as well."""
        unknown = [None] * len(state["domains"])
        fresh = no_curves() | {"lowest_loss": list(unknown), "trusted": list(unknown)}
        if not self.carry_over and "initial_ratio" in state:
            initial = state["initial_ratio"]
            fresh |= {
                "reference_ratio": list(initial),
                "weights": self.bounds.nearest(initial, state["domains"]).tolist(),
            }
        return fresh

    def rule(self, evaluation: Evaluation) -> Decision:
        """Return the worst mixture in the ball around the ratio, which then moves.

        Raises:
            ConfigError: ``observation.final_tokens`` is missing, so there is no end of the stage to predict.
        """
        state, observation, losses, known = (
            evaluation.state,
            evaluation.observation,
            evaluation.losses,
            evaluation.known,
        )
        if not observation.final_tokens:
            raise ConfigError(
                "DRPruning predicts losses at the end of the stage, and the observation has no final_tokens",
                "Pass final_tokens=<tokens of the whole stage> in every Observation.",
            )
        final_tokens = observation.final_tokens
        progress = observation.tokens / final_tokens
        fallback = evaluation.first_losses()
        lowest = np.fmin(vector(state["lowest_loss"]), losses)
        state["lowest_loss"] = nullable(lowest)
        remember(state, observation, losses, self.collect_after_fraction, consumed=self.law == "published")
        predicted, *band = np.full((3, losses.size), np.nan)
        if progress >= self.predict_after_fraction:
            final_params = observation.params if observation.final_params is None else observation.final_params
            if self.law == "published":
                predicted = predict_published_losses(state, self.min_points, final_params, progress)
            else:
                predicted, *band = self._predict(state, final_params, final_tokens, observation.learning_rates)
        trusted = np.fmin(predicted, vector(state["trusted"]))
        trusted = np.minimum(trusted, lowest)  # NaN, where there is no prediction, stays NaN
        state["trusted"] = nullable(trusted)
        if self.predictions == "lower":
            reference = np.fmin(fallback, trusted)
        elif np.isfinite(trusted).any():
            reference = np.where(np.isfinite(trusted), trusted, np.fmin(fallback, lowest))
        else:
            reference = fallback
        if not known.any() or progress < self.update_after_fraction:
            status = UpdateStatus.WAITING if known.any() else UpdateStatus.UNCHANGED
            return Decision(status, reference, predicted=predicted, band=band)

        ratio, initial = evaluation.ratio, np.array(state["initial_ratio"])
        weights, status = best_response(
            self.solver,
            losses,
            reference,
            ratio,
            self.rho,
            self.floor,
            weights=evaluation.weights,
            noise=noise_of(observation, state["domains"], self.noise),
        )
        least = self.initial_floor * initial
        if (weights[known] < least[known]).any():  # a domain without a loss keeps its weight
            shares, total = np.maximum(weights[known], 1e-250), weights[known].sum()
            weights[known] = within(shares, np.minimum(least[known], total), np.ones(shares.size), total)
        if self.bounds:
            weights = self.bounds.nearest(weights, state["domains"], observation, ratio=ratio)
        if known.all() and progress >= self.move_ratio_after_fraction:
            state["reference_ratio"] = self._moved_ratio(weights, ratio, initial).tolist()
        return Decision(status, reference, weights, predicted, band, center=ratio)

    def _moved_ratio(self, weights: Vector, ratio: Vector, initial: Vector) -> Vector:
        """Return the ratio after an update, within its bounds."""
        if self.ratio_rule == "published":  # in float32, as there: its solver's bisection can hang on the last bit
            q, p, first = (values.astype(np.float32) for values in (weights, ratio, initial))
            delta, factor = np.float32(self.delta), np.float32(self.ratio_bound)
            single = delta * q + (1 - delta) * p
            for low, high in ((first / factor, first * factor), (first.min(), first.max())):
                single = np.clip(single / single.sum(), low, high)
            return np.asarray(single / single.sum(), dtype=np.float64)
        moved = self.delta * weights + (1 - self.delta) * ratio
        moved = np.maximum(moved, np.maximum(1e-250 * initial, LEAST_SHARE))  # a zero could not be scaled up
        return within(moved, np.maximum(initial / self.ratio_bound, LEAST_SHARE), initial * self.ratio_bound)

    def _predict(
        self, state: State, final_params: float, final_tokens: float, learning_rates: LearningRates | None
    ) -> Vector:
        """Return the accepted predictions for the end of the stage, and their bands; NaN where there is none."""
        predicted = np.full((3, len(state["domains"])), np.nan)
        for d, law in enumerate(fit_laws(state, self.min_points, learning_rates)):
            if law is not None:
                value, low, high = law.predict(final_params, final_tokens)
                if high - low <= 2 * self.max_band:
                    predicted[:, d] = value, low, high
        return predicted
