"""All that the stages of a run share and do not change: recipe, data, device, ranks, records and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drpruning.config import RunConfig, TrainingConfig
from drpruning.corpus import Corpus
from drpruning.records import Record, Sink, read_records
from drpruning.run_folder import RunFolder
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.distributed.fsdp import load_model, place_model
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.task_eval import TaskEval
from drpruning.train.validation import Validator


@dataclass(frozen=True)
class TrainContext:
    """The context of a run's stages.

    Args:
        config: The recipe.
        folder: The run folder.
        corpus: The recipe's corpus.
        base_config: transformers configuration of the large model.
        tokenizer: The corpus's, saved with each model; None where the corpus does not hold it.
        device: The device of this process.
        ranks: The processes of the run.
        validator: Measures the validation rows, by which the mixture is chosen.
        final_validator: Measures finished models on the test rows.
        sink: Takes the records.
        checkpoints: Writes and reads checkpoints.
        records_size: Returns the bytes of the records so far.
        truncate_records: Drops the records after a number of bytes.
        stop: Returns whether the run is to stop.
        task_eval: Tasks to score models on, if the recipe has any.
    """

    config: RunConfig
    folder: RunFolder
    corpus: Corpus
    base_config: Any
    tokenizer: Any
    device: torch.device
    ranks: Ranks
    validator: Validator
    final_validator: Validator
    sink: Sink
    checkpoints: Checkpoints
    records_size: Callable[[], int]
    truncate_records: Callable[[int], None]
    stop: Callable[[], bool]
    task_eval: TaskEval | None = None

    @property
    def training(self) -> TrainingConfig:
        """The recipe's section ``training``."""
        return self.config.training

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return self.config.seed

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass in the recipe's dtype."""
        bfloat16 = self.training.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16)

    def history(self) -> list[Record]:
        """Return the records of the run so far."""
        return self.ranks.agree(lambda: list(read_records(self.folder.metrics)))

    def has(self, folder: Path) -> bool:
        """Return whether ``folder`` exists on rank 0."""
        return self.ranks.agree(folder.is_dir)

    def place_model(self, model: Any) -> Any:
        """Move a model to the device, or shard it, see :func:`drpruning.train.distributed.fsdp.place_model`."""
        return place_model(model, self.device, self.ranks, self.training)

    def load_model(self, source: str | Path, **options: Any) -> Any:
        """Load a model to the device, or sharded; options of :func:`drpruning.train.distributed.fsdp.load_model`."""
        return load_model(source, self.device, self.ranks, self.training, **options)
