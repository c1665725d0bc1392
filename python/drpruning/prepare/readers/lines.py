"""Cutting the text of a domain into units of work, and units into blocks: the same cuts on any number of workers.

A unit is what one worker can read without the others: a range of a ``.jsonl`` file, a group of small ``.txt`` files, a
row group of a ``.parquet`` file, a whole compressed file. A block is what is tokenised into one piece, at most about
:data:`BLOCK_SIZE` of text; where a block begins depends on the content of its file alone.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drpruning.prepare.compressed import STDIN, DamagedFileError, read_file
from drpruning.prepare.fields import Fields
from drpruning.prepare.json_values import as_lines
from drpruning.prepare.sources import SourceFile

BLOCK_SIZE = 16 << 20
"""Bytes of text in a block: seconds of work, so that little is lost when a worker dies, and memory stays small."""

LONGEST_LINE = 64 << 20
"""A longer entry is refused and counted: a JSON object has to be in memory as a whole. A ``.txt`` file need not be."""

NAMED_TROUBLES = 3
"""Of a block: the report names the first few places and counts all."""


@dataclass(frozen=True)
class Trouble:
    """An entry that could not be used, or a file.

    Args:
        reason: Counted under this word.
        path: The file.
        message: What is wrong.
        word: What of it: ``line``, ``row``, ``entry``, or ``file`` for the whole.
        number: Its number, counted from 1.
        offset: Where the count began, in bytes, if that was not at the beginning of the file.
    """

    reason: str
    path: str
    message: str
    word: str = "file"
    number: int = 0
    offset: int = 0

    def __str__(self) -> str:
        where = self.path if self.word == "file" else f"{self.path}, {self.word} {self.number + self._lines_before()}"
        return f"{where}: {self.message}"

    def _lines_before(self) -> int:
        """Lines before ``offset``: counted only when somebody wants to read it, since that reads the file."""
        count, left = 0, self.offset
        if left:
            with Path(self.path).open("rb") as file:
                while left > 0 and (part := file.read(min(left, 1 << 20))):
                    count += part.count(b"\n")
                    left -= len(part)
        return count


@dataclass
class Troubles:
    """What could not be used: all counted, the first few named."""

    counts: Counter[str] = field(default_factory=Counter)
    named: list[Trouble] = field(default_factory=list)

    def add(self, trouble: Trouble) -> None:
        """Counts one."""
        self.counts[trouble.reason] += 1
        if len(self.named) < NAMED_TROUBLES:
            self.named.append(trouble)


@dataclass(frozen=True)
class Block:
    """Text to tokenise into one piece.

    Args:
        kind: ``lines`` (JSON objects), ``documents`` (UTF-8 texts, each after its length as u32), ``giant`` (one text
            file, too big for memory, at ``path``).
        data: The text; of a giant nothing.
        path: The file it is from, for messages; of a group of files the first.
        first: Number of the first line, row or document in the file.
        offset: Where the count began, in bytes.
        word: What is counted: ``line``, ``row``, ``entry``.
        read: Bytes on disk that were read for it, for the progress display.
        troubles: What could not even be read.
        notes: Counts of other things worth a mention.
    """

    kind: Literal["lines", "documents", "giant"]
    data: bytes
    path: str
    first: int = 1
    offset: int = 0
    word: str = "line"
    read: int = 0
    troubles: Troubles = field(default_factory=Troubles)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Unit:
    """What one worker can read without the others.

    Args:
        kind: How it is read.
        files: The files; all but ``texts`` have one.
        start: First byte of a range of lines; number of a row group.
        end: The byte after the range.
        size: Bytes on disk.
    """

    kind: Literal["line_range", "line_stream", "json", "texts", "parquet", "arrow", "mds"]
    files: tuple[Path, ...]
    start: int = 0
    end: int = 0
    size: int = 0


def units_of(files: Iterable[SourceFile], block_size: int = BLOCK_SIZE) -> Iterator[Unit]:
    """Cuts files into units. Opens no file but ``.parquet``, of which it reads the end.

    Args:
        files: The files of a domain, in order.
        block_size: As :data:`BLOCK_SIZE`.
    """
    group: list[SourceFile] = []
    for file in files:
        is_small = file.kind == "text" and not file.compressed and file.size < block_size
        if group and not (is_small and sum(member.size for member in group) + file.size <= block_size):
            yield _group(group)
            group = []
        if is_small:
            group.append(file)
        else:
            yield from _units(file, block_size)
    if group:
        yield _group(group)


def blocks_of(unit: Unit, fields: Fields, block_size: int = BLOCK_SIZE) -> Iterator[Block]:
    """Reads ``unit``, block by block.

    What is damaged or cannot be opened becomes a trouble of the last block, which comes even if it is empty.
    """
    blocks: dict[str, Callable[[Unit, Fields, int], Iterator[Block]]] = {
        "line_range": _line_range,
        "line_stream": _line_stream,
        "json": _json,
        "texts": _texts,
    }
    if unit.kind in blocks:
        yield from blocks[unit.kind](unit, fields, block_size)
    else:
        from drpruning.prepare import columns  # noqa: PLC0415 -- for formats that need an extra

        yield from columns.blocks_of(unit, fields, block_size)


def packed(texts: Iterable[bytes]) -> bytes:
    """Texts as the data of a ``documents`` block."""
    return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))


def unpacked(data: bytes) -> Iterator[bytes]:
    """The texts that :func:`packed` packed."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def unreadable(path: Path, error: Exception) -> Trouble:
    """The trouble of a file that is damaged or cannot be opened."""
    if isinstance(error, DamagedFileError):
        return Trouble("damaged_file", str(path), error.message.removeprefix(f"{path}: "))
    return Trouble("unreadable_file", str(path), getattr(error, "strerror", None) or str(error))


def _group(files: list[SourceFile]) -> Unit:
    return Unit("texts", tuple(file.path for file in files), size=sum(file.size for file in files))


def _units(file: SourceFile, block_size: int) -> Iterator[Unit]:
    match file.kind:
        case "lines" if not file.compressed:
            for start in range(0, file.size, block_size) or [0]:
                end = min(start + block_size, file.size)
                yield Unit("line_range", (file.path,), start, end, end - start)
        case "lines":
            yield Unit("line_stream", (file.path,), size=file.size)
        case "json":
            yield Unit("json", (file.path,), size=file.size)
        case "text":
            yield Unit("texts", (file.path,), size=file.size)
        case "parquet":
            from drpruning.prepare import columns  # noqa: PLC0415 -- needs an extra

            yield from columns.parquet_units(file)
        case "arrow" | "mds":
            yield Unit(file.kind, (file.path,), size=file.size)


def _line_range(unit: Unit, fields: Fields, block_size: int) -> Iterator[Block]:
    """The lines that begin in the range."""
    (path,) = unit.files
    troubles = Troubles()
    notes: Counter[str] = Counter()
    data, begin = b"", unit.start
    try:
        with path.open("rb") as file:
            if unit.start > 0:
                file.seek(unit.start - 1)
                while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
                    pass
                begin = file.tell()
            if begin < unit.end:
                data = file.read(unit.end - begin)
                begun = len(data) - data.rfind(b"\n") - 1  # bytes of the line that the range cuts
                while not data.endswith(b"\n") and (part := file.readline(LONGEST_LINE)):
                    begun += len(part)
                    if begun <= LONGEST_LINE:
                        data += part
                        continue
                    data = data[: data.rfind(b"\n") + 1]
                    troubles.add(_too_long(path, data.count(b"\n") + 1, begin))
                    while part and not part.endswith(b"\n"):
                        part = file.readline(1 << 20)
                    break
    except OSError as error:
        troubles.add(unreadable(path, error))
    if unit.size == 0 and not troubles.counts:
        notes["empty_file"] += 1
    if data or troubles.counts or notes:
        yield Block("lines", data, str(path), offset=begin, read=unit.size, troubles=troubles, notes=notes)


def _line_stream(unit: Unit, fields: Fields, block_size: int) -> Iterator[Block]:
    yield from _blocks_of_lines(_Reading(unit), unit, block_size, "line")


def _json(unit: Unit, fields: Fields, block_size: int) -> Iterator[Block]:
    """Lines if the first line is a whole object, as in C4's ``.json.gz``, else values."""
    (path,) = unit.files
    reading = _Reading(unit)
    if _begins_with_a_line(path):
        yield from _blocks_of_lines(reading, unit, block_size, "line")
    else:
        reading.parts = as_lines(reading.parts, LONGEST_LINE)
        yield from _blocks_of_lines(reading, unit, block_size, "entry")


def _begins_with_a_line(path: Path) -> bool:
    """Whether the first line opens and closes an object; braces in texts do not matter to a guess."""
    first = b""
    try:
        for part in read_file(path):
            first += part
            if b"\n" in part or len(first) > LONGEST_LINE:
                break
    except (OSError, DamagedFileError):
        pass
    line = first.removeprefix(b"\xef\xbb\xbf").split(b"\n")[0].strip()
    return line.startswith(b"{") and line.endswith(b"}")


class _Reading:
    """A file on its way: its parts, and how many of its bytes have been read since the last look."""

    def __init__(self, unit: Unit) -> None:
        self.position = self.seen = 0
        self.parts = read_file(unit.files[0], at=self._at)

    def _at(self, position: int) -> None:
        self.position = position

    def read(self) -> int:
        before, self.seen = self.seen, self.position
        return self.seen - before


def _blocks_of_lines(reading: _Reading, unit: Unit, block_size: int, word: str) -> Iterator[Block]:
    (path,) = unit.files
    waiting = bytearray()
    first, was_anything, skipping = 1, False, False
    troubles = Troubles()
    while True:
        try:
            part = next(reading.parts, b"")
        except (OSError, DamagedFileError) as error:
            troubles.add(unreadable(path, error))
            waiting = waiting[: waiting.rfind(b"\n") + 1]  # the last line is not whole
            part = b""
        was_anything |= bool(part)
        if skipping:
            _, newline, part_left = part.partition(b"\n")
            if part and not newline:
                continue
            skipping, part = False, part_left
            first += 1
            if not part and newline:
                continue
        waiting += part
        end = len(waiting) if not part else waiting.rfind(b"\n") + 1
        if not part or end >= block_size:
            notes = Counter({"empty_file": 1} if not was_anything and not troubles.counts else {})
            if end or troubles.counts or notes:
                data = bytes(waiting[:end])
                yield Block("lines", data, str(path), first, 0, word, reading.read(), troubles, notes)
                first += data.count(b"\n")
                troubles = Troubles()
                del waiting[:end]
            if not part:
                return
        if len(waiting) - end > LONGEST_LINE or (end == 0 and len(waiting) > LONGEST_LINE):
            keep = waiting.rfind(b"\n") + 1
            troubles.add(_too_long(path, first + waiting.count(b"\n"), 0))
            del waiting[keep:]
            skipping = True


def _too_long(path: Path, number: int, offset: int) -> Trouble:
    message = f"longer than {LONGEST_LINE >> 20} MiB; a document of that size can be a .txt file of its own"
    return Trouble("too_long", str(path), message, "line", number, offset)


def _texts(unit: Unit, fields: Fields, block_size: int) -> Iterator[Block]:
    """Each file is a document; one that fills a block by itself is left to be read piecemeal."""
    troubles = Troubles()
    notes: Counter[str] = Counter()
    texts = []
    for path in unit.files:
        text = bytearray()
        try:
            for part in read_file(path):
                text += part
                if len(text) > block_size and path != STDIN:
                    break
        except (OSError, DamagedFileError) as error:
            troubles.add(unreadable(path, error))
            continue
        if len(text) > block_size:
            yield Block("giant", b"", str(path), word="file", read=unit.size, troubles=troubles, notes=notes)
            return  # it is alone in its unit
        texts.append(bytes(text))
    yield Block("documents", packed(texts), str(unit.files[0]), 1, 0, "file", unit.size, troubles, notes)
