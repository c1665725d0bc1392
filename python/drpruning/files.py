"""Writing files and folders so that a reader sees the old one or the new one, never half of either.

What is under way is called ``.NAME.partial`` and lies beside ``NAME``. A writer that was killed leaves it behind; the
next one that wants the same name clears it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
"""What the operating system says when a folder cannot be written."""


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a folder to fill that takes the name ``target`` when the block ends well and is removed when it does not.

    Everything in it is on the disk before the rename. A writer that is still at work holds a lock on its folder and is
    left alone.

    Raises:
        FileExistsError: ``target`` is a file, or a folder with something in it.
        BlockingIOError: Another process is writing ``target`` now.
    """
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = _partial(target)
    folder.mkdir(exist_ok=True)
    with locked(folder):
        try:
            for left in folder.iterdir():
                _remove(left)
            yield folder
            rename_folder(folder, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def rename_folder(folder: Path, target: Path) -> None:
    """Gives a finished folder the name ``target``, once everything in it is on the disk.

    Raises:
        FileExistsError: ``target`` is a file, or a folder with something in it.
    """
    for path in (*folder.rglob("*"), folder):
        _flush(path)
    check_free(target)
    folder.replace(target)
    _flush(target.parent)


def move_files(source: Path, target: Path) -> None:
    """Moves all files of one folder into another on the same disk, each once its content is on it."""
    for path in sorted(source.iterdir()):
        _flush(path)
        path.replace(target / path.name)
    _flush(target)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from locking ``folder`` while the block runs; ends with the process, however it ends.

    Raises:
        BlockingIOError: Another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process is at work there", str(folder)) from None
        yield
    finally:
        os.close(handle)


def check_free(target: Path) -> None:
    """Makes sure that a new folder can take the name ``target``: it is absent or an empty folder.

    Raises:
        FileExistsError: It is a file, or a folder with something in it.
    """
    if target.is_dir():
        if any(target.iterdir()):
            raise FileExistsError(f"{target} is not empty; wanted a new or an empty folder")
    elif target.exists():
        raise FileExistsError(f"{target} is a file; wanted a new or an empty folder")


def write_text(target: Path, text: str, errors: str = "strict") -> None:
    """Writes ``text`` (UTF-8) aside, flushes it to the disk, and renames it to ``target``."""
    with new_file(target) as aside:
        aside.write_text(text, encoding="utf-8", errors=errors)


def write_bytes(target: Path, content: bytes) -> None:
    """Writes ``content`` aside, flushes it to the disk, and renames it to ``target``."""
    with new_file(target) as aside:
        aside.write_bytes(content)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yields a path to write that takes the name ``target`` when the block ends well and is removed when not."""
    aside = _partial(target)
    try:
        yield aside
        _flush(aside)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _flush(target.parent)


def clear_partial(folder: Path) -> None:
    """Removes what killed writers left in ``folder``."""
    for path in folder.glob(".*.partial"):
        _remove(path)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush(path: Path) -> None:
    """Waits until the contents of ``path`` are on the disk, so that the rename cannot overtake them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
