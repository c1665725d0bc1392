"""A corpus folder appears whole or not at all: it is filled under another name beside its place, then renamed.

Preparing again what is prepared already costs nothing: a fingerprint of all that decides a corpus is kept in it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drpruning.corpus_json import FILE_NAME
from drpruning.errors import CorpusError
from drpruning.prepare.manifest import Manifest


def check_free(out: Path) -> None:
    """Makes sure that ``out`` can become a corpus: it is absent or an empty folder.

    Raises:
        CorpusError: It is a file, or a folder with something in it.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise CorpusError(
                f"{out} is not empty and holds no {FILE_NAME}; wanted a new or an empty folder",
                "Choose another folder.",
            )
    elif out.exists():
        raise CorpusError(f"{out} is a file; wanted a new or an empty folder", "Choose another folder.")


def finished(out: Path, sources: str) -> Manifest | None:
    """The corpus in ``out`` if it was made from these sources, or None if ``out`` is free for a new one.

    Args:
        out: The corpus folder asked for.
        sources: Fingerprint of the text, the tokenizer and the options.

    Raises:
        CorpusError: ``out`` holds a corpus of other sources, or something that is not a corpus.
    """
    if not (out / FILE_NAME).exists():
        check_free(out)
        return None
    manifest = Manifest.read(out)
    if manifest.prepared.get("sources") != sources:
        raise CorpusError(
            f"{out} holds a corpus made from other text, options or versions", "Choose another folder, or remove it."
        )
    return manifest


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``out`` when the block ends well and is removed when it does not.

    What a killed process left behind is cleared by the next one that wants the same name; a process that is still at
    work holds a lock on its folder and is left alone.

    Raises:
        CorpusError: ``out`` is taken, or another process is filling it now.
    """
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(
                f"another process is preparing {out}", "Wait until it is done, or choose another folder."
            ) from None
        try:
            _empty(folder)
            yield folder
            _flush(folder)
            folder.rename(out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink()


def _flush(folder: Path) -> None:
    """Waits until the files are on the disk, so that a power cut cannot leave a complete name on half a file."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
