"""What the loop works with and does not change: device, precision, where records and checkpoints go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from drpruning.config import TrainingConfig
from drpruning.records import Sink
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.task_eval import Scoring
from drpruning.train.validation import Evaluator


@dataclass(frozen=True)
class Engine:
    """What the loop works with and does not change.

    Args:
        device: Where this process computes.
        training: The recipe's section.
        seed: The recipe's seed.
        evaluator: Of the held-out rows that the mixture is chosen by.
        sink: Takes the records.
        checkpoints: Where they are saved.
        written: Bytes of the records so far.
        cut_back: Drops the records after so many bytes.
        stop: Whether the run was asked to stop.
        ranks: The processes of the run.
        scoring: Tasks to score models on, if the recipe has any.
    """

    device: torch.device
    training: TrainingConfig
    seed: int
    evaluator: Evaluator
    sink: Sink
    checkpoints: Checkpoints
    written: Callable[[], int]
    cut_back: Callable[[int], None]
    stop: Callable[[], bool]
    ranks: Ranks
    scoring: Scoring | None = None

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        bfloat16 = self.training.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16)
