"""The recipe in a run folder: written when the folder is created, compared when the run resumes."""

from __future__ import annotations

import math
from typing import Any

from drpruning.config import RunConfig
from drpruning.errors import ConfigError, StateError
from drpruning.files import clear_partial, new_folder
from drpruning.recipes import parse_recipe
from drpruning.run_folder import METRICS, RECIPE, RunFolder, check_run_folder


def open_run_folder(folder: RunFolder, config: RunConfig, *, resume: bool) -> RunConfig:
    """Create a run folder, or open an existing one.

    Args:
        folder: The run folder.
        config: The recipe of this call.
        resume: Whether the folder may exist; one that does not is created in either case.

    Returns:
        The recipe to follow: ``config`` with the number of threads, the reference losses of a file and the shares that
        the folder was created with. Shares computed on another platform may differ in the last bits.

    Raises:
        ConfigError: As :func:`check_run_folder`.
        StateError: The folder belongs to another recipe, or as :func:`check_run_folder`.
    """
    check_run_folder(folder, resume=resume)
    if not folder.exists:
        with new_folder(folder.path) as partial:
            (partial / RECIPE).write_text(config.to_yaml(), encoding="utf-8")
            (partial / METRICS).touch()
        return config
    stored = _stored_recipe(folder)
    config = _with_chosen_numbers(config, stored)
    if stored.hash() != config.hash():
        different = ", ".join(_differences(config, stored))
        raise StateError(
            f"the run folder {folder.path} belongs to another recipe; different: {different}",
            "Give another --out, or the recipe and --set values it was started with.",
        )
    clear_partial(folder.path)
    return config


def changed_settings(folder: RunFolder, config: RunConfig) -> dict[str, tuple[object, object]]:
    """Return the settings that keep ``config`` from resuming the run of a folder: each one's stored and new value.

    A setting that one of both recipes does not have is None there.

    Raises:
        ConfigError: The stored recipe cannot be read.
        StateError: The stored recipe is damaged.
    """
    stored = _stored_recipe(folder)
    return _differences(_with_chosen_numbers(config, stored), stored)


def _with_chosen_numbers(config: RunConfig, stored: RunConfig) -> RunConfig:
    """Return the recipe with the numbers that were chosen when the folder was created."""
    if config.training.threads == "auto":
        config = config.with_threads(stored.training.threads)
    if config.mixture.sizes_file is not None:
        config = config.with_reference_loss(stored.mixture.reference_loss)
    return _with_stored_shares(config, stored)


def _with_stored_shares(config: RunConfig, stored: RunConfig) -> RunConfig:
    """Return the recipe with the stored reference ratio and mixture of the stage pretrain, where they are equal."""
    if _nearly_equal(config.data.reference_ratio, stored.data.reference_ratio):
        ratio = stored.data.reference_ratio
        config = config.model_copy(update={"data": config.data.model_copy(update={"reference_ratio": ratio})})
    if config.pretrain is not None and stored.pretrain is not None:
        mixture = stored.pretrain.mixture
        if _nearly_equal(config.pretrain.mixture, mixture):
            config = config.model_copy(update={"pretrain": config.pretrain.model_copy(update={"mixture": mixture})})
    return config


def _nearly_equal(shares: object, stored: object) -> bool:
    return (
        isinstance(shares, dict)
        and isinstance(stored, dict)
        and list(shares) == list(stored)
        and all(math.isclose(shares[domain], stored[domain], rel_tol=1e-9) for domain in shares)
    )


def _stored_recipe(folder: RunFolder) -> RunConfig:
    try:
        return parse_recipe(folder.read_recipe())
    except ConfigError as error:
        raise StateError(f"{folder.recipe} is damaged: {error}", "Give another --out.") from error


def _differences(config: RunConfig, stored: RunConfig) -> dict[str, tuple[object, object]]:
    """Return the settings that differ, among those that decide the result: each one's stored and new value."""
    given, expected = _flat_settings(config.fixed_on_resume()), _flat_settings(stored.fixed_on_resume())
    return {
        key: (expected.get(key), given.get(key))
        for key in sorted(given.keys() | expected.keys())
        if given.get(key) != expected.get(key)
    }


def _flat_settings(body: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in body.items():
        if isinstance(value, dict):
            flat.update(_flat_settings(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
