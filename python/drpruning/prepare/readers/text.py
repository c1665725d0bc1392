"""Readers of text, JSON lines and JSON: ``.txt``, ``.md``, ``.jsonl``, ``.ndjson``, ``.json``, also compressed.

:func:`split_json_values` scans ``.json`` files of any size in bounded memory and leaves parsing to pydantic_core, so
a damaged value is one input error; pydantic_core does not stream, and ijson stops at the first damaged value.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from drpruning.inputs import open_file
from drpruning.prepare.readers.blocks import (
    LONGEST_ENTRY,
    READ_ERRORS,
    Block,
    InputErrors,
    ReadUnit,
    SourceFile,
    pack_texts,
    too_long_entry,
    unreadable_file,
)
from drpruning.prepare.readers.compressed import STDIN, UnreadableFileError, read_file
from drpruning.prepare.readers.field_mapping import FieldMapping

BYTE_ORDER_MARK = "\ufeff"

Utf8 = Literal["replace", "skip", "fail"]
"""Policy for invalid UTF-8: replace it by U+FFFD as Unicode advises, skip the document, or count an input error."""

# A complete string, a bracket, a comma, or the quote that begins an incomplete string.
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]|"', re.DOTALL)
_SPACE = b" \t\r\n"

MOST_VALUES = 1 << 20
"""A JSON entry with more values is an input error: 64 MiB of empty lists would become gigabytes of objects."""


def divide_lines(file: SourceFile, block_size: int) -> Iterator[ReadUnit]:
    """Divide an uncompressed file into byte ranges; a compressed file is one unit."""
    if file.compressed:
        yield ReadUnit("lines", (file.path,), file.size)
        return
    for start in range(0, file.size, block_size) or [0]:
        end = min(start + block_size, file.size)
        yield ReadUnit("lines", (file.path,), end - start, start, end)


def read_lines(unit: ReadUnit, fields: FieldMapping, block_size: int) -> Iterator[Block]:
    """Read JSON lines: the lines that begin in a byte range, or all lines of a file, block by block."""
    if unit.end is not None:
        yield from _read_line_range(unit, unit.end)
    else:
        yield from _lines_to_blocks(_CountingReader(unit), unit, block_size, "line")


def read_json_values(unit: ReadUnit, fields: FieldMapping, block_size: int) -> Iterator[Block]:
    """Read ``.json``: as lines if the first line is a whole object, as in C4's ``.json.gz``, else as JSON values."""
    (path,) = unit.files
    reader = _CountingReader(unit)
    if _is_json_lines(path):
        yield from _lines_to_blocks(reader, unit, block_size, "line")
    else:
        reader.parts = split_json_values(reader.parts, LONGEST_ENTRY)
        yield from _lines_to_blocks(reader, unit, block_size, "entry")


def read_texts(unit: ReadUnit, fields: FieldMapping, block_size: int) -> Iterator[Block]:
    """Read text files, one document each. A file larger than a block becomes a ``giant`` block without data."""
    errors = InputErrors()
    left_out: Counter[str] = Counter()
    texts = []
    for path in unit.files:
        text = bytearray()
        try:
            for part in read_file(path):
                text += part
                if len(text) > block_size and path != STDIN:
                    break
        except READ_ERRORS as error:
            errors.add(unreadable_file(path, error))
            continue
        if len(text) > block_size:
            yield Block("giant", b"", str(path), item="file", bytes_read=unit.size, errors=errors, left_out=left_out)
            return  # a large file is alone in its unit
        texts.append(bytes(text))
    yield Block("documents", pack_texts(texts), str(unit.files[0]), 1, 0, "file", unit.size, errors, left_out)


def _read_line_range(unit: ReadUnit, unit_end: int) -> Iterator[Block]:
    (path,) = unit.files
    errors = InputErrors()
    left_out: Counter[str] = Counter()
    data, begin = b"", unit.start
    try:
        with open_file(path, UnreadableFileError) as file:
            if unit.start > 0:
                file.seek(unit.start - 1)
                while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
                    pass
                begin = file.tell()
            if begin < unit_end:
                data = file.read(unit_end - begin)
                length = len(data) - data.rfind(b"\n") - 1  # of the line that crosses the end of the range
                while not data.endswith(b"\n") and (part := file.readline(LONGEST_ENTRY)):
                    length += len(part)
                    if length <= LONGEST_ENTRY:
                        data += part
                        continue
                    data = data[: data.rfind(b"\n") + 1]
                    errors.add(too_long_entry(path, "line", data.count(b"\n") + 1, begin))
                    while part and not part.endswith(b"\n"):
                        part = file.readline(1 << 20)
                    break
    except READ_ERRORS as error:
        errors.add(unreadable_file(path, error))
    if unit.size == 0 and not errors.counts:
        left_out["empty_file"] += 1
    if data or errors.counts or left_out:
        yield Block("lines", data, str(path), offset=begin, bytes_read=unit.size, errors=errors, left_out=left_out)


def _is_json_lines(path: Path) -> bool:
    """Guess the layout of a ``.json`` file: whether its first line opens and closes one object."""
    start = bytearray()
    try:
        for part in read_file(path):
            start += part
            if b"\n" in part or len(start) > LONGEST_ENTRY:
                break
    except READ_ERRORS:
        pass
    line = bytes(start).partition(b"\n")[0].removeprefix(b"\xef\xbb\xbf").strip()
    if not (line.startswith(b"{") and line.endswith(b"}")):
        return False
    return len(list(islice(split_json_values([line], LONGEST_ENTRY), 2))) < 2


class _CountingReader:
    """Reads a file in parts; counts the bytes read since the last :meth:`take_count`."""

    def __init__(self, unit: ReadUnit) -> None:
        self.position = self.counted = 0
        self.parts = read_file(unit.files[0], on_position=self._set_position)

    def _set_position(self, position: int) -> None:
        self.position = position

    def take_count(self) -> int:
        before, self.counted = self.counted, self.position
        return self.counted - before


def _lines_to_blocks(reader: _CountingReader, unit: ReadUnit, block_size: int, item: str) -> Iterator[Block]:
    """Collect the lines of a stream into blocks, and skip lines that are too long."""
    (path,) = unit.files
    pending = bytearray()
    first, has_content, skipping = 1, False, False
    errors = InputErrors()
    while True:
        try:
            part = next(reader.parts, b"")
        except READ_ERRORS as error:
            errors.add(unreadable_file(path, error))
            pending = pending[: pending.rfind(b"\n") + 1]  # the last line is incomplete
            part = b""
        has_content |= bool(part)
        if skipping:
            _, newline, rest = part.partition(b"\n")
            if part and not newline:
                continue
            skipping, part = False, rest
            first += 1
            if not part and newline:
                continue
        pending += part
        end = len(pending) if not part else pending.rfind(b"\n") + 1
        if not part or end >= block_size:
            left_out = Counter({"empty_file": 1} if not has_content and not errors.counts else {})
            if end or errors.counts or left_out:
                data = bytes(pending[:end])
                yield Block("lines", data, str(path), first, 0, item, reader.take_count(), errors, left_out)
                first += data.count(b"\n")
                errors = InputErrors()
                del pending[:end]
            if not part:
                return
        if len(pending) - end > LONGEST_ENTRY or (end == 0 and len(pending) > LONGEST_ENTRY):
            complete = pending.rfind(b"\n") + 1
            errors.add(too_long_entry(path, "line", first + pending.count(b"\n")))
            del pending[complete:]
            skipping = True


def split_json_values(parts: Iterable[bytes], longest: int) -> Iterator[bytes]:
    r"""Yield the elements of a JSON array, or the values of a JSON stream, one per line.

    The scan finds brackets, commas and strings only; the JSON parser then accepts or rejects each line. Every value
    becomes a line, also an incomplete last one.

    Args:
        parts: The content of the file.
        longest: A longer value is cut after this many bytes, so that the parser rejects it; the rest is skipped.

    >>> list(split_json_values([b'[{"text": "a"}, {"te', b'xt":\n "b]"}]'], 100))
    [b'{"text": "a"}\n', b'{"text":  "b]"}\n']
    >>> list(split_json_values([b'{"text": "a"} {"text": "b"}'], 100))
    [b'{"text": "a"}\n', b'{"text": "b"}\n']
    """
    scanner = _JsonScanner(longest)
    for part in parts:
        yield from scanner.feed(part)
    yield from scanner.finish()


class _JsonScanner:
    """State of the scan of a JSON file."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.pending = b""  # bytes to scan again: an incomplete string
        self.unscanned = bytearray()  # later bytes, scanned when they are as many, so that the time is linear
        self.depth = 0
        self.value_depth = 0  # depth of the values: 1 in an array, 0 outside
        self.started = False
        self.value = bytearray()  # bytes of the incomplete value

    def feed(self, part: bytes) -> Iterator[bytes]:
        self.unscanned += part
        if len(self.unscanned) >= len(self.pending):
            yield from self._scan()

    def _scan(self) -> Iterator[bytes]:
        data = self.pending + self.unscanned
        self.unscanned.clear()
        if not self.started:
            data = data.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
            if not data:
                return
            self.started = True
            if data.startswith(b"["):
                self.value_depth = self.depth = 1
                data = data[1:]
        start = end = 0  # of the incomplete value; of the scanned bytes
        for token in _JSON_TOKEN.finditer(data):
            kind = token[0]
            if kind == b'"':
                end = token.start()
                break
            end = token.end()
            self.depth += (kind in b"[{") - (kind in b"]}")
            if self.depth == self.value_depth and kind in b"]}":
                self._append(data[start:end])
            elif self.depth < self.value_depth or (kind == b"," and self.depth == self.value_depth == 1):
                self._append(data[start : token.start()])
                self.value_depth = min(self.value_depth, self.depth)
            else:
                continue
            start = end
            yield from self._take_value()
        else:
            end = len(data)
        self._append(data[start:end])
        self.pending = data[end:]
        if len(self.pending) > self.longest:  # the parser will reject the value; drop the start of its string
            self._append(self.pending)
            backslashes = len(self.pending) - len(self.pending.rstrip(b"\\"))
            self.pending = b'"' + b"\\" * (backslashes % 2)

    def finish(self) -> Iterator[bytes]:
        yield from self._scan()
        self._append(self.pending)
        yield from self._take_value()
        if self.depth > 0 and self.value_depth > 0:
            yield b"the array is not closed\n"

    def _append(self, data: bytes) -> None:
        room = self.longest + 1 - len(self.value)
        self.value += data[: max(room, 0)]

    def _take_value(self) -> Iterator[bytes]:
        value = bytes(self.value).strip(_SPACE)
        self.value.clear()
        if value:
            yield value.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"


def has_too_many_values(entry: bytes) -> bool:
    """Return whether a JSON entry may have more than :data:`MOST_VALUES` values, without parsing it."""
    if len(entry) <= MOST_VALUES or sum(map(entry.count, (b",", b"[", b"{"))) <= MOST_VALUES:
        return False
    marks = (token for token in _JSON_TOKEN.finditer(entry) if token[0] in (b",", b"[", b"{"))
    return next(islice(marks, MOST_VALUES, None), None) is not None


@dataclass(frozen=True)
class GiantInfo:
    """Properties of a text file that is too large for memory.

    Args:
        valid: Whether it is UTF-8.
        blank: Whether it contains only white space.
    """

    valid: bool
    blank: bool

    def is_document(self, utf8: Utf8) -> bool:
        """Return whether the file becomes a document."""
        return not self.blank and (self.valid or utf8 == "replace")


def inspect_giant(path: Path, take: Callable[[bytes], object] = len) -> GiantInfo:
    """Read a giant text file to its end.

    Args:
        path: The file.
        take: Called with every part.

    Raises:
        DamagedFileError: The file is truncated or damaged.
        OSError: The file cannot be read.
    """
    valid = blank = True
    decoder = codecs.getincrementaldecoder("utf-8")()
    for part in chain(read_giant(path), (b"",)):
        take(part)
        try:
            text = decoder.decode(part, final=not part) if valid else ""
        except UnicodeDecodeError:
            valid = blank = False
        else:
            blank = blank and (not text or text.isspace())
    return GiantInfo(valid, blank)


def read_giant(path: Path) -> Iterator[bytes]:
    """Yield the parts of a giant text file, without a byte order mark."""
    parts = read_file(path)
    yield next(parts, b"").removeprefix(BYTE_ORDER_MARK.encode())
    yield from parts
