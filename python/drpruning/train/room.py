"""Whether a run can be written where it shall be, asked before any time is spent."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

from drpruning.config import RunConfig, TrainingConfig
from drpruning.errors import DiskError
from drpruning.formatting import size_in_words
from drpruning.pruning import Target, parameter_count
from drpruning.train.any_model import count_of
from drpruning.train.optimizer.moments import BLOCK

WEIGHT_BYTES = {"float32": 4, "bfloat16+low16": 4, "bfloat16": 2}
MOMENT_BYTES = {"float32": 8, "bfloat16": 4, "int8": 2 * (1 + 4 / BLOCK)}  # both of AdamW; with int8 also the scales
EXPORT_BYTES = 4  # float32


def check_room(folder: Path, config: RunConfig, source: Any) -> None:
    """Makes sure that the run folder can be written and that checkpoints and models have room.

    Args:
        folder: The run folder; it need not exist.
        config: The recipe.
        source: transformers configuration of the large model.

    Raises:
        DiskError: Says what is missing.
    """
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DiskError(f"no permission to write in {parent}, where the run folder is to be", "Give another --out.")
    needed = bytes_of_run(config, source) - _bytes_in(folder)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DiskError(
            f"the run needs up to {size_in_words(needed)} in {folder}, and {size_in_words(free)} are free there",
            "Make room, give another --out, or keep fewer checkpoints (training.keep_checkpoints).",
        )


def bytes_of_run(config: RunConfig, source: Any) -> int:
    """The most that a run folder holds: checkpoints, one of them under way, and the models of each strategy.

    Those of the prune stage stay until the small model is trained.
    """
    strategies, models = {config.reweight.strategy, *config.compare}, 2  # pruned/ and export/
    if config.prune is None:
        large, small, models = 0, count_of(source), 1
    else:
        large = 0 if config.model.source == "scratch" else parameter_count(source)
        small = parameter_count(source, Target(**config.prune.target.model_dump()).resolve(source))
    keep = config.training.keep_checkpoints
    kept = max((keep + 1) * large, keep * large + (keep + 1) * small)
    return math.ceil(kept * checkpoint_bytes(config.training)) + len(strategies) * models * small * EXPORT_BYTES


def checkpoint_bytes(training: TrainingConfig) -> float:
    """Bytes of a parameter in a checkpoint: of its weight, the low half where there is one, and the moments."""
    return WEIGHT_BYTES[training.weights] + MOMENT_BYTES[training.moments]


def _bytes_in(folder: Path) -> int:
    """What is in the folder already: it makes room for what follows."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
