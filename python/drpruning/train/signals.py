"""Stop on signals: of a scheduler (SIGTERM, SIGUSR1) from the start of a command, on Ctrl-C while it trains.

The first signal requests a stop; training then finishes its step and writes a checkpoint. A further SIGINT acts as
usual. Further SIGTERM and SIGUSR1 are ignored: schedulers repeat them (Slurm: SIGUSR1 or SIGTERM as a warning, SIGTERM
at the time limit), and they end a process that does not stop with SIGKILL.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from drpruning.errors import ExitCode

SCHEDULER_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
STDERR = 2


class StopRequest:
    """Whether a signal has requested a stop; call it to read.

    Args:
        message: Printed on stderr at the first signal; empty: nothing.

    Attributes:
        by_scheduler: Whether SIGTERM or SIGUSR1 requested it.
    """

    def __init__(self, message: str) -> None:
        self.by_scheduler = False
        self._message = message
        self._requested = False
        self._interrupt = signal.getsignal(signal.SIGINT)

    def __call__(self) -> bool:
        """Return whether a signal has arrived."""
        return self._requested

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a process that has stopped and saved everything."""
        return ExitCode.RESUMABLE if self.by_scheduler else ExitCode.INTERRUPTED

    def include_interrupt(self) -> None:
        """Request a stop on SIGINT as well, from now on."""
        if not self._requested:
            signal.signal(signal.SIGINT, self.request)

    def follow(self, *, by_scheduler: bool) -> None:
        """Stop because the ranks of the run stop.

        Args:
            by_scheduler: Whether any of them received SIGTERM or SIGUSR1.
        """
        self._requested, self.by_scheduler = True, by_scheduler

    def request(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        signal.signal(signal.SIGINT, self._interrupt)
        self.by_scheduler |= number in SCHEDULER_SIGNALS
        if not self._requested and self._message:
            os.write(STDERR, f"{self._message}\n".encode())  # print() may be active in the interrupted code
        self._requested = True


@contextmanager
def stop_on_signal(message: str) -> Iterator[StopRequest]:
    """Yield a request that SIGTERM and SIGUSR1 make, and SIGINT from :meth:`StopRequest.include_interrupt` on.

    After a request the handlers stay: the process ends, and a further signal does not change its exit code.
    ``torchrun`` sends SIGTERM to the ranks that are still ending.

    Args:
        message: Printed on stderr at the first signal; empty: nothing.
    """
    numbers = (signal.SIGINT, *SCHEDULER_SIGNALS)
    before = {number: signal.getsignal(number) for number in numbers}
    stop = StopRequest(message)
    for number in SCHEDULER_SIGNALS:
        signal.signal(number, stop.request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            if number not in SCHEDULER_SIGNALS or not stop():
                signal.signal(number, handler)
