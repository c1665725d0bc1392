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
from io import BufferedReader
from pathlib import Path
from typing import Any

from drpruning.errors import CorpusError, MissingExtraError, install_command
from drpruning.inputs import open_file

SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")
READ_SIZE = 1 << 20
XZ_MEMORY = 80 << 20
"""Bytes of memory for a ``.xz`` file: `xz -9` needs 65 MiB, and the format allows 4 GiB."""
ZSTD_WINDOW = 1 << 25
"""Bytes of the largest window of a ``.zst`` frame: that of level 20. The format allows terabytes."""

STDIN = Path("-")
"""Path of the standard input."""


class DamagedFileError(CorpusError):
    """A file is truncated or not in the format of its suffix."""


class UnreadableFileError(CorpusError):
    """There is no file of a path, or it is a pipe or a device."""


def uncompressed_name(path: Path) -> str:
    """Return the name of ``path`` without a compression suffix.

    >>> uncompressed_name(Path("web/a.jsonl.gz"))
    'a.jsonl'
    """
    return path.name.removesuffix(path.suffix) if path.suffix in SUFFIXES else path.name


def read_file(path: Path, size: int = READ_SIZE, on_position: Callable[[int], object] = int) -> Iterator[bytes]:
    """Yield the decompressed content of ``path`` in parts of at most ``size`` bytes, in bounded memory.

    Args:
        path: The file, or :data:`STDIN`.
        size: Largest part.
        on_position: Called before each part with the number of bytes read from the file.

    Raises:
        DamagedFileError: The file is truncated or not in the format of its suffix. The content before the damage has
            been yielded.
        MissingExtraError: The file is ``.zst`` and zstandard is not installed.
        UnreadableFileError: It is not a regular file.
        OSError: It cannot be read.
    """
    if path == STDIN:
        while part := sys.stdin.buffer.read(size):
            yield part
        return
    with open_file(path, UnreadableFileError) as raw:
        try:
            for part in _parts(path, raw, size):
                on_position(raw.tell())
                yield part
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise _damaged_file(path, error) from None
        except OSError as error:
            if error.errno is None:  # bz2 raises a plain OSError for data that is not bz2
                raise _damaged_file(path, error) from None
            raise


def _parts(path: Path, raw: BufferedReader, size: int) -> Iterator[bytes]:
    match path.suffix:
        case ".gz":
            return iter(partial(gzip.open(raw).read, size), b"")
        case ".bz2":
            return iter(partial(bz2.open(raw).read, size), b"")
        case ".xz":
            return _read_xz(raw, size)
        case ".zst" | ".zstd":
            return _read_zstd(raw)
        case _:
            return iter(partial(raw.read, size), b"")


def _read_xz(raw: BufferedReader, size: int) -> Iterator[bytes]:
    """Yield the content of all streams. The reader of lzma accepts dictionaries of 4 GiB."""
    pending = b""
    while pending := pending.lstrip(b"\0") or raw.read(size):  # zeros fill up a stream
        if not pending.strip(b"\0"):
            continue
        pending = pending.lstrip(b"\0")
        stream = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
        while not stream.eof:
            if stream.needs_input and not pending and not (pending := raw.read(size)):
                raise EOFError("compressed file ended before the end of a stream")
            part = stream.decompress(pending, size)
            pending = b""
            if part:
                yield part
        pending = stream.unused_data


def _read_zstd(raw: BufferedReader) -> Iterator[bytes]:
    """Yield the content of all frames, block by block.

    A block has at most 128 KiB, while a part of a file may unfold to gigabytes in one call; and zstandard's own readers
    do not report a truncated frame. RFC 8878 has the layout: magic, descriptor and sizes, blocks, checksum.
    """
    zstandard = import_zstandard()

    def take(count: int) -> bytes:
        if len(data := raw.read(count)) < count:
            raise EOFError("compressed file ended before the end of a frame")
        return data

    while first := raw.read(1):
        magic = first + take(3)
        if magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50:
            length = int.from_bytes(take(4), "little")
            while length > 0:
                length -= len(take(min(length, READ_SIZE)))
            continue
        (descriptor,) = take(1)
        single, has_checksum = bool(descriptor & 0x20), bool(descriptor & 0x04)
        content_bytes = (int(single), 2, 4, 8)[descriptor >> 6]
        header = take((not single) + (0, 1, 2, 4)[descriptor & 3] + content_bytes)
        frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
        data, last = magic + bytes([descriptor]) + header, False
        try:
            frame.decompress(data)
            while not last:
                head = take(3)
                block = int.from_bytes(head, "little")
                last, is_run = bool(block & 1), block >> 1 & 3 == 1
                data = head + take(1 if is_run else block >> 3)
                if part := frame.decompress(data + (take(4) if last and has_checksum else b"")):
                    yield part
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None


def import_zstandard() -> Any:
    """Import the zstandard package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import zstandard  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise MissingExtraError("reading .zst needs zstandard", install_command("zstandard")) from error
    return zstandard


def _damaged_file(path: Path, error: Exception) -> DamagedFileError:
    kind = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}[path.suffix]
    return DamagedFileError(f"{path}: truncated or damaged {kind} file: {error}")
