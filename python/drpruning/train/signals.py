"""Stop on SIGINT and SIGTERM: the first signal requests it, the second one acts as usual."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signal(announce: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a first signal arrived; a second one acts as usual.

    Args:
        announce: Called once, at the first signal.
    """
    requested = False
    before = {number: signal.getsignal(number) for number in STOPPING}

    def request(_number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        for number, handler in before.items():
            signal.signal(number, handler)
        announce()

    for number in STOPPING:
        signal.signal(number, request)
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
