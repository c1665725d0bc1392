"""Distillation: learning from the unpruned model beside the text, in the prune or the continue stage."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.section import Fraction, Positive, Rate, Section

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DistillConfig(Section):
    """What the unpruned model teaches beside the text; `docs/distillation.md` has the formulas."""

    weight: Fraction = Field(default=0.5, description="share of the divergence from the teacher's next-token logits")
    temperature: Rate = Field(
        default=1.0, description="of both softmaxes; their divergence is multiplied by its square"
    )
    top_k: Positive | None = Field(
        default=None, description="compare the teacher's so many likeliest tokens and the rest as one; missing: all"
    )
    hidden_weight: NonNegative = Field(
        default=0.0, description="weight of the mean squared distance between the residual streams after kept blocks"
    )
    teacher: Literal["source", "self"] = Field(
        default="source",
        description="`source`: a second copy of the unpruned model, frozen; `self` (prune only): the model being "
        "pruned with no mask applied, which takes no memory but changes with training",
    )

    @model_validator(mode="after")
    def _teaches_something(self) -> Self:
        if self.weight == 0 and self.hidden_weight == 0:
            raise ValueError("weight and hidden_weight are both 0, so that nothing is distilled; leave the section out")
        return self
