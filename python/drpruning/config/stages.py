"""The three stages: their length, batch and learning rates; what to prune to."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.distill import DistillConfig
from drpruning.config.section import Fraction, Positive, Rate, Section


class StageConfig(Section):
    """What every stage has: its length in optimizer steps, its batch, its learning rate."""

    steps: Positive = Field(description="optimizer steps")
    batch_size: Positive = Field(description="rows of seq_len tokens per optimizer step, over all processes")
    learning_rate: Rate = Field(description="highest rate of the weights")
    warmup: Fraction = Field(default=0.1, description="fraction of the steps in which the rate rises linearly from 0")
    schedule: Literal["cosine", "wsd"] = Field(
        default="cosine",
        description="after the warm-up: `cosine` falls to the end; `wsd` stays at the top and falls in a straight line "
        "in the last part",
    )
    decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="wsd: fraction of the steps, the last ones, in which the rate falls; missing: 0.2"
    )
    final_learning_rate: Fraction = Field(default=0.1, description="end of the fall, as a fraction of learning_rate")
    evaluate_every: Positive = Field(description="steps between evaluations; the mixture moves after each")

    @model_validator(mode="after")
    def _warmup_and_decay_fit(self) -> Self:
        if self.schedule == "wsd" and self.warmup + self.falling > 1:
            raise ValueError(f"warmup {self.warmup:g} and decay {self.falling:g} are more than the whole stage")
        return self

    @property
    def falling(self) -> float:
        """The fraction of the steps in which a ``wsd`` schedule falls: 0.2 unless given (Haegele et al. 2024)."""
        return 0.2 if self.decay is None else self.decay


class PretrainConfig(StageConfig):
    """Training of the source model from scratch, for recipes that bring no model."""

    weights: Literal["even", "reference"] = Field(
        default="even", description="mixture of this stage: all domains alike, or the reference ratio"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        default=None, description="of this stage; missing: the recipe's. With it, runs of several seeds share a base"
    )


class TargetConfig(Section):
    """Shape of the small model; what is missing is kept as in the source."""

    layers: Positive | None = Field(default=None, description="blocks kept")
    hidden: Positive | None = Field(default=None, description="hidden units kept, the same in all blocks")
    heads: Positive | None = Field(default=None, description="query heads kept in each block")
    kv_heads: Positive | None = Field(default=None, description="key/value heads kept; follows from heads")
    intermediate: Positive | None = Field(default=None, description="FFN units kept in each block")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not any(value is not None for value in self.model_dump().values()):
            raise ValueError("a target names at least one of layers, hidden, heads, kv_heads, intermediate")
        return self


class ProtectConfig(Section):
    """Units that no mask may close, as indices into the source; negative ones count from the end."""

    layers: tuple[int, ...] = Field(default=(), description="blocks")
    hidden: tuple[int, ...] = Field(default=(), description="units of the residual stream")
    heads: dict[int, tuple[int, ...]] = Field(default={}, description="by block, key/value heads")
    intermediate: dict[int, tuple[int, ...]] = Field(default={}, description="by block, FFN units")


class PruneConfig(StageConfig):
    """Learning what to keep, with masks on the source model."""

    target: TargetConfig
    mask_learning_rate: Rate | Literal["auto"] = Field(
        default="auto", description="rate of the gates' log-alpha; `auto`: 6 / sqrt(steps), at most 1"
    )
    multiplier_learning_rate: Rate | Literal["auto"] = Field(
        default="auto", description="rate of the Lagrange multipliers' ascent; `auto`: 0.4 / sqrt(steps), at most 1"
    )
    target_warmup: Fraction = Field(
        default=0.2, description="fraction of the steps in which the target sparsity rises linearly from 0"
    )
    rounds: Positive = Field(
        default=1,
        description="prune, repair, prune again: the target sparsity is reached in so many equal rises, each over "
        "target_warmup of its share of the steps, with a rest to recover after each",
    )
    protect: ProtectConfig = Field(default=ProtectConfig(), description="units that stay in any case")
    start: Literal["neutral", "taylor", "activation"] = Field(
        default="neutral",
        description="where gates start: all alike, or spread in the order of the units' importance for some batches",
    )
    initial_log_alpha: float | None = Field(
        default=None, description="start of the gates, clamped to +-4.605; higher is further open; missing: 2"
    )
    initial_log_alpha_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="standard deviation of normal noise at the start of the gates, before the clamp"
    )
    initial_quadratic_multiplier: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="start of the multiplier of the squared distance to the target sparsity; missing: 100",
    )
    schedule_gates: bool = Field(
        default=False,
        description="multiply the rates of gates and multipliers by the schedule of the weights; false: constant",
    )
    clip_gates: bool = Field(
        default=False,
        description="clip the gradient of weights, gates and multipliers together; false: that of the weights alone",
    )
    mask_values: Literal["hard", "soft"] = Field(
        default="hard",
        description="masks of kept units in evaluation: `hard` is 1; `soft` is sigmoid(1.2 log alpha), and the export "
        "multiplies it into the weights",
    )
    mask_norms: bool = Field(
        default=False, description="multiply the outputs of the norms by the hidden mask, in place of the embedding"
    )

    skip_closed: bool = Field(
        default=True, description="leave units whose mask is zero out of the computation; the results are the same"
    )

    distill: DistillConfig | None = Field(default=None, description="learning from the unpruned model as well")

    @model_validator(mode="after")
    def _rounds_have_steps(self) -> Self:
        if self.rounds > self.steps:
            raise ValueError(f"rounds {self.rounds} is more than the steps {self.steps}")
        return self

    @property
    def round_steps(self) -> int:
        """Steps from the start of one round to that of the next."""
        return self.steps // self.rounds

    def initial(self) -> dict[str, float]:
        """Where gates and multipliers start, as far as the recipe says."""
        given = {
            "log_alpha_init": self.initial_log_alpha,
            "log_alpha_init_noise": self.initial_log_alpha_noise,
            "quadratic_multiplier_init": self.initial_quadratic_multiplier,
        }
        return {name: value for name, value in given.items() if value is not None}


class ContinueConfig(StageConfig):
    """Continued pretraining of the pruned model."""

    distill: DistillConfig | None = Field(default=None, description="learning from the unpruned model as well")

    @model_validator(mode="after")
    def _teacher_is_at_hand(self) -> Self:
        if self.distill is not None and self.distill.teacher == "itself":
            raise ValueError("distill.teacher `itself` is for the prune stage: a pruned model has no unpruned self")
        return self
