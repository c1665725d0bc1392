"""The fingerprint of a model: two files with the same one hold the same model, whatever their names and shards."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError
from drpruning.hf.models import SafetensorsWeights, load_error, model_file
from drpruning.inputs import open_file, parse_json, read_file

BLOCKS, BLOCK = 16, 4096
"""Blocks of a tensor that are hashed, evenly spaced, and the bytes of each: an optimizer step changes nearly every
weight, and 16 blocks of each of 300 tensors are read in a moment where all 14 GB of a 7B model are not."""
LARGEST_HEADER = 1 << 27
"""Bytes of a safetensors header; the format's own limit is 100 MB."""
VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
"""Entries of a config.json that do not determine the logits."""


def model_fingerprint(source: str) -> str:
    """Return a SHA-256 of a model's configuration and of samples of its weights.

    The names, types and shapes of all tensors count, and 64 KiB of the values of each tensor. So a model that differs
    in a few rows of an embedding only may have the same fingerprint; one that was trained differs.

    Args:
        source: A Hugging Face folder or name.

    Raises:
        ConfigError: There is no such model, or its weights are not in safetensors.
    """
    try:
        weights = SafetensorsWeights.find(source)
    except (OSError, ValueError) as error:
        raise load_error(source, error) from error
    config = model_file(source, "config.json")
    if weights is None or config is None:
        raise ConfigError(
            f"the model {source!r} has no config.json with safetensors, from which its fingerprint is computed",
            "Save it with save_pretrained() of transformers.",
        )
    body = parse_json(read_file(config), config)
    settings = {key: value for key, value in body.items() if key not in VOLATILE} if isinstance(body, dict) else body
    digest = hashlib.sha256(repr(_sorted(settings)).encode())
    tensors = [tensor for path in sorted(set(weights.files.values())) for tensor in _tensors(path)]
    for name, kind, shape, path, first, end in sorted(tensors):
        digest.update(f"\n{name} {kind} {shape} {end - first}\n".encode())
        digest.update(_sample(path, first, end))
    return digest.hexdigest()


def _sorted(value: Any) -> Any:
    return sorted((key, _sorted(each)) for key, each in value.items()) if isinstance(value, dict) else value


def _tensors(path: Path) -> list[tuple[str, str, str, Path, int, int]]:
    """Return name, type, shape, file, first byte and end of each tensor of a safetensors file.

    Raises:
        ConfigError: The header is damaged.
    """
    with open_file(path) as file:
        size = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        header = parse_json(file.read(min(size, LARGEST_HEADER)), path)
    try:
        return [
            (
                name,
                str(entry["dtype"]),
                str(entry["shape"]),
                path,
                *(8 + size + int(at) for at in entry["data_offsets"]),
            )
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: expected the header of a safetensors file, found {error}") from None


def _sample(path: Path, first: int, end: int) -> bytes:
    """Return evenly spaced blocks of the bytes ``first`` to ``end``; all bytes where there are no more."""
    with open_file(path) as file:
        if end - first <= BLOCKS * BLOCK:
            file.seek(first)
            return file.read(max(0, end - first))
        parts = []
        for number in range(BLOCKS):
            file.seek(first + (end - first - BLOCK) * number // (BLOCKS - 1))
            parts.append(file.read(BLOCK))
        return b"".join(parts)
