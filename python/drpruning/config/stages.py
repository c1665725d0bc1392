"""The sections of the stages pretrain, prune and continue, with the target shape and protected units."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from drpruning.config.distill import DistillConfig
from drpruning.config.section import Fraction, Positive, Rate, Section, Shares
from drpruning.errors import ConfigError
from drpruning.formatting import flops_in_words
from drpruning.mixture.static import check_name


class StageConfig(Section):
    """The settings of every stage: length, batch, learning rate, evaluations."""

    steps: Positive = Field(description="Number of optimizer steps.")
    batch_size: Positive = Field(description="Rows of data.seq_len tokens per optimizer step, over all processes.")
    learning_rate: Rate = Field(description="Peak learning rate of the weights.")
    warmup_fraction: Fraction = Field(
        default=0.1, description="Fraction of the steps in which the learning rate rises linearly from 0."
    )
    lr_schedule: Literal["cosine", "wsd"] = Field(
        default="cosine",
        description="Learning-rate schedule after the warm-up: `cosine` decays until the end; `wsd` stays at the peak "
        "and decays linearly in the last steps.",
    )
    decay_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Fraction of the steps, at the end, in which a `wsd` schedule decays. Default: 0.2."
    )
    min_lr_ratio: Fraction = Field(
        default=0.1, description="Learning rate at the end of the decay, as a fraction of learning_rate."
    )
    eval_every: Positive = Field(
        description="Optimizer steps between evaluations. The mixture is updated after each evaluation."
    )

    @model_validator(mode="after")
    def _warmup_and_decay_fit(self) -> Self:
        if self.lr_schedule == "wsd" and self.warmup_fraction + self.wsd_decay_fraction > 1:
            fractions = f"warmup_fraction {self.warmup_fraction:g} and decay_fraction {self.wsd_decay_fraction:g}"
            raise ValueError(f"{fractions} sum to more than 1")
        return self

    @property
    def wsd_decay_fraction(self) -> float:
        """The fraction of the steps in which a ``wsd`` schedule decays; the default is from Haegele et al. 2024."""
        return 0.2 if self.decay_fraction is None else self.decay_fraction


def _pretrain_mixture(text: str) -> str:
    return text if text == "reference" else check_name(text)


class PretrainConfig(StageConfig):
    """Training of the large model from new weights, for recipes without a trained model."""

    mixture: Shares | Annotated[str, AfterValidator(_pretrain_mixture)] = Field(
        default="uniform",
        description="Mixture of this stage: `reference` for the reference ratio; the share of each domain; or the name "
        "of a static mixture, as in data.reference_ratio, with the tokens of this stage.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        default=None,
        description="Seed of this stage. Default: the seed of the recipe. With this setting, runs with several seeds "
        "share a base model.",
    )


class TargetConfig(Section):
    """Shape of the pruned model; a missing size is that of the large model."""

    layers: Positive | None = Field(default=None, description="Number of blocks.")
    hidden: Positive | None = Field(default=None, description="Number of hidden units, the same in all blocks.")
    heads: Positive | None = Field(default=None, description="Number of query heads in each block.")
    kv_heads: Positive | None = Field(
        default=None, description="Number of key/value heads. Default: it follows from heads."
    )
    intermediate: Positive | None = Field(
        default=None, description="Number of FFN units in each block; in a mixture of experts in each expert."
    )
    experts: Positive | None = Field(
        default=None, description="Number of experts in each block of a mixture of experts."
    )

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not any(value is not None for value in self.model_dump().values()):
            raise ValueError("a target names at least one of layers, hidden, heads, kv_heads, intermediate, experts")
        return self


class ProtectConfig(Section):
    """Units that are never pruned, as indices in the large model; negative indices count from the end."""

    layers: tuple[int, ...] = Field(default=(), description="Blocks.")
    hidden: tuple[int, ...] = Field(default=(), description="Units of the residual stream.")
    heads: dict[int, tuple[int, ...]] = Field(default={}, description="Key/value heads by block.")
    intermediate: dict[int, tuple[int, ...]] = Field(default={}, description="FFN units by block.")
    experts: dict[int, tuple[int, ...]] = Field(default={}, description="Experts by block.")


class MeasuresConfig(Section):
    """Measures of importance by kind of unit."""

    depth: Literal["taylor", "activation"] = Field(
        description="Measure of blocks: `activation` is their block influence, 1 - cos(input, output)."
    )
    width: Literal["taylor", "activation"] = Field(description="Measure of heads, FFN units, hidden units and experts.")


class CalibrationConfig(Section):
    """Training text for the importance of units and for the repair."""

    tokens: Positive = Field(
        default=65_536,
        description="Number of tokens, in whole micro-batches. Four times as many hardly change the importance.",
    )
    rows: Literal["ratio", "even"] = Field(
        default="ratio", description="Share of each domain in the rows: its reference ratio, or the same for all."
    )
    combine: Literal["ratio", "even", "worst_case"] | None = Field(
        default=None,
        description="Measure importance in each domain, and combine the scores: at the reference ratio, evenly, or for "
        "the smallest worst case of the cut over the domains. Default: measure on batches of all domains.",
    )
    rho: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=0.1, description="Radius of the ball of `combine: worst_case`."
    )


class PruneConfig(StageConfig):
    """Training of masks on the large model, down to the target shape."""

    target: TargetConfig
    gates: Literal["hard_concrete", "deterministic"] = Field(
        default="hard_concrete",
        description="Masks in training: `hard_concrete` samples them and reaches the scheduled size by Lagrange "
        "multipliers; `deterministic` masks have no noise and the scheduled size in every step.",
    )
    gate_learning_rate: Rate | Literal["auto"] = Field(
        default="auto",
        description="Learning rate of the gates. `auto` is 6 / sqrt(steps), with deterministic gates 2 / sqrt(steps), "
        "at most 1; in a one-shot cut (`steps: 1` and a `gate_init` by importance) 0.",
    )
    multiplier_learning_rate: Rate | Literal["auto"] = Field(
        default="auto", description="Learning rate of the Lagrange multipliers. `auto` is 0.4 / sqrt(steps), at most 1."
    )
    sparsity_warmup_fraction: Fraction = Field(
        default=0.2, description="Fraction of the steps in which the scheduled sparsity rises linearly from 0."
    )
    cycles: Positive = Field(
        default=1,
        description="Number of cycles of pruning and recovery, of the same number of steps. In the first "
        "sparsity_warmup_fraction of a cycle the scheduled sparsity rises, by the same fraction of the units that are "
        "left, and then stays.",
    )
    rescore_cycles: bool = Field(
        default=False,
        description="Score the active units again at the start of each cycle, by gate_init; with deterministic gates.",
    )
    protect: ProtectConfig = Field(default=ProtectConfig(), description="Units that are never pruned.")
    gate_init: Literal["uniform", "taylor", "activation"] | MeasuresConfig = Field(
        default="uniform",
        description="Initial gates: `uniform` for the same value, or spread by the importance of the units for some "
        "batches: one measure, or one for `depth` and one for `width`.",
    )
    calibration: CalibrationConfig = Field(
        default=CalibrationConfig(), description="Training text for importance and repair."
    )
    repair: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Repair the extracted model by a ridge regression on the calibration text: the ridge, relative to "
        "the mean square of a projection's inputs; 0.01 is usual. Default: no repair.",
    )
    log_alpha_init: float | None = Field(
        default=None, description="Initial value of the gates (log alpha), clamped to +-4.605. Default: 2."
    )
    log_alpha_init_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="Standard deviation of the normal noise of the initial gates, before the clamp."
    )
    quadratic_multiplier_init: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="Initial multiplier of the squared distance to the scheduled sparsity. Default: 100.",
    )
    schedule_gates: bool = Field(
        default=False,
        description="Apply the learning-rate schedule of the weights to gates and multipliers as well.",
    )
    clip_gates: bool = Field(
        default=False,
        description="Clip the gradient of weights, gates and multipliers by their common norm; else that of the "
        "weights.",
    )
    mask_values: Literal["hard", "soft"] = Field(
        default="hard",
        description="Masks of kept units in evaluation: `hard` is 1; `soft` is sigmoid(1.2 log alpha), which the "
        "export multiplies into the weights.",
    )
    mask_norms: bool = Field(
        default=False, description="Multiply the outputs of the norms by the hidden mask, instead of the embedding."
    )
    skip_pruned_units: bool = Field(
        default=True,
        description="Skip the computation of units whose mask is zero. The results are the same. Deterministic gates "
        "compute all units.",
    )
    distill: DistillConfig | None = Field(default=None, description="Distillation from the unpruned model.")

    @model_validator(mode="after")
    def _rounds_have_steps(self) -> Self:
        if self.cycles > self.steps:
            raise ValueError(f"cycles {self.cycles} is more than the steps {self.steps}")
        return self

    @model_validator(mode="after")
    def _soft_values_are_sampled(self) -> Self:
        if self.gates == "deterministic" and self.mask_values == "soft":
            raise ValueError("mask_values `soft` is for gates `hard_concrete`, got gates `deterministic`")
        return self

    @model_validator(mode="after")
    def _rescoring_has_gates_and_scores(self) -> Self:
        if self.rescore_cycles and (self.gates != "deterministic" or self.gate_init == "uniform"):
            raise ValueError(
                "rescore_cycles needs gates `deterministic` and gate_init `taylor` or `activation`, got "
                f"`{self.gates}` and `{self.gate_init}`"
            )
        if self.rescore_cycles and self.calibration.combine is not None:
            raise ValueError("rescore_cycles scores the units on all domains together; leave calibration.combine out")
        return self

    @property
    def one_shot(self) -> bool:
        """Whether the stage has one step, in which no weight moves, so that importance alone decides what stays."""
        return self.steps == 1 and self.gate_init != "uniform"

    @property
    def skips_pruned_units(self) -> bool:
        """Whether a training step leaves out units whose mask is zero."""
        return self.skip_pruned_units and self.gates == "hard_concrete"

    @property
    def cycle_steps(self) -> int:
        """Optimizer steps of a cycle."""
        return self.steps // self.cycles

    def initial(self) -> dict[str, float]:
        """Return the initial values of gates and multipliers that the recipe sets, by argument of MaskedModel."""
        given = {
            "log_alpha_init": self.log_alpha_init,
            "log_alpha_init_noise": self.log_alpha_init_noise,
            "quadratic_multiplier_init": self.quadratic_multiplier_init,
        }
        return {name: value for name, value in given.items() if value is not None}


class ContinueConfig(StageConfig):
    """Continued pretraining of the pruned model."""

    distill: DistillConfig | None = Field(default=None, description="Distillation from the unpruned model.")
    charged_flops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Charged FLOPs of the whole run, without pretrain, at the end of this stage. The number of its "
        "steps follows when it begins, and eval_every changes in proportion. Default: the stage has `steps`.",
    )

    @model_validator(mode="after")
    def _teacher_is_available(self) -> Self:
        if self.distill is not None and self.distill.teacher == "self":
            raise ValueError("distill.teacher `self` is for the prune stage: the pruned model cannot run unpruned")
        return self

    def within_budget(self, spent: float, step: float) -> ContinueConfig:
        """Return these settings with the number of steps that ends nearest to ``charged_flops``.

        The number of evaluations stays, up to rounding. Warm-up and decay are fractions of the steps.

        Args:
            spent: Charged FLOPs of the stages before.
            step: Charged FLOPs of a step of this stage.

        Raises:
            ConfigError: The budget is spent, or less than half a step of it is left.

        Example:
            >>> stage = ContinueConfig(steps=100, batch_size=1, learning_rate=1e-3, eval_every=10, charged_flops=1e9)
            >>> fitted = stage.within_budget(spent=4e8, step=1.5e7)
            >>> fitted.steps, fitted.eval_every
            (40, 4)
        """
        if self.charged_flops is None:
            return self
        steps = round((self.charged_flops - spent) / step)
        if steps < 1:
            raise ConfigError(
                f"continue.charged_flops is {flops_in_words(self.charged_flops)}, and the stages before have charged "
                f"{flops_in_words(spent)}: expected at least one step of {flops_in_words(step)} more",
                "Raise the budget, or lower the cost of the prune stage (prune.steps, prune.distill).",
            )
        return self.model_copy(
            update={"steps": steps, "eval_every": max(1, round(self.eval_every * steps / self.steps))}
        )
