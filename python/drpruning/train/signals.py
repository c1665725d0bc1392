"""Stopping on request: the first signal asks, the second does not."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signal(announce: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C (or SIGTERM) has come; a second signal acts as usual.

    Args:
        announce: Called once, when the first signal comes.
    """
    asked = False
    before = {number: signal.getsignal(number) for number in STOPPING}

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for number, handler in before.items():
            signal.signal(number, handler)
        announce()

    for number in STOPPING:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
