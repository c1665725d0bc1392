"""Who moves the mixture, and with which settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from drpruning.config.section import Fraction, Losses, PerDomain, Rate, Section

StrategyName = Literal[
    "constant", "schedule", "sheared", "group_dro", "cvar", "chi_square", "drpruning", "ado", "doremi"
]

# Settings that every strategy reads; without reference losses of their own, some only report excess with them.
SHARED_SETTINGS = ("stages", "reference_loss", "min_share", "max_share", "max_epochs")

# Which other settings of `mixture` each strategy reads; the rest have no effect with it.
STRATEGY_SETTINGS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "schedule": ("schedule",),
    "sheared": ("eta", "smoothing", "clip_excess"),
    "group_dro": ("eta", "smoothing"),
    "cvar": ("alpha", "floor"),
    "chi_square": ("rho", "floor", "noise", "solver"),
    "drpruning": (
        "rho",
        "delta",
        "floor",
        "collect_after_fraction",
        "predict_after_fraction",
        "min_points",
        "max_band",
        "predictions",
        "move_ratio_after_fraction",
        "ratio_bound",
        "ratio_rule",
        "initial_floor",
        "update_after_fraction",
        "noise",
        "law",
        "carry_over",
        "solver",
    ),
    "ado": ("credit_power", "credit_decay", "inertia", "min_preference", "collect_after_fraction", "min_points"),
    "doremi": ("eta", "smoothing"),
}


def _file_name(text: str) -> str:
    if not any(mark in text for mark in "./\\"):
        raise ValueError(
            "expected losses by domain, `base`, or a file of losses of finished models, such as sizes.json"
        )
    return text


class ChangeConfig(Section):
    """From a moment of the stage on, these weights."""

    at: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(description="optimizer steps, or tokens")
    weights: PerDomain = Field(description="mixture of all domains")


class ScheduleConfig(Section):
    """A history of weights, for each stage."""

    unit: Literal["step", "tokens"] = Field(default="step", description="what `at` counts")
    stages: dict[str, tuple[ChangeConfig, ...]] = Field(
        description="for `prune` and `continue` the changes, each `{at: 400, weights: {web: 0.6, code: 0.4}}`"
    )

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        if list(self.stages) not in (["prune"], ["continue"], ["prune", "continue"]):
            raise ValueError("a schedule has the stage prune, continue, or both in this order")
        return self


class MixtureConfig(Section):
    """The strategy that moves the mixture, and its settings; what is missing has the strategy's default."""

    strategy: StrategyName = Field(default="drpruning", description="who chooses the mixture after each evaluation")
    stages: tuple[Literal["prune", "continue"], ...] = Field(
        default=("prune", "continue"),
        min_length=1,
        description="where the strategy moves the mixture; in the other stage the reference ratio stays. Without a "
        "section `prune` the default is `[continue]`",
    )
    min_share: Fraction | dict[str, Fraction] | None = Field(
        default=None, description="all: least weight, one for all domains or by domain"
    )
    max_share: Fraction | dict[str, Fraction] | None = Field(
        default=None, description="all: largest weight, one for all domains or by domain"
    )
    max_epochs: Rate | dict[str, Rate] | None = Field(
        default=None, description="all: how often a domain may be gone through in a stage, for all domains or by domain"
    )
    schedule: str | ScheduleConfig | None = Field(
        default=None,
        description="schedule: the weights to replay; a run folder, its metrics.jsonl, a YAML file, or written out",
    )
    alpha: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="cvar: the fraction of the reference ratio that the worst domains make up"
    )
    reference_loss: Literal["base"] | Losses | Annotated[str, AfterValidator(_file_name)] | None = Field(
        default=None,
        description="nats per token and domain to measure excess against: given; `base`, the unpruned model's own; or "
        "a file of losses of finished models of several sizes, from which a law gives those at the target's size",
    )
    rho: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="drpruning, chi_square: radius of the chi-square ball, halved divergence"
    )
    delta: Fraction | None = Field(
        default=None, description="drpruning: how far the reference ratio moves to the weights after an evaluation"
    )
    floor: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="drpruning, chi_square, cvar: least weight of a domain, as a fraction of its reference ratio, "
        "which drpruning moves",
    )
    initial_floor: Fraction | None = Field(
        default=None, description="drpruning: least weight of a domain, as a fraction of its initial reference ratio"
    )
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="drpruning, chi_square: standard errors of an excess loss that count as noise; 0: none do",
    )
    update_after_fraction: Fraction | None = Field(
        default=None, description="drpruning: part of the stage before the weights move for the first time"
    )
    collect_after_fraction: Fraction | None = Field(
        default=None, description="drpruning, ado: part of the stage before losses are collected for the law"
    )
    predict_after_fraction: Fraction | None = Field(
        default=None, description="drpruning: part of the stage before predicted reference losses are used"
    )
    min_points: Annotated[int, Field(ge=4)] | None = Field(
        default=None, description="drpruning, ado: losses needed to fit the law"
    )
    max_band: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="drpruning: half width in nats of the 90% band beyond which no prediction is believed"
    )
    predictions: Literal["replace", "lower"] | None = Field(
        default=None, description="drpruning: what predictions do to reference losses that were given"
    )
    move_ratio_after_fraction: Fraction | None = Field(
        default=None, description="drpruning: part of the stage before the reference ratio moves"
    )
    ratio_bound: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="drpruning: the reference ratio stays within this factor of the initial one"
    )
    ratio_rule: Literal["factor", "published"] | None = Field(
        default=None,
        description="drpruning: how it stays there: the nearest ratio, or the clamps of the paper's public code, which "
        "keep it within the smallest and the largest initial share as well",
    )
    law: Literal["robust", "published"] | None = Field(
        default=None,
        description="drpruning: how the law is fitted: as `drpruning fit` does, or as the public code does",
    )
    carry_over: bool | None = Field(
        default=None,
        description="drpruning: the stage continue starts from the weights and the ratio of the stage prune; "
        "false: from the reference ratio",
    )
    solver: Literal["exact", "published"] | None = Field(
        default=None,
        description="drpruning, chi_square: the exact worst case, or the update of the paper's public code",
    )
    eta: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="sheared, group_dro, doremi: step of the exponentiated update, per nat"
    )
    smoothing: Fraction | None = Field(
        default=None, description="sheared, group_dro, doremi: share that is spread evenly"
    )
    clip_excess: bool | None = Field(
        default=None,
        description="sheared: a loss below its reference counts as zero excess, as in the paper; false: as in the "
        "public code, where such a domain loses weight",
    )

    credit_power: Fraction | None = Field(
        default=None, description="ado: exponent of the share of recent data in a domain's learning speed"
    )
    credit_decay: Fraction | None = Field(default=None, description="ado: what a step leaves of the credit before it")
    inertia: Fraction | None = Field(default=None, description="ado: weight of the mean over time in the mixture")
    min_preference: Fraction | None = Field(default=None, description="ado: least preference for a domain")

    @property
    def sizes_file(self) -> str | None:
        """The file of losses of finished models that the reference losses come from, if any."""
        given = self.reference_loss
        return given if isinstance(given, str) and given != "base" else None

    def reads(self) -> tuple[str, ...]:
        """The settings that this strategy reads."""
        return (*SHARED_SETTINGS, *STRATEGY_SETTINGS[self.strategy])

    def settings(self) -> dict[str, Any]:
        """What was set of the strategy's own settings and bounds, as plain data."""
        return self.model_dump(include=set(self.reads()) - {"stages", "reference_loss"}, exclude_none=True)
