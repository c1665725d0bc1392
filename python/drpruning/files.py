"""Atomic writes of files and folders, folder locks, and the cache folder.

A reader sees the old content or the new content, never a part. A file or folder being written is called
``.NAME.partial``, in the same folder as ``NAME``. A killed writer leaves it behind; the next writer of ``NAME``
removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
"""Error numbers of the operating system for a folder that cannot be written."""


def cache_folder() -> Path:
    """Return ``$DRPRUNING_CACHE``, else ``drpruning`` in the user's cache folder, without creating it.

    It holds data that later runs reuse: base models trained by recipes, the demo corpus, materialized MDS shards.
    """
    path = os.environ.get("DRPRUNING_CACHE")
    if path:
        return Path(path).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drpruning"


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; rename it to ``target`` after the block, or remove it if the block raises.

    Its content is flushed to the disk before the rename. A running writer holds a lock on its folder.

    Raises:
        FileExistsError: ``target`` is a file, or a folder that is not empty.
        BlockingIOError: Another process is writing ``target`` now.
    """
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = _partial(target)
    folder.mkdir(exist_ok=True)
    with locked(folder):
        try:
            for path in folder.iterdir():
                _remove(path)
            yield folder
            rename_folder(folder, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def rename_folder(folder: Path, target: Path) -> None:
    """Flush a finished folder to the disk, then rename it to ``target``.

    Raises:
        FileExistsError: ``target`` is a file, or a folder that is not empty.
    """
    for path in (*folder.rglob("*"), folder):
        _flush(path)
    check_free(target)
    folder.replace(target)
    _flush(target.parent)


def move_files(source: Path, target: Path) -> None:
    """Move all files of one folder into another on the same disk; each is flushed to the disk first."""
    for path in sorted(source.iterdir()):
        _flush(path)
        path.replace(target / path.name)
    _flush(target)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``folder`` while the block runs. The lock ends with the process.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process is writing this folder", str(folder)) from None
        yield
    finally:
        os.close(handle)


def check_free(target: Path) -> None:
    """Raise unless ``target`` is absent or an empty folder.

    Raises:
        FileExistsError: ``target`` is a file, or a folder that is not empty.
    """
    if target.is_dir():
        if any(target.iterdir()):
            raise FileExistsError(f"{target} is not empty; expected a new or an empty folder")
    elif target.exists():
        raise FileExistsError(f"{target} is a file; expected a new or an empty folder")


def write_text(target: Path, text: str, errors: str = "strict") -> None:
    """Write ``text`` (UTF-8) to a temporary file, flush it to the disk, and rename it to ``target``."""
    with new_file(target) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def write_bytes(target: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file, flush it to the disk, and rename it to ``target``."""
    with new_file(target) as partial:
        partial.write_bytes(content)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a path to write; rename it to ``target`` after the block, or remove it if the block raises."""
    partial = _partial(target)
    try:
        yield partial
        _flush(partial)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush(target.parent)


def clear_partial(folder: Path) -> None:
    """Remove the partial files and folders of killed writers in ``folder``."""
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
    """Wait until the content of ``path`` is on the disk, so that the rename cannot precede it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
