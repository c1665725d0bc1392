"""Between host and device without a wait: copies that are under way while both go on.

Reading a number from an accelerator waits until it has done all it was told to do so far, and meanwhile gets nothing
new to do. A :class:`HostCopy` that is read a step later waits for nothing but itself: the device is at work on what it
was told in between. On a CPU, where everything is done when its call returns, a copy is there at once.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Mark:
    """A moment in what a device does: when it has done all that it was told so far."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        self._time = time.perf_counter()
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def __deepcopy__(self, memo: dict[int, object]) -> Mark:
        """A moment is one and the same wherever it is remembered."""
        return self

    def wait(self) -> None:
        """Returns once the moment is there."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        """Time of the device between two marks, both of which are there."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        return float(earlier._event.elapsed_time(self._event)) / 1000


class HostCopy:
    """A tensor on its way to the host, as it was when the copy began.

    Args:
        tensor: Of any shape and type.

    Attributes:
        mark: The moment from which on it can be read.
    """

    def __init__(self, tensor: Tensor) -> None:
        tensor = tensor.detach()
        # To pinned memory, by what torch does for a copy that does not wait
        self._tensor = tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu", non_blocking=True)
        self.mark = Mark(tensor.device)

    def read(self) -> Tensor:
        """The tensor, in the host's memory."""
        self.mark.wait()
        return self._tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on ``device``, there when what is told next is done; does not wait for the copy."""
    if tensor.device.type == "cpu" and device.type != "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
