"""Staging of a checkpoint's tensors in host memory: copied while training waits, written while it continues."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

BLOCK = 2**30
"""Bytes of a block of pinned memory; tensors share blocks, because torch rounds each up to a power of two."""
ALIGNMENT = 64


class CpuStaging:
    """Copies nested dicts of tensors to the host, into the same memory each time.

    Memory for tensors of a GPU is pinned, which makes the copy several times faster. It is kept, because pinning and
    first access take longer than the copy.
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
