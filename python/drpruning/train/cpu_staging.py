"""Copies of a checkpoint's tensors in the memory of the host, made while training waits and written while it runs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

BLOCK = 2**30
"""Bytes of a block of pinned memory. torch rounds each block up to a power of two, so tensors share blocks."""
ALIGNMENT = 64


class Staging:
    """Copies nested dicts of tensors to the host, into the same memory each time.

    Memory for tensors of a GPU is pinned: the copy is several times faster, and is not made twice by the driver. It is
    kept, because to pin it, and to touch fresh pages, takes longer than to copy.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0

    def copy(self, tensors: Any) -> Any:
        """Return a copy of ``tensors`` in the host's memory; the copy before it is overwritten.

        Args:
            tensors: A nested dict, list or tuple of tensors, sharded or not, and plain values.
        """
        copied = self._copied(tensors, ())
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copied

    def release(self) -> None:
        """Free the memory."""
        self._kept = {}
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0

    def _copied(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self._copied(part, (*path, key)) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(part, (*path, number)) for number, part in enumerate(value))
        if isinstance(value, DTensor):
            return DTensor(self._copied(value.to_local(), path), value._spec, requires_grad=False)
        if not isinstance(value, Tensor):
            return value
        kept = self._kept.get(path)
        if kept is None or (kept.shape, kept.dtype) != (value.shape, value.dtype):
            kept = self._kept[path] = self._memory_for(value)
        return kept.copy_(value.detach(), non_blocking=value.is_cuda)

    def _memory_for(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        if self._used + tensor.nbytes > len(self._block):
            self._block = torch.empty(max(BLOCK, tensor.nbytes), dtype=torch.uint8, pin_memory=True)
            self._used = 0
        part = self._block[self._used : self._used + tensor.nbytes]
        self._used += ALIGNMENT * math.ceil(tensor.nbytes / ALIGNMENT)
        return part.view(tensor.dtype).view(tensor.shape)
