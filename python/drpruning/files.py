"""Atomic writes of files and folders, folder locks, and the cache folder.

A reader sees the old content or the new content, never a part. A file or folder being written is called
``.NAME.partial``, in the same folder as ``NAME``; a folder is inside it, next to the empty file ``drpruning-partial``.

Partial files and folders are created exclusively, and nothing is written through a symbolic link. If the name is in
use, it is reused only if it is the leftover of a killed writer: a file or folder of this user, no link, without the
lock that a running writer holds; a folder is empty or has the mark ``drpruning-partial``. Otherwise it is left alone,
and a name with random digits is used: ``.NAME.DIGITS.partial``.

Windows has no locks of folders. There, files are written in the same way, without locks, and partial files of killed
writers stay; writing and locking folders is a ``PlatformError``.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TextIO

from drpruning.errors import PlatformError

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

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


def open_flags(*names: str) -> int:
    """Return flags of ``os.open`` by their names, without those that the operating system does not have.

    Windows has no pipes and terminals among its files. It has ``O_BINARY``, without which it translates line ends.
    """
    return sum(getattr(os, name, 0) for name in (*names, "O_BINARY"))


def check_unix() -> None:
    """Check that the operating system has locks of folders and signals.

    Raises:
        PlatformError: It is Windows.
    """
    if not HAS_LOCKS:
        raise PlatformError(
            "this needs locks of folders: expected Linux or macOS, found Windows",
            "Use the Windows Subsystem for Linux. The sampler, `advise`, `fit`, `plan` and `report` work on Windows.",
        )


MARK = "drpruning-partial"
"""Name of the file that marks a partial folder of this package."""


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill; rename it to ``target`` after the block, or remove it if the block raises.

    Its content is flushed to the disk before the rename. Until then other users cannot read it.

    Raises:
        FileExistsError: ``target`` is a file or a link, or a folder that is not empty.
        BlockingIOError: Another process is writing ``target`` now.
        OSError: The folder was exchanged by another process.
        PlatformError: The operating system is Windows.
    """
    check_unix()
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    path, handle = _create_partial_folder(target)
    try:
        os.close(os.open(path / MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
        folder = path / target.name
        folder.mkdir()
        yield folder
        _check_same(path, handle)
        rename_folder(folder, target)
    finally:
        if _is_same(path, handle):
            shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def create_own_folder(folder: Path) -> None:
    """Create a folder for files that this user will write; it may exist.

    Raises:
        FileExistsError: It is a symbolic link or a file, or belongs to another user.
        PlatformError: The operating system is Windows.
    """
    check_unix()
    if not folder.is_symlink():
        folder.mkdir(parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or os.geteuid() not in {0, found.st_uid}:
        raise FileExistsError(f"{folder} is a link or belongs to another user; expected a new folder or one of yours")


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
        PlatformError: The operating system is Windows.
    """
    check_unix()
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
    """Check that ``target`` is absent or an empty folder.

    Raises:
        FileExistsError: ``target`` is a file or a link, a folder that is not empty, or has no name, like ``.``.
    """
    if target.name in {"", ".."}:  # a folder that contains this one cannot be replaced
        raise FileExistsError(f"{target} ends with no name; expected a new or an empty folder, such as {target}/new")
    if target.is_symlink():
        raise FileExistsError(f"{target} is a symbolic link; expected a new or an empty folder")
    if target.is_dir():
        if any(target.iterdir()):
            raise FileExistsError(f"{target} is not empty; expected a new or an empty folder")
    elif target.exists():
        raise FileExistsError(f"{target} is a file; expected a new or an empty folder")


def write_text(target: Path, text: str, errors: str = "strict") -> None:
    """Write ``text`` (UTF-8) to a temporary file, flush it to the disk, and rename it to ``target``."""
    write_bytes(target, text.encode("utf-8", errors))


def write_bytes(target: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file, flush it to the disk, and rename it to ``target``."""
    with open_new(target) as file:
        file.write(content)


@contextmanager
def open_new(target: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; rename it to ``target`` after the block, or remove it if the block raises.

    Several processes may write ``target`` at once: each has a partial file, and the last rename wins.
    """
    with _new_partial_file(target) as (_, file):
        yield file


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the path of an empty file for writers that open it; otherwise as :func:`open_new`."""
    with _new_partial_file(target) as (path, _):
        yield path


@contextmanager
def _new_partial_file(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    path, handle = _create_partial_file(target)
    with os.fdopen(handle, "wb") as file:
        try:
            yield path, file
            file.flush()
            os.fsync(handle)
            _check_same(path, handle)
            if not HAS_LOCKS:  # Windows renames and removes closed files only
                file.close()
            path.replace(target)
        except BaseException:
            if not HAS_LOCKS:
                with suppress(OSError):
                    file.close()
            path.unlink(missing_ok=True)
            raise
    _flush(target.parent)


def create_file(path: Path) -> BinaryIO:
    """Open a new file for writing, in a folder of ours; an older file or link of this name is removed."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def open_to_append(path: Path) -> TextIO:
    """Open a text file (UTF-8) at its end; it is created if it does not exist.

    Raises:
        OSError: It is a symbolic link, which could lead out of its folder.
    """
    flags = open_flags("O_WRONLY", "O_CREAT", "O_APPEND", "O_NOFOLLOW", "O_CLOEXEC")
    return os.fdopen(_open_unless_link(path, flags), "a", buffering=1, encoding="utf-8")


def truncate(path: Path, size: int) -> None:
    """Truncate ``path`` to ``size`` bytes if it is longer.

    Raises:
        OSError: It is a symbolic link, or cannot be written.
    """
    if path.exists() and path.stat().st_size > size:
        handle = _open_unless_link(path, open_flags("O_WRONLY", "O_NOFOLLOW", "O_CLOEXEC"))
        try:
            os.ftruncate(handle, size)
        finally:
            os.close(handle)


def open_regular_file(path: Path) -> BufferedReader:
    """Open a regular file for reading, with an error for symbolic links, and for pipes, which would block.

    Raises:
        OSError: ``path`` is not a regular file, or cannot be read.
    """
    handle = _open_unless_link(path, open_flags("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def clear_partial(folder: Path) -> None:
    """Remove the partial files and folders of killed writers in ``folder``; others are left alone."""
    for path in folder.glob(".*.partial"):
        with suppress(BlockingIOError):
            _remove_leftover(path)


def _open_unless_link(path: Path, flags: int) -> int:
    link = OSError(errno.ELOOP, "is a symbolic link, expected a regular file", str(path))
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise link
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise link from None
        raise


def _partial_names(target: Path) -> Iterator[Path]:
    """Yield the name of a partial file or folder, then names with random digits."""
    yield target.with_name(f".{target.name}.partial")
    for _ in range(8):
        yield target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")


def _create_partial_folder(target: Path) -> tuple[Path, int]:
    """Create an empty folder that this process has locked; return it and the open lock.

    Raises:
        BlockingIOError: Another process is writing ``target``.
    """
    for path in _partial_names(target):
        if os.path.lexists(path) and not _remove_leftover(path):
            continue
        try:
            path.mkdir(mode=0o700)
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            if _lock(handle) and _is_same(path, handle):
                return path, handle
            os.close(handle)
        except (FileExistsError, FileNotFoundError):
            pass
        raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing this folder", str(path))
    raise FileExistsError(f"no partial folder for {target} can be created")


def _create_partial_file(target: Path) -> tuple[Path, int]:
    """Create an empty file that this process has locked, where the file system has locks; return path and handle."""
    flags = open_flags("O_RDWR", "O_CREAT", "O_EXCL", "O_NOFOLLOW", "O_CLOEXEC")
    for path in _partial_names(target):
        with suppress(FileExistsError, BlockingIOError):
            try:
                handle = os.open(path, flags, 0o666)
            except FileExistsError:
                if not _remove_leftover(path):
                    continue
                handle = os.open(path, flags, 0o666)
            if _lock(handle) and _is_same(path, handle):
                return path, handle
            os.close(handle)
    raise FileExistsError(f"no partial file for {target} can be created")


def _remove_leftover(path: Path) -> bool:
    """Remove the partial file or folder of a killed writer; return whether ``path`` was one.

    Raises:
        BlockingIOError: Its writer is running.
    """
    if not HAS_LOCKS:  # whether its writer runs is not known
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        is_folder = stat.S_ISDIR(found.st_mode)
        if found.st_uid != os.geteuid() or not (is_folder or stat.S_ISREG(found.st_mode)):
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process is writing this path", str(path)) from None
        names = os.listdir(handle) if is_folder else []  # noqa: PTH208 - of the open folder
        if (names and MARK not in names) or not _is_same(path, handle):
            return False
        if is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    except BlockingIOError:
        raise
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _lock(handle: int) -> bool:
    """Lock a new file or folder; return False if another process was faster."""
    if not HAS_LOCKS:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks: its leftovers are left alone
        return True
    return True


def _is_same(path: Path, handle: int) -> bool:
    """Return whether ``path`` is the open file or folder, and no link to it."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except OSError:
        return False


def _check_same(path: Path, handle: int) -> None:
    if not _is_same(path, handle):
        raise OSError(errno.ESTALE, "was removed or exchanged by another process", str(path))


def _flush(path: Path) -> None:
    """Wait until the content of ``path`` is on the disk, so that the rename cannot precede it."""
    if not HAS_LOCKS:  # Windows flushes no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
