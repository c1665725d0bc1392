"""Whether a run has room on its disk and in the memory of its machine, checked before any time is spent."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from drpruning.config import RunConfig, TrainingConfig
from drpruning.errors import ConfigError, DiskError
from drpruning.formatting import size_in_words
from drpruning.pruning import Target, parameter_count
from drpruning.train.device import choose_device
from drpruning.train.distributed.fsdp import num_shards
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.model_structure import count_of
from drpruning.train.optimizers.quantized_moments import BLOCK

WEIGHT_BYTES = {"float32": 4, "bfloat16+low16": 4, "bfloat16": 2}
MOMENT_BYTES = {"float32": 8, "bfloat16": 4, "int8": 2 * (1 + 4 / BLOCK)}  # both of AdamW; with int8 also the scales
EXPORT_BYTES = 4  # float32
CGROUP = Path("/sys/fs/cgroup")  # version 2


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


def check_memory(config: RunConfig, source: Any, ranks: Ranks) -> None:
    """Check that this machine's memory holds the copies of a checkpoint that its processes write in the background.

    Args:
        config: The recipe.
        source: transformers configuration of the large model.
        ranks: The processes of the run.

    Raises:
        ConfigError: It does not.
    """
    training, free = config.training, available_memory()
    if free is None or not writes_in_background(training, choose_device(training.device, ranks)):
        return
    shards = num_shards(training.shards, ranks)
    needed = math.ceil(max(_parameters(config, source)) * checkpoint_bytes(training) * ranks.local_size / shards)
    if free < needed:
        raise ConfigError(
            f"copies of a checkpoint need {size_in_words(needed)} of this machine's memory; "
            f"{size_in_words(free)} are free",
            "Write checkpoints while training waits: --set training.async_checkpoints=false",
        )


def writes_in_background(training: TrainingConfig, device: torch.device) -> bool:
    """Whether checkpoints are written while training runs: where there is a GPU, unless the recipe decides."""
    return device.type == "cuda" if training.async_checkpoints is None else training.async_checkpoints


def available_memory() -> int | None:
    """Return the bytes that processes can still take, by Linux and by the limit of a container; None: unknown."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):
        most, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        found.append(most - used)
    return min(found, default=None)


def bytes_of_run(config: RunConfig, source: Any) -> int:
    """The most that a run folder holds: checkpoints, one of them under way, and the models of each strategy.

    Those of the prune stage stay until the small model is trained.
    """
    strategies, models = {config.mixture.strategy, *config.compare}, 2  # pruned/ and export/
    large, small = _parameters(config, source)
    if config.prune is None:
        models = 1
    keep = config.training.keep_checkpoints
    kept = max((keep + 1) * large, keep * large + (keep + 1) * small)
    return math.ceil(kept * checkpoint_bytes(config.training)) + len(strategies) * models * small * EXPORT_BYTES


def _parameters(config: RunConfig, source: Any) -> tuple[int, int]:
    """Parameters of the models that the prune stage and the continue stage train; 0: there is no such stage."""
    if config.prune is None:
        return 0, count_of(source)
    large = 0 if config.model.source == "scratch" else parameter_count(source)
    return large, parameter_count(source, Target(**config.prune.target.model_dump()).resolve(source))


def checkpoint_bytes(training: TrainingConfig) -> float:
    """Bytes of a parameter in a checkpoint: of its weight, the low half where there is one, and the moments."""
    return WEIGHT_BYTES[training.weights] + MOMENT_BYTES[training.moments]


def _bytes_in(folder: Path) -> int:
    """What is in the folder already: it makes room for what follows."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
