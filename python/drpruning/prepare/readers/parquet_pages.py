"""Uncompressed sizes of the pages of a Parquet file, from their headers, before a library allocates that memory.

A page header is a Thrift struct in the compact protocol: field 2 is the uncompressed size of the page, field 3 the
compressed one (parquet-format, ``PageHeader``). The page follows its header.
"""

from __future__ import annotations

import io
from typing import BinaryIO

DEEPEST = 8
"""Levels of nesting in a page header; the format has 3."""


class PageHeaderError(ValueError):
    """The bytes of a page header follow another format."""


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
        if uncompressed < 0 or compressed < 0:
            raise PageHeaderError("a page has no size")
        largest = max(largest, uncompressed)
        file.seek(compressed, io.SEEK_CUR)
    return largest


def _read_struct(file: BinaryIO, depth: int) -> dict[int, int]:
    """Return the integers of a struct by field number; other values are skipped."""
    if depth > DEEPEST:
        raise PageHeaderError("a page header is nested too deeply")
    fields: dict[int, int] = {}
    number = 0
    while head := _byte(file):
        number = number + (head >> 4) if head >> 4 else _zigzag(file)
        value = _read_value(file, head & 15, depth)
        if value is not None:
            fields[number] = value
    return fields


def _read_value(file: BinaryIO, kind: int, depth: int) -> int | None:
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
            for _ in range(count):
                _read_item(file, head & 15, depth)
        case 11:
            if count := _varint(file):
                kinds = _byte(file)
                for _ in range(count):
                    _read_item(file, kinds >> 4, depth)
                    _read_item(file, kinds & 15, depth)
        case 12:
            _read_struct(file, depth + 1)
        case _:
            raise PageHeaderError(f"a page header has a field of type {kind}")
    return None


def _read_item(file: BinaryIO, kind: int, depth: int) -> None:
    """Skip an item of a list or a map; a boolean takes a byte there."""
    _read_value(file, 3 if kind in (1, 2) else kind, depth + 1)
    if depth > DEEPEST:
        raise PageHeaderError("a page header is nested too deeply")


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
