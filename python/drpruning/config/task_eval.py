"""Tasks to score a run's models on, and when."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from drpruning.config.section import Positive, Section


class TaskEvalConfig(Section):
    """Tasks of lm-evaluation-harness: finished models are scored on them, and the model in training at given steps."""

    tasks: tuple[str, ...] = Field(
        default=(),
        description="names; folders of tasks such as `drpruning benchmark build` writes; or lists with shots: `paper`, "
        "`sheared` or a YAML file",
    )
    at_steps: tuple[Positive, ...] = Field(
        default=(), description="steps of the stage `continue` after which the model is scored as well"
    )
    limit: Positive | None = Field(default=None, description="documents of each task, at most; missing: all")
    batch_size: Positive = Field(default=8, description="documents in a forward pass")

    @model_validator(mode="after")
    def _steps_have_tasks(self) -> Self:
        if self.at_steps and not self.tasks:
            raise ValueError("at_steps names steps, but there are no tasks to score the model on")
        return self
