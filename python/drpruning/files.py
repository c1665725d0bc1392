"""Writing files so that a reader sees the old one or the new one, never half of either."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".writing-"  # prefix of names that are not finished; whoever finds one may delete it


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a folder beside ``target`` to fill; renames it to ``target`` when the block ends without an error.

    Every file in it is flushed to the disk before the rename, and the rename itself after it. On an error the folder is
    removed and ``target`` does not appear.

    Raises:
        FileExistsError: ``target`` exists already when the block ends, and is not empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f"{ASIDE}{target.name}-{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        yield aside
        for path in sorted(aside.rglob("*"), reverse=True):
            _flush(path)
        _flush(aside)
        if target.is_dir() and any(target.iterdir()):
            raise FileExistsError(f"{target} exists already")
        aside.replace(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Writes ``text`` (UTF-8) aside, flushes it to the disk, and renames it to ``target``."""
    aside = target.parent / f"{ASIDE}{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        aside.write_text(text, encoding="utf-8")
        _flush(aside)
        aside.replace(target)
        _flush(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Removes what an interrupted writer left in ``folder``."""
    for path in folder.glob(f"{ASIDE}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
