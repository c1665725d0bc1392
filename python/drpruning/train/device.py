"""The device of a process, and the dtype for evaluation on it."""

from __future__ import annotations

import torch

from drpruning.errors import ConfigError
from drpruning.train.distributed.ranks import Ranks


def choose_device(device: str, ranks: Ranks = Ranks()) -> torch.device:  # noqa: B008 - frozen
    """Return the device; ``auto`` is a GPU where there is one. Each process of a node gets another GPU.

    Raises:
        ConfigError: torch has no such device, or finds no GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device is {device!r}; torch has no such device", "Use auto, cpu, cuda or cuda:1."
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device is {device!r}, but torch finds no GPU here",
            "Use the device auto or cpu; with a GPU, install a torch build for it and its driver.",
        )
    return torch.device(device, ranks.local_rank) if device == "cuda" else chosen


def default_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype to evaluate a model in: bfloat16 on a GPU with native support, otherwise float32.

    float32 products without TF32 are about 15 times slower on such a GPU.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32
