"""Write safetensors files one tensor at a time.

``safetensors.torch.save_file`` copies all tensors of a file into one buffer. Here the header is written first, from
names, dtypes and shapes, and each tensor is read when its bytes are due. The files have the bytes of ``save_file``.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of tensors, by their names in safetensors."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

ReadTensor = Callable[[str], Tensor]
"""Returns the whole tensor of a name, on any device."""


class Digest(Protocol):
    """A hash of :mod:`hashlib`."""

    def update(self, data: Any, /) -> None:
        """Add bytes."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is written.

    Attributes:
        name: Its name in the file.
        dtype: A value of :data:`DTYPES`.
        shape: Its shape.
        read: Returns it, on any device.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path,
    tensors: Iterable[LazyTensor],
    *,
    metadata: Mapping[str, str] | None = None,
    digest: Digest | None = None,
) -> int:
    """Write a new safetensors file and flush it to the disk; return its size in bytes.

    The memory holds one tensor at a time. They are read in the order of the file: wider types first, so that a file
    mapped into memory has each tensor aligned, then by name.

    Args:
        path: The file; must not exist.
        tensors: Its tensors, with distinct names.
        metadata: Texts of the header.
        digest: Updated with all bytes.

    Raises:
        OSError: The file exists or cannot be written.
    """
    ordered = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    place = 0
    for tensor in ordered:
        offsets = [place, place := place + tensor.nbytes]
        header[tensor.name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        for block in chain((struct.pack("<Q", len(text)), text), map(_read_bytes, ordered)):
            file.write(block)
            if digest is not None:
                digest.update(block)
            del block  # before the next tensor is read
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(text) + place


def _read_bytes(tensor: LazyTensor) -> Any:
    """Return the bytes of a tensor as a NumPy array, without a copy if it is contiguous and on the CPU."""
    value = tensor.read()
    assert (value.dtype, tuple(value.shape)) == (tensor.dtype, tensor.shape), tensor.name
    return value.cpu().contiguous().view(-1).view(torch.uint8).numpy()
