"""The run folder: opened for one recipe, refused to another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, StateError
from drpruning.files import cache_folder, clear_partial, new_folder
from drpruning.recipes import parse_recipe

RECIPE = "recipe.yaml"
RECORDS = "metrics.jsonl"
BASE_FORMAT = 1  # raised when the same recipe would train another base


def check_run_folder(folder: Path, *, resume: bool) -> None:
    """Makes sure that a run can begin in ``folder``, or go on there.

    Raises:
        ConfigError: The folder is in use and ``resume`` is False, or is not a folder.
        StateError: It holds something that is not a run.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; a run needs a folder", "Give another one with --out.")
    if (folder / RECIPE).is_file():
        if not resume:
            raise ConfigError(f"the run folder {folder} exists already", "Go on with --resume, or give another --out.")
    elif folder.is_dir() and any(folder.iterdir()):
        raise StateError(f"{folder} is not empty and not a run folder (it has no {RECIPE})", "Give another --out.")


def open_run_folder(folder: Path, config: RunConfig, *, resume: bool) -> RunConfig:
    """Makes a run folder or takes up an existing one.

    Args:
        folder: The run folder.
        config: The recipe of this call.
        resume: Whether an existing folder may be gone on with; one that does not exist is made in either case.

    Returns:
        The recipe to follow: this one, with the number of threads that the folder was made with, and with the reference
        losses that a file had then.

    Raises:
        ConfigError: As :func:`check_run_folder`.
        StateError: The folder belongs to another recipe, or as :func:`check_run_folder`.
    """
    check_run_folder(folder, resume=resume)
    recipe = folder / RECIPE
    if not recipe.is_file():
        with new_folder(folder) as aside:
            (aside / RECIPE).write_text(config.to_yaml(), encoding="utf-8")
            (aside / RECORDS).touch()
        return config
    stored = _stored_recipe(recipe)
    if config.training.threads == "auto":
        config = config.with_threads(stored.training.threads)  # measured when the folder was made
    if config.mixture.sizes_file is not None:
        config = config.with_reference_loss(stored.mixture.reference_loss)
    if stored.hash() != config.hash():
        other = ", ".join(_differences(config, stored))
        raise StateError(
            f"the run folder {folder} belongs to another recipe; different: {other}",
            "Give another --out, or the recipe and --set values it was started with.",
        )
    clear_partial(folder)
    return config


def base_cache(config: RunConfig, corpus: Corpus) -> Path:
    """Where the base of a recipe that trains its own is kept: one folder for all that determines its weights."""
    training, pretrain = config.training, config.to_dict()["pretrain"]
    del pretrain["seed"]
    body = {
        "format": BASE_FORMAT,
        "seed": config.pretrain_seed,
        "architecture": config.to_dict()["model"]["architecture"],
        "pretrain": pretrain,
        "data": config.to_dict()["data"],
        "corpus": corpus.fingerprint,
        "training": [training.dtype, training.threads, training.betas, training.weight_decay, training.clip],
        "micro_batch_size": training.micro_batch_size,
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "bases" / digest[:16]


def _stored_recipe(path: Path) -> RunConfig:
    try:
        return parse_recipe(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ConfigError, yaml.YAMLError, TypeError, ValueError) as error:
        raise StateError(f"{path} is damaged: {error}", "Give another --out.") from error


def _differences(config: RunConfig, stored: RunConfig) -> list[str]:
    ours, theirs = _flat(config.deciding()), _flat(stored.deciding())
    return [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]


def _flat(body: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in body.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
