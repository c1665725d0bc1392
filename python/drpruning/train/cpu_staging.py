"""Staging of a checkpoint's tensors in host memory: copied while training waits, written while it continues."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK = 2**30
"""Bytes of a block of pinned memory; tensors share blocks, because torch rounds each up to a power of two."""
ALIGNMENT = 64


class CpuStaging:
    """Copies tensors to the host, into the same memory each time.

    Memory for tensors of a GPU is pinned, which makes the copy several times faster. It is kept, because pinning and
    first access take longer than the copy.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a copy of ``tensors`` in the host's memory; the copy before it is overwritten.

        Args:
            tensors: Plain tensors by name.
        """
        copied = {name: self._copied(name, tensor) for name, tensor in tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copied

    def release(self) -> None:
        """Free the memory."""
        self._kept = {}
        self._block, self._used = torch.empty(0, dtype=torch.uint8), 0

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = self._kept[name] = self._memory_for(tensor)
        return kept.copy_(tensor.detach(), non_blocking=tensor.is_cuda)

    def _memory_for(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        if self._used + tensor.nbytes > len(self._block):
            self._block = torch.empty(max(BLOCK, tensor.nbytes), dtype=torch.uint8, pin_memory=True)
            self._used = 0
        part = self._block[self._used : self._used + tensor.nbytes]
        self._used += ALIGNMENT * math.ceil(tensor.nbytes / ALIGNMENT)
        return part.view(tensor.dtype).view(tensor.shape)
