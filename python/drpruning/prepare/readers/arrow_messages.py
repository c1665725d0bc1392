"""Uncompressed sizes of the messages of an Arrow file, from their metadata, before a library allocates that memory.

A message has metadata, a FlatBuffers table, and a body of buffers. A compressed buffer begins with its uncompressed
size (Arrow columnar format, "IPC File Format", "Encapsulated message format" and "Compression"; ``Message.fbs``,
``File.fbs``). pyarrow allocates that size before it decompresses.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"ARROW1"
CONTINUATION = 0xFFFFFFFF
DICTIONARIES, RECORD_BATCH = 2, 3
"""Kinds of messages with buffers."""
OLD_COMPRESSION = b"ARROW:experimental_compression"
"""Key of the codec in files of Arrow 0.17, whose buffers have the same form."""


class ArrowMessageError(ValueError):
    """The bytes of a message follow another format."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the buffers of messages.

    Attributes:
        stored: Bytes of the bodies.
        uncompressed: Bytes of the compressed buffers when they are decompressed; 0 without compression.
    """

    stored: int = 0
    uncompressed: int = 0

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(self.stored + other.stored, self.uncompressed + other.uncompressed)


@dataclass(frozen=True)
class Message:
    """A message of a file."""

    kind: int
    sizes: Sizes
    end: int


def file_blocks(data: memoryview) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the first byte and the bytes of metadata of the dictionaries and the record batches, from the footer.

    Args:
        data: A file with the magic bytes of the file format at its end.

    Raises:
        ArrowMessageError: The footer follows another format.
    """
    try:
        (length,) = struct.unpack_from("<i", data, len(data) - len(MAGIC) - 4)
        footer = _Table.root(data[len(data) - len(MAGIC) - 4 - length : len(data) - len(MAGIC) - 4])
        dictionaries, batches = (
            [struct.unpack_from("<qi", footer.data, at) for at in footer.structs(field, 24)] for field in (2, 3)
        )
    except struct.error:
        raise ArrowMessageError("the footer ends early") from None
    return dictionaries, batches


def stream_messages(data: memoryview, start: int) -> Iterator[Message]:
    """Yield the messages of the stream format from byte ``start`` to the first record batch, or the end of the stream.

    Raises:
        ArrowMessageError: The bytes are no message.
    """
    while start + 4 <= len(data):
        prefix, length = _prefix(data, start)
        if length == 0:
            return
        message = read_message(data, start, prefix + length)
        yield message
        if message.kind == RECORD_BATCH:
            return
        start = message.end


def read_message(data: memoryview, start: int, metadata_size: int) -> Message:
    """Return the message at byte ``start``; of its body, only the first bytes of compressed buffers are read.

    Args:
        data: The file.
        start: First byte of the message.
        metadata_size: Bytes before its body.

    Raises:
        ArrowMessageError: The bytes are no message.
    """
    try:
        prefix, length = _prefix(data, start)
        metadata = _Table.root(data[start + prefix : start + prefix + length])
        kind, body_size = metadata.number("<B", 1), metadata.number("<q", 3)
        body = start + metadata_size
        if body_size < 0 or min(start, length) < 0 or body + body_size > len(data):
            raise ArrowMessageError("a message is longer than the file")
        batch = metadata.table(2) if kind in (DICTIONARIES, RECORD_BATCH) else None
        if kind == DICTIONARIES and batch is not None:
            batch = batch.table(1)
        sizes = Sizes(body_size)
        if batch is not None and (batch.table(3) is not None or OLD_COMPRESSION in bytes(metadata.data)):
            buffers = [struct.unpack_from("<qq", batch.data, at) for at in batch.structs(2, 16)]
            sizes += Sizes(0, sum(_uncompressed_size(data[body : body + body_size], *buffer) for buffer in buffers))
    except struct.error:
        raise ArrowMessageError("a message ends early") from None
    return Message(kind, sizes, body + body_size)


def _prefix(data: memoryview, start: int) -> tuple[int, int]:
    """Return the bytes before the metadata and the bytes of the metadata; files before Arrow 0.15 have no marker."""
    first, second = struct.unpack_from("<II", data, start) if start + 8 <= len(data) else (0, 0)
    return (8, second) if first == CONTINUATION else (4, first)


def _uncompressed_size(body: memoryview, offset: int, length: int) -> int:
    """Return the size of a buffer after decompression; -1 before its bytes means that it is not compressed."""
    if length == 0:
        return 0
    if min(offset, length) < 0 or offset + length > len(body):
        raise ArrowMessageError("a buffer is outside of its message")
    (size,) = struct.unpack_from("<q", body, offset)
    if size < -1:
        raise ArrowMessageError(f"a compressed buffer has {size} bytes")
    return int(max(size, 0))


@dataclass(frozen=True)
class _Table:
    """A table of FlatBuffers: fields are found by number through offsets, which may lead anywhere."""

    data: memoryview
    at: int

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _field(self, number: int) -> int | None:
        """Return the position of a field, None if it is absent."""
        table = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        if table < 0:
            raise ArrowMessageError("a table of a message is outside of it")
        (size,) = struct.unpack_from("<H", self.data, table)
        offset = struct.unpack_from("<H", self.data, table + 4 + 2 * number)[0] if 6 + 2 * number <= size else 0
        return self.at + offset if offset else None

    def number(self, form: str, number: int) -> int:
        """Return an integer field, 0 if it is absent."""
        at = self._field(number)
        return 0 if at is None else int(struct.unpack_from(form, self.data, at)[0])

    def table(self, number: int) -> _Table | None:
        at = self._field(number)
        return None if at is None else _Table(self.data, at + struct.unpack_from("<I", self.data, at)[0])

    def structs(self, number: int, size: int) -> range:
        """Return the positions of a vector of structs of ``size`` bytes."""
        at = self._field(number)
        if at is None:
            return range(0)
        vector = at + struct.unpack_from("<I", self.data, at)[0]
        (count,) = struct.unpack_from("<I", self.data, vector)
        if vector + 4 + count * size > len(self.data):
            raise ArrowMessageError("a vector of a message is longer than it")
        return range(vector + 4, vector + 4 + count * size, size)
