"""Files of a Hugging Face model, in a folder or on the hub; loads neither torch nor transformers."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""Files of which a model folder with a tokenizer has at least one."""
TEXT_FILES = (
    *TOKENIZER_FILES,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "chat_template.jinja",
)
"""Files of tokenizers of transformers, and the template of a conversation."""
MODEL_ADVICE = (
    "Give a folder with config.json and safetensors, or the name of a model on the hub that you have access to."
)
HUB_TIMEOUT = 10.0
"""Seconds to wait for the hub's answer."""


def local_config(model: str) -> Path | None:
    """Return the ``config.json`` of a model folder, or ``model`` itself if it is a file; None if it is neither.

    Raises:
        ConfigError: The folder has no ``config.json``.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        path /= "config.json"
        if not path.is_file():
            raise ConfigError(f"the folder {model!r} has no config.json", "Give a model folder of transformers.")
    return path if path.is_file() else None


def hub_config(model: str) -> Path | None:
    """Return the ``config.json`` of a model on the hub, from the cache or downloaded; None if it is not available."""
    if model.count("/") != 1:
        return None
    if (cached := cached_file(model, "config.json")) is not None:
        return cached
    import huggingface_hub as hub  # noqa: PLC0415 - only models without a local config need the hub

    try:
        # metadata first: without a connection, unlike the download, this does not retry for half a minute
        hub.get_hf_file_metadata(hub.hf_hub_url(model, "config.json"), timeout=HUB_TIMEOUT)
        return Path(hub.hf_hub_download(model, "config.json"))
    except Exception:  # errors of its HTTP client, which differs from version to version
        return None


def unreachable_reason(model: str, name: str = "config.json") -> str | None:
    """Return why a model cannot be read: no such folder, or not on the hub now; None if it can.

    Unlike a download, this does not retry for a minute without a connection.

    Args:
        model: A path, or a name on the hub.
        name: A file of it; for a model on the hub any answer of the hub about this file will do.
    """
    if os.path.exists(Path(model).expanduser()):  # noqa: PTH110 - Path's method raises for a long name
        return None
    if re.fullmatch(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", model) is None:
        return "there is no such folder"
    if find_spec("huggingface_hub") is None or cached_file(model, name) is not None:
        return None  # transformers brings huggingface_hub: what is missing is reported when it is imported
    import huggingface_hub as hub  # noqa: PLC0415 - only names on the hub need it
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(model, name), timeout=HUB_TIMEOUT)
    except Exception as error:  # errors of its HTTP client, which differs from version to version
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None  # the repository exists
        return "it is not a folder, and the Hugging Face hub cannot be read or does not have it"
    return None


def check_model_exists(model: str) -> None:
    """Check that a model exists, before torch is loaded; see :func:`unreachable_reason`.

    Raises:
        ConfigError: It does not, or the hub cannot be read.
    """
    if reason := unreachable_reason(model):
        raise ConfigError(f"the model {model!r} cannot be loaded: {reason}", MODEL_ADVICE)


def cached_file(model: str, name: str) -> Path | None:
    """Return a file of a model folder or, for a name on the hub, of the hub's cache; None if it is not there."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path / name if (path / name).is_file() else None
    if model.count("/") > 1 or model.startswith((".", "/", "~")) or find_spec("huggingface_hub") is None:
        return None
    import huggingface_hub as hub  # noqa: PLC0415 - only models without a folder need the hub
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        cached = hub.try_to_load_from_cache(model, name)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def read_config_fields(path: Path, model: str) -> dict[str, Any]:
    """Read the fields of the ``config.json`` at ``path``; ``model`` names the model in errors.

    Raises:
        ConfigError: The file is not a JSON object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{model}: cannot read JSON: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{model}: expected a JSON object, got {type(fields).__name__}")
    return fields
