"""Asynchronous copies between host and device.

Reading a number from an accelerator synchronises: the host waits until the device has run everything that is enqueued,
and meanwhile enqueues nothing. An :class:`AsyncHostCopy` that is read one step later waits only for its own copy, since
the device still has the next step to run. On a CPU each call has finished when it returns, so copies are ready at once.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor


class DeviceEvent:
    """A point in a device's stream: reached once everything enqueued before it has run."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        self._time = time.perf_counter()
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def __deepcopy__(self, memo: dict[int, object]) -> DeviceEvent:
        """Return the same event: a copy of an event would never be reached."""
        return self

    def wait(self) -> None:
        """Block the host until the device has reached the event."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: DeviceEvent) -> float:
        """Return the device time in seconds between two events that have been reached."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return float(earlier._event.elapsed_time(self._event)) / 1000


class AsyncHostCopy:
    """A copy of a tensor to the host, enqueued at construction.

    Args:
        tensor: Any shape and dtype. Later changes of ``tensor`` do not affect the copy.

    Attributes:
        event: Reached when the copy has finished.
    """

    def __init__(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        # torch allocates pinned memory for a non-blocking copy to the CPU
        self._tensor = tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu", non_blocking=True)
        self.event = DeviceEvent(tensor.device)

    def read(self) -> Tensor:
        """Wait for the copy and return it, on the CPU."""
        self.event.wait()
        return self._tensor


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device`` without waiting for the copy: operations enqueued later see the data."""
    if tensor.device.type == "cpu" and device.type != "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
