"""A causal language model of transformers from a folder or by its name, or an error that says what to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from drpruning.errors import ConfigError


def load(folder: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> Any:
    """A model from a Hugging Face folder or name, in ``dtype``; ``auto``: in its own.

    Raises:
        ConfigError: There is no such model, or it cannot be read.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load(str(folder), error) from error


def cannot_load(source: str, error: Exception) -> ConfigError:
    """What to raise for a ``source`` that transformers does not load because of ``error``."""
    return ConfigError(
        f"the model {source!r} cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
        "Give a folder with config.json and safetensors, or the name of a model on the hub you have access to.",
    )
