"""Exceptions of this package, and the exit codes of the command line.

A message names the wrong value and the expected one; the next step names what the user can do. The command line prints
them on two lines and exits with :attr:`DrpruningError.exit_code`. Errors of the operating system become ``DiskError``
where the file is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import IntEnum

LIGHT_PACKAGES = ("numpy", "scipy", "click", "pydantic", "PyYAML", "rich", "jinja2")
"""Dependencies of the light installation (README): every command that loads no model and no tokenizer."""
MODEL_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors")
"""Dependencies of models and tokenizers; torch brings most of the size of a complete installation."""
MODULES = {"PyYAML": "yaml", "lm-eval": "lm_eval", "liger-kernel": "liger_kernel", "protobuf": "google.protobuf"}
"""Module of a package, where the names differ."""


SHORTEST_PART, SHORT_WORD = 3, 4
"""Letters of a word that suggests the names that contain it, and of a word whose similarity is counted in letters."""


class ExitCode(IntEnum):
    """Exit codes of ``drpruning`` and of its child processes."""

    DONE = 0
    FAILED = 1
    """A miniature fails a criterion, or a run of a comparison fails."""
    ERROR = 2
    """Invalid input, and any other :class:`DrpruningError`."""
    DISK = 3
    RANK_LOST = 4
    RESUMABLE = 75
    """SIGTERM or SIGUSR1, with everything saved: EX_TEMPFAIL of sysexits.h, on which schedulers requeue a job."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT, as in a shell."""


class DrpruningError(Exception):
    """Base class of the errors of this package.

    Args:
        message: The wrong value and the expected one.
        next_step: What the user can do, in one sentence; printed on a second line.
    """

    exit_code = ExitCode.ERROR

    def __init__(self, message: str, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return self.message if self.next_step is None else f"{self.message}\n{self.next_step}"


class ConfigError(DrpruningError, ValueError):
    """A recipe, an argument, a target shape or a model configuration is invalid."""


class ArchitectureError(DrpruningError, ValueError):
    """The description of an architecture does not match its model class."""


class WeightError(DrpruningError, ValueError):
    """Weights, losses, a radius, token counts or learning rates are invalid.

    For example, a number is NaN or negative, lengths differ, or shares do not sum to 1.
    """


class LossTableError(DrpruningError, ValueError):
    """A loss table cannot be read; the message names file, line and column."""


class CorpusError(DrpruningError):
    """A corpus file is missing, truncated, changed or inconsistent with its header; or a run needs another corpus."""


class StateError(DrpruningError):
    """A saved state or a run folder does not match the run that resumes from it."""


class DiskError(DrpruningError, OSError):
    """A file cannot be read or written: disk full, no permission, too many open files. Complete files stay intact."""

    exit_code = ExitCode.DISK


class PlatformError(DrpruningError):
    """The operating system lacks what a command needs."""


class RankError(DrpruningError):
    """Another rank exited, did not respond in time, or has other values than this one.

    Args:
        message: As for :class:`DrpruningError`; names the ranks, the operation and the time limit.
        next_step: As for :class:`DrpruningError`.
        ranks: Those ranks; empty if they cannot be identified.
    """

    exit_code = ExitCode.RANK_LOST

    def __init__(self, message: str, next_step: str | None = None, *, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message, next_step)
        self.ranks = ranks


class SolverError(DrpruningError):
    """A numerical solver found no solution."""


class EndpointError(DrpruningError):
    """A network service fails repeatedly, or its response is invalid."""


class MissingExtraError(DrpruningError, ImportError):
    """A feature needs a package that is not installed; :func:`install_command` is the usual next step."""


def install_command(*packages: str) -> str:
    """Return the pip command that installs packages, in the versions that this package declares.

    The command names the packages themselves and no extra of this package: it works wherever this package was installed
    from, an index, a wheel or a checkout.

    >>> install_command("pandas")
    'pip install pandas'
    """
    declared = _declared_requirements()
    requirements = [declared.get(name.lower(), name) for name in packages]
    return " ".join(["pip install", *(f'"{text}"' if re.search("[<>=]", text) else text for text in requirements)])


def check_installed(needs: str, *packages: str) -> None:
    """Check that packages are installed, without importing them.

    Args:
        needs: What they are for, at the beginning of the message: ``tasks need``.
        packages: Their names.

    Raises:
        MissingExtraError: Some are not.
    """
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        raise MissingExtraError(
            f"{needs} {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            install_command(*missing),
        )


def missing_package(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return the error for a dependency that is not installed, with the command that installs what is missing.

    Args:
        error: The failed import.

    Returns:
        None if the module is not one of this package's dependencies.
    """
    package = next((name for name in _known_packages() if error.name == MODULES.get(name, name)), None)
    if package is None:
        return None
    group = next((group for group in (LIGHT_PACKAGES, MODEL_PACKAGES) if package in group), (package,))
    missing = [name for name in group if name == package or not _is_installed(name)]
    return MissingExtraError(f"this command needs {package}, which is not installed", install_command(*missing))


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec  # noqa: PLC0415 - few commands need it

    return find_spec(MODULES.get(package, package).partition(".")[0]) is not None


def _known_packages() -> Iterable[str]:
    return dict.fromkeys([*LIGHT_PACKAGES, *MODEL_PACKAGES, "huggingface_hub", *_declared_requirements()])


def _declared_requirements() -> Mapping[str, str]:
    """Return the declared requirement of each dependency, by its name in lower case, without its marker."""
    from importlib.metadata import PackageNotFoundError, requires  # noqa: PLC0415 - needed after an error only

    try:
        lines = requires("drpruning") or []
    except PackageNotFoundError:  # a source tree on the path
        return {}
    texts = [line.partition(";")[0].strip() for line in lines]
    return {re.split(r"[^\w.-]", text, maxsplit=1)[0].lower(): text for text in reversed(texts)}


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a next step for an unknown name: the most similar known name; None if no name is similar.

    Names that contain the word come first. Of a word of up to four letters, a similar name differs by one letter or by
    the order of the letters: two of three letters are common by chance.

    >>> did_you_mean("roh", ["rho", "delta"])
    'Did you mean rho?'
    >>> did_you_mean("dro", ["ado", "group_dro"])
    'Did you mean group_dro?'
    """
    import difflib  # noqa: PLC0415 - needed after an error only

    names = list(known)
    if len(word) >= SHORTEST_PART and (longer := [name for name in names if word in name]):
        names, cutoff = longer, 0.0
    elif len(word) <= SHORT_WORD:
        names, cutoff = [name for name in names if _is_typo(word, name)], 0.0
    else:
        cutoff = 0.6
    near = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    return f"Did you mean {near[0]}?" if near else None


def _is_typo(word: str, name: str) -> bool:
    """Return whether two words have the same letters, or differ by one letter."""
    if sorted(word) == sorted(name):
        return True
    if len(word) == len(name):
        return sum(one != other for one, other in zip(word, name, strict=True)) == 1
    shorter, longer = sorted((word, name), key=len)
    return any(longer[:k] + longer[k + 1 :] == shorter for k in range(len(longer)))
