"""Whether a run can be written where it shall be, asked before any time is spent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from drpruning.amounts import size_in_words
from drpruning.config import RunConfig
from drpruning.errors import DiskError
from drpruning.pruning import Target, parameter_count

CHECKPOINT_BYTES = 12  # float32 weight and the two moments of AdamW, per parameter
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
    """The most that a run folder holds: checkpoints of the large model, one of them under way, and both models."""
    large = parameter_count(source)
    small = parameter_count(source, Target(**config.prune.target.model_dump()).resolve(source))
    checkpoints = config.training.keep_checkpoints + 1
    return large * CHECKPOINT_BYTES * checkpoints + 2 * small * EXPORT_BYTES


def _bytes_in(folder: Path) -> int:
    """What is in the folder already: it makes room for what follows."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
