"""A corpus folder appears whole or not at all: it is filled under another name beside its place, then renamed.

Preparing again what is prepared already costs nothing: a fingerprint of all that decides a corpus is kept in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drpruning.corpus_json import FILE_NAME
from drpruning.errors import CorpusError, DiskError, DrpruningError
from drpruning.files import UNWRITABLE, check_free, new_folder
from drpruning.prepare.manifest import Manifest


def finished(out: Path, sources: str) -> Manifest | None:
    """The corpus in ``out`` if it was made from these sources, or None if ``out`` is free for a new one.

    Args:
        out: The corpus folder asked for.
        sources: Fingerprint of the text, the tokenizer and the options.

    Raises:
        CorpusError: ``out`` holds a corpus of other sources, or something that is not a corpus.
    """
    if not (out / FILE_NAME).exists():
        free_for(out)
        return None
    manifest = Manifest.read(out)
    if manifest.prepared.get("sources") != sources:
        raise CorpusError(
            f"{out} holds a corpus made from other text, options or versions", "Choose another folder, or remove it."
        )
    return manifest


def free_for(out: Path) -> None:
    """Makes sure that a new corpus can take the name ``out``.

    Raises:
        CorpusError: It is a file, or a folder with something in it.
    """
    try:
        check_free(out)
    except FileExistsError as error:
        raise CorpusError(f"{error}, or a corpus with its {FILE_NAME}", "Choose another folder.") from error


@contextmanager
def on_disk(out: Path) -> Iterator[None]:
    """What the block writes for the corpus ``out``.

    Raises:
        DiskError: There is no room, no permission, or the disk fails.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, DrpruningError) or error.errno not in UNWRITABLE:
            raise
        raise DiskError(
            f"the corpus {out} cannot be written: {error}",
            "Make room or give leave to write, then run the same command again.",
        ) from error


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """:func:`drpruning.files.new_folder` for a corpus.

    Raises:
        CorpusError: ``out`` is taken, or another process is filling it now.
    """
    try:
        with new_folder(out) as folder:
            yield folder
    except FileExistsError as error:
        raise CorpusError(str(error), "Choose another folder.") from error
    except BlockingIOError as error:
        raise CorpusError(
            f"another process is preparing {out}", "Wait until it is done, or choose another folder."
        ) from error
