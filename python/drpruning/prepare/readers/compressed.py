"""Read plain and compressed files in parts, and detect truncated ones.

The suffix selects the compression: ``.gz``, ``.zst`` or ``.zstd``, ``.bz2``, ``.xz``; any other file is plain.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from drpruning.errors import CorpusError, MissingExtraError

SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")
ZSTD = (".zst", ".zstd")
READ_SIZE = 1 << 20

STDIN = Path("-")
"""Path of the standard input."""


class DamagedFileError(CorpusError):
    """A file is truncated or not in the format of its suffix."""


def uncompressed_name(path: Path) -> str:
    """Return the name of ``path`` without a compression suffix.

    >>> uncompressed_name(Path("web/a.jsonl.gz"))
    'a.jsonl'
    """
    return path.name.removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name


def read_file(path: Path, size: int = READ_SIZE, on_position: Callable[[int], object] = int) -> Iterator[bytes]:
    """Yield the decompressed content of ``path`` in parts of at most ``size`` bytes.

    Args:
        path: The file, or :data:`STDIN`.
        size: Largest part.
        on_position: Called before each part with the number of bytes read from the file.

    Raises:
        DamagedFileError: The file is truncated or not in the format of its suffix. The content before the damage has
            been yielded.
        MissingExtraError: The file is ``.zst`` and zstandard is not installed.
        OSError: The file cannot be read.
    """
    if path == STDIN:
        while part := sys.stdin.buffer.read(size):
            yield part
        return
    with path.open("rb") as raw:
        try:
            parts = _read_zstd(raw, size) if path.suffix in ZSTD else iter(partial(_open(path, raw).read, size), b"")
            for part in parts:
                on_position(raw.tell())
                yield part
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise _damaged_file(path, error) from None
        except OSError as error:
            if error.errno is None:  # bz2 raises a plain OSError for data that is not bz2
                raise _damaged_file(path, error) from None
            raise


def _open(path: Path, raw: BinaryIO) -> BinaryIO:
    match path.suffix:
        case ".gz":
            return cast("BinaryIO", gzip.open(raw))
        case ".bz2":
            return cast("BinaryIO", bz2.open(raw))
        case ".xz":
            return cast("BinaryIO", lzma.open(raw))
        case _:
            return raw


def _read_zstd(raw: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the content of all frames. zstandard's own readers do not report a truncated frame."""
    zstandard = import_zstandard()
    pending = b""
    while True:
        pending = pending or raw.read(size)
        if not pending:
            return
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not pending and not (pending := raw.read(size)):
                raise EOFError("compressed file ended before the end of a frame")
            try:
                part = frame.decompress(pending)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            pending = frame.unused_data if frame.eof else b""
            for start in range(0, len(part), size):
                yield part[start : start + size]


def import_zstandard() -> Any:
    """Import the zstandard package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import zstandard  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError("reading .zst needs zstandard", 'pip install "drpruning[prepare]"') from error
    return zstandard


def _damaged_file(path: Path, error: Exception) -> DamagedFileError:
    kind = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}[path.suffix]
    return DamagedFileError(f"{path}: truncated or damaged {kind} file: {error}")
