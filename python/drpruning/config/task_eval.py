"""The section ``task_eval``: benchmark tasks for the models of a run."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from drpruning.config.section import Positive, Section


class TaskEvalConfig(Section):
    """Tasks of lm-evaluation-harness, on which finished models are scored, and the model in training at some steps."""

    tasks: tuple[str, ...] = Field(
        default=(),
        description="Tasks: names; folders that `drpruning benchmark build` wrote; or lists with the number of shots: "
        "`paper`, `sheared` or a YAML file.",
    )
    at_steps: tuple[Positive, ...] = Field(
        default=(), description="Steps of the stage continue after which the model in training is scored."
    )
    limit: Positive | None = Field(default=None, description="Maximum number of documents per task. Default: all.")
    batch_size: Positive = Field(default=8, description="Documents per forward pass.")

    @model_validator(mode="after")
    def _steps_have_tasks(self) -> Self:
        if self.at_steps and not self.tasks:
            raise ValueError("at_steps names steps, but there are no tasks to score the model on")
        return self
