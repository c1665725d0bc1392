"""Types of the readers: source files, read units, blocks of text, and input errors.

A *read unit* is the text that one worker reads independently: a range of a ``.jsonl`` file, a group of small ``.txt``
files, a row group of a ``.parquet`` file, or a whole compressed file. A *block* is the text of one tokenized block, at
most about :data:`BLOCK_SIZE`. Block boundaries depend on the content of the file alone, so they are the same for any
number of workers.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drpruning.inputs import NO_DESCRIPTORS, disk_error
from drpruning.prepare.readers.compressed import STDIN, SUFFIXES, DamagedFileError, UnreadableFileError
from drpruning.prepare.readers.field_mapping import FieldMapping

BLOCK_SIZE = 16 << 20
"""Bytes of text in a block: seconds of work, so a killed worker loses little and memory stays small."""

LONGEST_ENTRY = 64 << 20
"""A longer line or row is an input error: a JSON object must fit in memory. A ``.txt`` file may be longer."""

ERROR_EXAMPLES = 3
"""Input errors that a block names; all are counted."""

FileFormat = Literal["text", "lines", "json", "parquet", "arrow", "mds"]


@dataclass(frozen=True)
class SourceFile:
    """A file of a domain.

    Args:
        path: Its path.
        format: Its format.
        size: Bytes on disk; 0 for the standard input.
    """

    path: Path
    format: FileFormat
    size: int

    @property
    def compressed(self) -> bool:
        """Whether it can only be read from its start."""
        return self.path.suffix in SUFFIXES or self.path == STDIN


@dataclass(frozen=True)
class InputError:
    """An entry or a file that cannot be used. A record to count and report, not an exception.

    Args:
        reason: Key under which it is counted.
        path: The file.
        message: Description.
        item: Kind of entry: ``line``, ``row``, ``entry``, ``document``, or ``file`` for the whole file.
        number: Number of the entry, from 1, counted from ``offset``.
        offset: Byte of the file at which counting started.
    """

    reason: str
    path: str
    message: str
    item: str = "file"
    number: int = 0
    offset: int = 0

    def __str__(self) -> str:
        where = self.path if self.item == "file" else f"{self.path}, {self.item} {self.number + self._lines_before()}"
        return f"{where}: {self.message}"

    def _lines_before(self) -> int:
        """Count the lines before ``offset``. Only printing an error needs them, since counting reads the file."""
        count, remaining = 0, self.offset
        if remaining:
            with Path(self.path).open("rb") as file:
                while remaining > 0 and (part := file.read(min(remaining, 1 << 20))):
                    count += part.count(b"\n")
                    remaining -= len(part)
        return count


@dataclass
class InputErrors:
    """Counts of input errors by reason, and the first few as examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[InputError] = field(default_factory=list)

    def add(self, error: InputError) -> None:
        """Count an error; keep it if it is among the first :data:`ERROR_EXAMPLES`."""
        self.counts[error.reason] += 1
        if len(self.examples) < ERROR_EXAMPLES:
            self.examples.append(error)


@dataclass(frozen=True)
class ReadUnit:
    """Text that one worker reads independently.

    Args:
        format: Format of the files.
        files: The files; only ``text`` units have several.
        size: Bytes on disk.
        start: First byte of a range of lines.
        end: Byte after the range; None: the unit is whole files.
        row_group: Number of a Parquet row group; -1 if the file has none or its footer cannot be read.
        first_row: Rows of the file before the row group.
    """

    format: FileFormat
    files: tuple[Path, ...]
    size: int = 0
    start: int = 0
    end: int | None = None
    row_group: int = -1
    first_row: int = 0


@dataclass(frozen=True)
class Block:
    """Text to tokenize into one tokenized block.

    Args:
        kind: ``lines`` (JSON objects), ``documents`` (UTF-8 texts from :func:`pack_texts`) or ``giant`` (one text file
            too large for memory, at ``path``).
        data: The text; empty for a giant.
        path: The file, for messages; the first of a group of files.
        first_number: Number of the first line, row or document in the file.
        offset: Byte of the file at which counting started.
        item: Kind of entry that ``first_number`` counts: ``line``, ``row``, ``entry``, ``document``, ``file``.
        bytes_read: Bytes read from disk for the block, for the progress display.
        errors: Input errors found while reading.
        left_out: Counts of files without text, by reason.
        groups: Group of each text of a ``documents`` block, None for a text without a group; None: no text has one.
    """

    kind: Literal["lines", "documents", "giant"]
    data: bytes
    path: str
    first_number: int = 1
    offset: int = 0
    item: str = "line"
    bytes_read: int = 0
    errors: InputErrors = field(default_factory=InputErrors)
    left_out: Counter[str] = field(default_factory=Counter)
    groups: tuple[str | None, ...] | None = None


@dataclass(frozen=True)
class DomainSource:
    """The text of one domain.

    Args:
        units: Read units, in order.
        fields: Mapping of entries to documents.
        blocks: Makes the blocks of text that is in memory already, instead of ``units``.
    """

    units: tuple[ReadUnit, ...] = ()
    fields: FieldMapping = field(default_factory=FieldMapping)
    blocks: Callable[[], Iterator[Block]] | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(unit.size for unit in self.units)


def pack_texts(texts: Iterable[bytes]) -> bytes:
    """Encode texts as the data of a ``documents`` block: each after its length as u32."""
    return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))


def unpack_texts(data: bytes) -> Iterator[bytes]:
    """Yield the texts that :func:`pack_texts` encoded."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


READ_ERRORS = (OSError, DamagedFileError, UnreadableFileError)
"""Exceptions of reading a file, which :func:`unreadable_file` describes."""


def unreadable_file(path: Path, error: Exception) -> InputError:
    """Describe a file that is damaged or cannot be opened.

    Raises:
        DiskError: The process has too many open files: another file would be read next time.
    """
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        raise disk_error(path, error)
    if isinstance(error, UnreadableFileError):
        return InputError("unreadable_file", str(path), error.message.removeprefix(f"{path}: "))
    if isinstance(error, DamagedFileError):
        return InputError("damaged_file", str(path), error.message.removeprefix(f"{path}: "))
    return InputError("unreadable_file", str(path), getattr(error, "strerror", None) or str(error))


def too_long_entry(path: Path, item: str, number: int, offset: int = 0) -> InputError:
    """Describe an entry that is longer than :data:`LONGEST_ENTRY`."""
    message = f"longer than {LONGEST_ENTRY >> 20} MiB; store a document of that size as a .txt file"
    return InputError("too_long", str(path), message, item, number, offset)
