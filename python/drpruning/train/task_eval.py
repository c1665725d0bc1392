"""Scores of a run's models on tasks of lm-evaluation-harness, in training and at the end of a stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from drpruning.config import TaskEvalConfig
from drpruning.evaluation.tasks import Tasks
from drpruning.records import Sink
from drpruning.train.state import StageState

STAGE, MODEL = "continue", "recovered"  # the stage that is scored in training, and the name of its final model


@dataclass(frozen=True)
class TaskEval:
    """The tasks of a run.

    Args:
        settings: The recipe's section.
        tasks: The tasks it names.
        tokenizer: The corpus's.
    """

    settings: TaskEvalConfig
    tasks: Tasks
    tokenizer: Any

    def due(self, stage: StageState) -> bool:
        """Return whether the model in training is scored at this step."""
        return stage.name == STAGE and stage.step in self.settings.at_steps

    def in_training(self, stage: StageState, sink: Sink) -> None:
        """Score the model in training, without an effect on it."""
        self._write(stage.model, sink, MODEL, stage.name, stage.step)

    def finished(self, model: nn.Module, name: str, sink: Sink) -> None:
        """Score ``base``, ``pruned`` or ``recovered``."""
        self._write(model, sink, name, None, None)

    def _write(self, model: nn.Module, sink: Sink, name: str, stage: str | None, step: int | None) -> None:
        settings = self.settings
        scores = self.tasks.score(model, self.tokenizer, limit=settings.limit, batch_size=settings.batch_size)
        for score in scores:
            sink.write(score.record(name, stage, step))
