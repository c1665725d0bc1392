"""The errors of this package: one tree, few leaves.

A message says what is wrong, what was found, what was wanted, and what to do next. The command line prints it in two
lines and exits with :attr:`DrpruningError.exit_code`. Errors of the operating system stay ``OSError``.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``drpruning`` and of the processes it starts."""

    DONE = 0
    FAILED = 1
    """A miniature fails a verdict, or a run of a comparison fails."""
    ERROR = 2
    """Wrong input, and any other error of :class:`DrpruningError`."""
    DISK = 3
    RANK_LOST = 4
    INTERRUPTED = 130
    """As shells report a process that ended by Ctrl-C."""


class DrpruningError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        message: What is wrong: what, got, wanted.
        next_step: What the reader can do about it, one sentence; shown on a line of its own.
    """

    exit_code = ExitCode.ERROR

    def __init__(self, message: str, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return self.message if self.next_step is None else f"{self.message}\n{self.next_step}"


class ConfigError(DrpruningError, ValueError):
    """A recipe, a target shape or a model configuration cannot work."""


class WeightError(DrpruningError, ValueError):
    """Weights, losses or a radius are not usable: NaN, negative, of another shape, not summing to one."""


class LossTableError(DrpruningError, ValueError):
    """A table of losses cannot be read; the message names file, line and column."""


class CorpusError(DrpruningError):
    """A corpus file is missing, truncated, altered, or not what its header claims; or it is not the corpus of a run."""


class StateError(DrpruningError):
    """A saved state or run folder does not belong to what is being resumed."""


class DiskError(DrpruningError, OSError):
    """A run folder or a corpus cannot be written: no space, no permission, a failing disk. What was whole stays so."""

    exit_code = ExitCode.DISK


class RankError(DrpruningError):
    """Another process of the run died, did not answer in time, or holds other values than this one.

    Args:
        message: As of :class:`DrpruningError`; names the ranks, the place and the limit.
        next_step: As of :class:`DrpruningError`.
        ranks: The numbers of those ranks; empty where they are not known.
    """

    exit_code = ExitCode.RANK_LOST

    def __init__(self, message: str, next_step: str | None = None, *, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message, next_step)
        self.ranks = ranks


class SolverError(DrpruningError):
    """A numerical problem has no usable answer."""


class EndpointError(DrpruningError):
    """A service over the network fails again and again, or answers what cannot be used."""


class MissingExtraError(DrpruningError, ImportError):
    """A feature needs a package that is not installed."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A next step for a name that is not known: the nearest one, if any is near.

    >>> did_you_mean("roh", ["rho", "delta"])
    'Did you mean rho?'
    """
    import difflib  # noqa: PLC0415 - only who errs waits for it

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else None
