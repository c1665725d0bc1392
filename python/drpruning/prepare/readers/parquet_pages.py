"""Uncompressed sizes of the pages of a Parquet file, from their headers, before a library allocates that memory.

Footer and page headers are Thrift structs in the compact protocol (parquet-format, ``FileMetaData``, ``PageHeader``).
pyarrow has no access to page headers, and a damaged column in its footer aborts the process.
"""

from __future__ import annotations

import io
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

DEEPEST = 12
"""Levels of nesting in a footer, lists included; the format has 8."""


class PageHeaderError(ValueError):
    """The bytes of a page header follow another format."""


@lru_cache(maxsize=1)
def column_ranges(path: Path, size: int) -> list[list[tuple[int, int]]]:
    """Return the first byte of each column chunk and the byte after it, by row group and column.

    Args:
        path: The file.
        size: Its size in bytes.

    Raises:
        PageHeaderError: The footer follows another format.
    """
    with path.open("rb") as file:
        file.seek(-min(8, size), os.SEEK_END)
        (length,) = struct.unpack("<I", file.read(4) or bytes(4))
        file.seek(-min(length + 8, size), os.SEEK_END)
        footer = io.BytesIO(file.read(length))
    try:
        return [
            [_column_range(column[3]) for column in row_group[1]] for row_group in _read_struct(footer, 0).get(4, [])
        ]
    except (KeyError, TypeError, AttributeError):
        raise PageHeaderError("the footer lacks a column") from None


def _column_range(column: dict[int, Any]) -> tuple[int, int]:
    start, dictionary = int(column[9]), int(column.get(11, 0))
    start = dictionary if 0 < dictionary < start else start
    return start, start + int(column[7])


def largest_page(file: BinaryIO, start: int, end: int) -> int:
    """Return the largest uncompressed size of the pages between two bytes of a file: those of a column chunk.

    Reads the headers only.

    Raises:
        PageHeaderError: The bytes are no pages.
    """
    largest = 0
    file.seek(start)
    while file.tell() < end:
        fields = _read_struct(file, 0)
        uncompressed, compressed = fields.get(2, -1), fields.get(3, -1)
        if not (isinstance(uncompressed, int) and isinstance(compressed, int)) or uncompressed < 0 or compressed < 0:
            raise PageHeaderError("a page has no size")
        largest = max(largest, uncompressed)
        file.seek(compressed, io.SEEK_CUR)
    return largest


def _read_struct(file: BinaryIO, depth: int) -> dict[int, Any]:
    """Return the integers, lists and structs of a struct by field number; other values are skipped."""
    if depth > DEEPEST:
        raise PageHeaderError("a page header is nested too deeply")
    fields: dict[int, Any] = {}
    number = 0
    while head := _byte(file):
        number = number + (head >> 4) if head >> 4 else _zigzag(file)
        value = _read_value(file, head & 15, depth)
        if value is not None:
            fields[number] = value
    return fields


def _read_value(file: BinaryIO, kind: int, depth: int) -> Any:
    match kind:
        case 1 | 2:  # the type is the value
            pass
        case 3:
            _byte(file)
        case 4 | 5 | 6:
            return _zigzag(file)
        case 7:
            file.seek(8, io.SEEK_CUR)
        case 8:
            file.seek(_varint(file), io.SEEK_CUR)
        case 9 | 10:
            head = _byte(file)
            count = head >> 4 if head >> 4 < 15 else _varint(file)
            return [_read_item(file, head & 15, depth) for _ in range(count)]
        case 11:
            if count := _varint(file):
                kinds = _byte(file)
                for _ in range(count):
                    _read_item(file, kinds >> 4, depth)
                    _read_item(file, kinds & 15, depth)
        case 12:
            return _read_struct(file, depth + 1)
        case _:
            raise PageHeaderError(f"a page header has a field of type {kind}")
    return None


def _read_item(file: BinaryIO, kind: int, depth: int) -> Any:
    """Read an item of a list or a map; a boolean takes a byte there."""
    if depth > DEEPEST:
        raise PageHeaderError("a page header is nested too deeply")
    return _read_value(file, 3 if kind in (1, 2) else kind, depth + 1)


def _byte(file: BinaryIO) -> int:
    data = file.read(1)
    if not data:
        raise PageHeaderError("the file ends within a page header")
    return data[0]


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = _byte(file)
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value
        if shift > 63:
            raise PageHeaderError("a number in a page header is too long")


def _zigzag(file: BinaryIO) -> int:
    value = _varint(file)
    return (value >> 1) ^ -(value & 1)
