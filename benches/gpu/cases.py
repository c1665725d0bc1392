"""What is measured: stages of the shipped recipes with settings of their own."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drpruning.config import RunConfig
from drpruning.planning.memory import stage_memory
from drpruning.planning.recipe import source_of
from drpruning.recipes import load_recipe

WARM = 3  # steps that are not counted: kernels are compiled and chosen, the allocator and the optimizer fill up
SAVED_AFTER = 4  # counted steps before the checkpoint, in the case that writes one
BATCH = 32  # rows of a step: the recipes' in the prune stage; an eighth of theirs in the continue stage
TINY = {
    "model.architecture": {"layers": 3, "hidden": 64, "heads": 4, "intermediate": 96, "vocabulary": 512},
    "prune.target": {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 48},
    "data.seq_len": 64,
    "training.evaluation_tokens": 64,
    "training.measurement_tokens": 64,
    "training.peak_tflops": 0.1,
    "training.device": "cpu",
    "training.threads": 1,
}
TINY_CASES = ("continue 1.3B, 4 rows", "a checkpoint", "masks open", "without masks", "skipped", "computed")
"""Ends of the names of those that differ in more than what :data:`TINY` sets."""
SOURCES: dict[str, dict[str, Any]] = {
    "7B to 2.7B": {},
    "2.7B to 1.3B": {
        "model.architecture": {"layers": 32, "hidden": 2560, "heads": 20, "intermediate": 6912, "vocabulary": 32000},
        "prune.target": {"layers": 24, "hidden": 2048, "heads": 16, "intermediate": 5504},
    },
    "1.3B to 370M": {
        "model.architecture": {"layers": 24, "hidden": 2048, "heads": 16, "intermediate": 5504, "vocabulary": 32000},
        "prune.target": {"layers": 24, "hidden": 1024, "heads": 8, "intermediate": 2816},
    },
}
"""What may be pruned, the largest first: that of the recipe, and what the recipes make of it."""
NARROW = {"training.weights": "bfloat16+low16", "training.moments": "bfloat16"}


@dataclass(frozen=True)
class Case:
    """One row of the table: a stage of a recipe with some settings.

    Attributes:
        name: Of the row.
        recipe: A shipped one.
        stage: ``prune`` or ``continue``.
        settings: Changed in the recipe.
        masks: ``open``: all are one; ``target``: those of the target are, the others zero; ``none``: no masks.
        whole: Continue with the source instead of the target.
        checkpoint: Write one in the middle.
        target: What is aimed at, in words.
    """

    name: str
    recipe: str
    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    masks: str = "none"
    whole: bool = False
    checkpoint: bool = False
    target: str = ""


def cases(pruned: str) -> list[Case]:
    """All of them; ``pruned`` is one of :data:`SOURCES`."""
    found = []
    quick = {"training.compile": True, "training.activation_checkpointing": "none"}

    def training(size: str, micro: int, more: str = "", target: str = "", **changes: Any) -> None:
        settings = quick | {"training.micro_batch_size": micro} | {f"training.{k}": v for k, v in changes.items()}
        name = f"continue {size}, {micro} rows{', ' * bool(more)}{more}"
        found.append(Case(name, f"llama2-7b-to-{size.lower()}", "continue", settings, target=target))

    training("1.3B", 4, target="MFU 45%")
    training("1.3B", 4, "not compiled", compile=False)
    training("1.3B", 2)
    training("1.3B", 8, "selective checkpointing", activation_checkpointing="selective")
    training("1.3B", 8, "full checkpointing", activation_checkpointing="full")
    training("1.3B", 4, "torch's loss", loss="torch")
    if importlib.util.find_spec("liger_kernel") is not None:
        training("1.3B", 4, "liger's loss", loss="liger")
    training("2.7B", 2, target="MFU 45%")
    training("2.7B", 4, "selective checkpointing", activation_checkpointing="selective")
    training("2.7B", 4, "full checkpointing", activation_checkpointing="full")
    settings = found[0].settings
    found.append(
        Case("continue 1.3B, 4 rows, a checkpoint", "llama2-7b-to-1.3b", "continue", settings, checkpoint=True)
    )

    full = {"training.compile": True, "training.activation_checkpointing": "full", "training.micro_batch_size": 4}

    def pruning(more: str, masks: str = "open", target: str = "", **changes: Any) -> None:
        settings = SOURCES[pruned] | full | NARROW | {k.replace("__", "."): v for k, v in changes.items()}
        stage = "continue" if masks == "none" else "prune"
        name = f"prune {pruned}, {more}"
        found.append(Case(name, "llama2-7b-to-2.7b", stage, settings, masks, whole=masks == "none", target=target))

    pruning("masks open", target="MFU 40%, at most 76 GiB")
    pruning("without masks", masks="none")
    pruning("masks open, not compiled", training__compile=False)
    pruning("masks open, 2 rows", training__micro_batch_size=2)
    pruning("masks open, int8 moments", training__moments="int8")
    pruning("masks at the target, skipped", masks="target")
    pruning("masks at the target, computed", masks="target", prune__skip_closed=False)
    return found


def config_of(case: Case, corpus: Path, *, tiny: bool) -> RunConfig:
    """The recipe of a case."""
    settings: dict[str, Any] = {
        f"{case.stage}.batch_size": BATCH,
        f"{case.stage}.evaluate_every": 10**6,
        "training.evaluation_tokens": 4096,
        "training.measurement_tokens": 4096,
        "training.checkpoint_every": WARM + SAVED_AFTER if case.checkpoint else 10**6,
        "data.corpus": str(corpus),
        "data.document_mask": False,
    } | case.settings
    if case.masks != "none":
        still = 1e-12  # gates stay where they were put
        settings |= {"prune.mask_learning_rate": still, "prune.multiplier_learning_rate": still}
    if tiny:
        settings |= TINY | {"training.compile": False, "training.micro_batch_size": 2, f"{case.stage}.batch_size": 4}
    if case.whole:
        settings["prune.target"] = {"layers": settings.get("model.architecture", {"layers": 32})["layers"]}
    return load_recipe(case.recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def largest_source(room: int) -> str:
    """The first of :data:`SOURCES` that is planned to fit into ``room`` bytes of memory; the last if none is."""
    for name in SOURCES:
        case = next(case for case in cases(name) if case.masks == "open")
        config = config_of(case, Path("corpus"), tiny=False)
        if stage_memory(config, "prune", source_of(config)).total <= room:
            break
    return name
