"""From a block to its documents: JSON parsed, text decoded, and a count of all that is not as it should be."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import orjson

from drpruning.prepare.compressed import read_file
from drpruning.prepare.fields import Fields, MissingTextError
from drpruning.prepare.units import Block, Trouble, Troubles, unpacked

BYTE_ORDER_MARK = "\ufeff"

Utf8 = Literal["replace", "skip", "fail"]
"""What becomes of text that is not UTF-8: repaired with U+FFFD as Unicode advises, left out, or held to be an error."""


@dataclass
class Found:
    """What a block held besides its documents.

    Args:
        troubles: Entries that could not be used.
        left_out: Documents dropped or repaired on purpose, by reason.
    """

    troubles: Troubles = field(default_factory=Troubles)
    left_out: Counter[str] = field(default_factory=Counter)


def documents(block: Block, fields: Fields, utf8: Utf8, found: Found) -> Iterator[tuple[str, bytes]]:
    """The documents of a block of lines or of documents in order, each as text and as UTF-8.

    Args:
        block: The block.
        fields: How a line becomes a document.
        utf8: What becomes of invalid UTF-8.
        found: Is told what could not be used, repaired and left out.
    """
    reader = _Reader(block, fields, utf8, found)
    for text in reader.lines() if block.kind == "lines" else reader.texts():
        if text is None:
            continue
        try:
            data = text.encode()
        except UnicodeEncodeError:  # a lone surrogate: "\ud800" in JSON
            if not reader.keeps_invalid("a lone surrogate in the text"):
                continue
            data = text.encode(errors="replace")
            yield data.decode(), data
            continue
        if not text or text.isspace():
            found.left_out["empty"] += 1
            continue
        yield text, data


@dataclass(frozen=True)
class Giant:
    """What a file that is too big for memory is like.

    Args:
        valid: Whether it is UTF-8.
        blank: Whether it holds nothing but white space.
    """

    valid: bool
    blank: bool

    def is_document(self, utf8: Utf8) -> bool:
        """Whether it becomes one."""
        return not self.blank and (self.valid or utf8 == "replace")


def look_through(path: Path, take: Callable[[bytes], object] = len) -> Giant:
    """Reads a giant to its end.

    Args:
        path: The file.
        take: Is given every part.

    Raises:
        DamagedFileError: It is truncated or damaged.
        OSError: It cannot be read.
    """
    valid = blank = True
    decoder = codecs.getincrementaldecoder("utf-8")()
    for part in chain(giant(path), (b"",)):
        take(part)
        try:
            text = decoder.decode(part, final=not part) if valid else ""
        except UnicodeDecodeError:
            valid = blank = False
        else:
            blank = blank and (not text or text.isspace())
    return Giant(valid, blank)


def giant(path: Path) -> Iterator[bytes]:
    """The parts of a file that is too big for memory, without a byte order mark."""
    parts = read_file(path)
    yield next(parts, b"").removeprefix(BYTE_ORDER_MARK.encode())
    yield from parts


@dataclass
class _Reader:
    block: Block
    fields: Fields
    utf8: Utf8
    found: Found
    number: int = 0

    def texts(self) -> Iterator[str | None]:
        for number, data in enumerate(unpacked(self.block.data), start=self.block.first):
            self.number = number
            yield self._decoded(data)

    def lines(self) -> Iterator[str | None]:
        for number, line in enumerate(self.block.data.split(b"\n"), start=self.block.first):
            self.number = number
            try:
                entry = orjson.loads(line)
            except ValueError:  # it refuses much that json takes: NaN, lone surrogates, a byte order mark
                text = self._decoded(line)
                if text is not None and text.strip():
                    yield self._text(text)
                continue
            yield self._document(entry)

    def keeps_invalid(self, message: str) -> bool:
        """Counts invalid text; whether it is kept, repaired."""
        if self.utf8 == "fail":
            self._trouble("invalid_utf8", f"not valid UTF-8: {message}")
        else:
            self.found.left_out["invalid_utf8" if self.utf8 == "replace" else "invalid_utf8_skipped"] += 1
        return self.utf8 == "replace"

    def _decoded(self, data: bytes) -> str | None:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if not self.keeps_invalid(f"{error.reason} at byte {error.start}"):
                return None
            text = data.decode(errors="replace")
        return text.removeprefix(BYTE_ORDER_MARK)

    def _text(self, line: str) -> str | None:
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._trouble("broken_json", f"expected a JSON object, found something else: {error}")
            return None
        return self._document(entry)

    def _document(self, entry: Any) -> str | None:
        if not isinstance(entry, dict):
            self._trouble("broken_json", f"expected a JSON object, found {type(entry).__name__}")
            return None
        try:
            return self.fields.document(entry)
        except MissingTextError as error:
            self._trouble("missing_text", str(error))
            return None

    def _trouble(self, reason: str, message: str) -> None:
        block = self.block
        self.found.troubles.add(Trouble(reason, block.path, message, block.word, self.number, block.offset))
