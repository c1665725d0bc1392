"""Scores on tasks of lm-evaluation-harness, of a run's finished models and of the one in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from drpruning.config import EvaluateConfig
from drpruning.errors import ConfigError
from drpruning.evaluation.tasks import Tasks, find_tasks
from drpruning.records import Sink
from drpruning.train.ranks import Ranks
from drpruning.train.state import StageState

STAGE, MODEL = "continue", "recovered"  # the stage that is scored on its way, and what its model becomes


@dataclass(frozen=True)
class Scoring:
    """What a run scores its models on.

    Args:
        settings: The recipe's section.
        tasks: Found.
        tokenizer: The corpus's.
    """

    settings: EvaluateConfig
    tasks: Tasks
    tokenizer: Any

    def due(self, stage: StageState) -> bool:
        """Whether the model in training is to be scored at this step."""
        return stage.name == STAGE and stage.step in self.settings.at

    def in_training(self, stage: StageState, sink: Sink) -> None:
        """Scores the model where it stands; what is learned does not change."""
        self._write(stage.model, sink, MODEL, stage.name, stage.step)

    def finished(self, model: nn.Module, name: str, sink: Sink) -> None:
        """Scores ``base``, ``pruned`` or ``recovered``."""
        self._write(model, sink, name, None, None)

    def _write(self, model: nn.Module, sink: Sink, name: str, stage: str | None, step: int | None) -> None:
        settings = self.settings
        scores = self.tasks.score(model, self.tokenizer, limit=settings.limit, batch_size=settings.batch_size)
        for score in scores:
            sink.write(score.record(name, stage, step))


def find_scoring(settings: EvaluateConfig, tokenizer: Any, ranks: Ranks) -> Scoring | None:
    """What the recipe asks for; None if that is nothing.

    Raises:
        ConfigError: There is no such task, the corpus does not hold its tokenizer, or there are several processes.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    if not settings.tasks:
        return None
    if not ranks.alone:
        raise ConfigError(
            f"evaluate.tasks needs one process, and there are {ranks.world_size}",
            "Score the finished models with `drpruning eval tasks RUN --task ...`.",
        )
    if tokenizer is None:
        raise ConfigError("evaluate.tasks needs the tokenizer, which the corpus does not hold")
    return Scoring(settings, find_tasks(settings.tasks), tokenizer)
