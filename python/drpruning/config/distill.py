"""The section ``distill`` of the stages prune and continue: distillation from the unpruned model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.section import Fraction, Positive, Rate, Section

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DistillConfig(Section):
    """Distillation from the unpruned model, in addition to the next-token loss; `docs/distillation.md` has formulas."""

    weight: Fraction = Field(
        default=0.5,
        description="Weight of the divergence from the teacher's next-token distribution; the next-token loss has the "
        "rest.",
    )
    final_weight: Fraction | None = Field(
        default=None,
        description="Weight after the last step of the stage; it changes linearly from `weight`. Default: `weight`.",
    )
    temperature: Rate = Field(
        default=1.0, description="Temperature of both softmaxes. The divergence is multiplied by its square."
    )
    top_k: Positive | None = Field(
        default=None,
        description="Number of the teacher's most likely tokens to compare; the rest counts as one token. Default: "
        "all.",
    )
    max_confidence: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Tokens whose likeliest next token has a higher probability under the teacher (at temperature 1) "
        "are trained on the next-token loss alone.",
    )
    hidden_weight: NonNegative = Field(
        default=0.0, description="Weight of the mean squared distance between the residual streams after kept blocks."
    )
    teacher: Literal["source", "self"] = Field(
        default="source",
        description="Teacher: `source` is a second, frozen copy of the unpruned model. `self` (stage prune only) is "
        "the model in training without masks; it takes no memory, but it changes during training.",
    )

    stored: str | None = Field(
        default=None,
        description="Folder of `drpruning teach`: the divergence is computed from the stored distributions, and no "
        "teacher is loaded. Default: the teacher runs in each step.",
    )
    missing: Literal["error", "compute"] = Field(
        default="error",
        description="Rows that are not stored: `error` before training; `compute` loads the teacher and runs it for "
        "these rows.",
    )

    @model_validator(mode="after")
    def _distils_something(self) -> Self:
        if self.weight == 0 and not self.final_weight and self.hidden_weight == 0:
            raise ValueError("all weights are 0, so that nothing is distilled; leave the section out")
        return self

    @model_validator(mode="after")
    def _stored_distributions_suffice(self) -> Self:
        if self.stored is None:
            if self.missing != "error":
                raise ValueError("missing needs `stored`: without it the teacher runs for all rows")
            return self
        if self.teacher != "source":
            raise ValueError(f"teacher `{self.teacher}` changes in training and cannot be `stored`")
        if self.max_confidence < 1 or self.hidden_weight:
            name = "hidden_weight" if self.hidden_weight else "max_confidence"
            raise ValueError(f"{name} needs the teacher in each step; `stored` holds tokens of its distributions only")
        return self

    @property
    def runs_teacher(self) -> bool:
        """Whether the teacher is loaded and runs in training."""
        return self.stored is None or self.missing == "compute"

    def weight_at(self, progress: float) -> float:
        """Return the weight of the divergence after a fraction of the stage's steps."""
        if self.final_weight is None:
            return self.weight
        return self.weight + (self.final_weight - self.weight) * progress
