"""Metrics that are copied from the device to the host while the next step is enqueued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from drpruning.pruning.async_copy import AsyncHostCopy, DeviceEvent


class AsyncMetrics:
    """The named metrics of one step at a time.

    :meth:`push` stacks all tensors into one copy to the host, and :meth:`flush` takes them apart by name. Flushed
    after the next step is enqueued, they cost no synchronisation.

    Args:
        device: The device of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pending: tuple[AsyncHostCopy, dict[str, torch.Size], dict[str, float], DeviceEvent] | None = None
        self._began = DeviceEvent(device)

    def push(self, values: Mapping[str, Tensor | float]) -> None:
        """Start the copy of a step's metrics; the metrics before must be flushed.

        Args:
            values: Tensors on the device, of any shape and type, and numbers of the host.
        """
        assert self._pending is None, "the metrics of the step before are not flushed"
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        copy = AsyncHostCopy(torch.cat([tensor.detach().double().flatten() for tensor in tensors.values()]))
        self._pending = copy, {name: tensor.shape for name, tensor in tensors.items()}, numbers, self._began
        self._began = copy.event

    def flush(self) -> dict[str, Any] | None:
        """Return the metrics that were pushed, or None where they are flushed already.

        Returns:
            Scalars as float, other tensors as float64 on the host, the numbers of the host, and ``seconds``: the
            device's time from the step before, or from :meth:`restart_clock`, to this one.
        """
        if self._pending is None:
            return None
        (copy, shapes, numbers, began), self._pending = self._pending, None
        parts = copy.read().split([shape.numel() for shape in shapes.values()])
        found: dict[str, Any] = {**numbers, "seconds": copy.event.seconds_since(began)}
        for (name, shape), part in zip(shapes.items(), parts, strict=True):
            found[name] = part.view(shape) if shape else float(part)
        return found

    def restart_clock(self) -> None:
        """Exclude the time since the last step, of an evaluation or a checkpoint, from the next step's seconds."""
        self._began = DeviceEvent(self.device)
