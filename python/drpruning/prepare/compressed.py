"""Reading a file whole or piecemeal, plain or compressed; a file that ends too early is told from one that ends.

The suffix says how: ``.gz``, ``.zst`` or ``.zstd``, ``.bz2``, ``.xz``, anything else is plain.
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
"""Stands for the standard input."""


class DamagedFileError(CorpusError):
    """A file is truncated or not of the format its name promises."""


def uncompressed_name(path: Path) -> str:
    """The name of ``path`` without the suffix of a compression.

    >>> uncompressed_name(Path("web/a.jsonl.gz"))
    'a.jsonl'
    """
    return path.name.removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name


def read_file(path: Path, size: int = READ_SIZE, at: Callable[[int], object] = int) -> Iterator[bytes]:
    """The content of ``path``, decompressed, in parts of at most ``size`` bytes.

    Args:
        path: The file, or :data:`STDIN`.
        size: Of a part.
        at: Told how many bytes of the file have been read, before each part.

    Raises:
        DamagedFileError: It is truncated or not what its suffix says; what came before has been yielded.
        MissingExtraError: It is ``.zst`` and zstandard is not installed.
        OSError: It cannot be read.
    """
    if path == STDIN:
        while part := sys.stdin.buffer.read(size):
            yield part
        return
    with path.open("rb") as raw:
        try:
            parts = _zstd(raw, size) if path.suffix in ZSTD else iter(partial(_opened(path, raw).read, size), b"")
            for part in parts:
                at(raw.tell())
                yield part
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise _damaged(path, error) from None
        except OSError as error:
            if error.errno is None:  # bz2 has no class of its own for data that is not bz2
                raise _damaged(path, error) from None
            raise


def _opened(path: Path, raw: BinaryIO) -> BinaryIO:
    match path.suffix:
        case ".gz":
            return cast("BinaryIO", gzip.open(raw))
        case ".bz2":
            return cast("BinaryIO", bz2.open(raw))
        case ".xz":
            return cast("BinaryIO", lzma.open(raw))
        case _:
            return raw


def _zstd(raw: BinaryIO, size: int) -> Iterator[bytes]:
    """Frame after frame. zstandard's own readers end quietly where a frame is cut short."""
    zstandard = import_zstandard()
    waiting = b""
    while True:
        waiting = waiting or raw.read(size)
        if not waiting:
            return
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not waiting and not (waiting := raw.read(size)):
                raise EOFError("compressed file ended before the end of a frame")
            try:
                part = frame.decompress(waiting)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            waiting = frame.unused_data if frame.eof else b""
            for start in range(0, len(part), size):
                yield part[start : start + size]


def import_zstandard() -> Any:
    """The zstandard package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import zstandard  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError("reading .zst needs zstandard", 'pip install "drpruning[prepare]"') from error
    return zstandard


def _damaged(path: Path, error: Exception) -> DamagedFileError:
    kind = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}[path.suffix]
    return DamagedFileError(f"{path}: truncated or damaged {kind} file: {error}")
