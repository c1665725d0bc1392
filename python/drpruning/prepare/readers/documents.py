"""Documents of a block: parses JSON, decodes text, and counts unusable, repaired and left-out entries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pydantic_core

from drpruning.prepare.readers.blocks import Block, InputError, InputErrors, unpack_texts
from drpruning.prepare.readers.field_mapping import FieldMapping, MissingTextError
from drpruning.prepare.readers.text import BYTE_ORDER_MARK, MOST_VALUES, Utf8, has_too_many_values


@dataclass
class ParseStats:
    """Counts of the entries of a block that did not become documents unchanged.

    Args:
        errors: Entries that cannot be used.
        left_out: Documents dropped or repaired by policy, by reason.
    """

    errors: InputErrors = field(default_factory=InputErrors)
    left_out: Counter[str] = field(default_factory=Counter)


class Document(NamedTuple):
    """One text with its UTF-8, and its group if it has one."""

    text: str
    data: bytes
    group: str | None = None


def parse_documents(block: Block, fields: FieldMapping, utf8: Utf8, stats: ParseStats) -> Iterator[Document]:
    """Yield the documents of a ``lines`` or ``documents`` block in order.

    Args:
        block: The block.
        fields: Mapping of a JSON object to a document.
        utf8: Policy for invalid UTF-8.
        stats: Counts are added to it.
    """
    parser = _BlockParser(block, fields, utf8, stats)
    for text in parser.parse_lines() if block.kind == "lines" else parser.parse_texts():
        if text is None:
            continue
        try:
            data = text.encode()
        except UnicodeEncodeError:  # a lone surrogate: "\ud800" in JSON
            if not parser.count_invalid_utf8("a lone surrogate in the text"):
                continue
            data = text.encode(errors="replace")
            yield Document(data.decode(), data, parser.group)
            continue
        if not text or text.isspace():
            stats.left_out["empty"] += 1
            continue
        yield Document(text, data, parser.group)


@dataclass
class _BlockParser:
    block: Block
    fields: FieldMapping
    utf8: Utf8
    stats: ParseStats
    number: int = 0
    group: str | None = None  # of the text that was yielded last

    def parse_texts(self) -> Iterator[str | None]:
        for number, data in enumerate(unpack_texts(self.block.data), start=self.block.first_number):
            self.number = number
            groups = self.block.groups
            self.group = None if groups is None else groups[number - self.block.first_number]
            yield self._decode(data)

    def parse_lines(self) -> Iterator[str | None]:
        for number, line in enumerate(self.block.data.split(b"\n"), start=self.block.first_number):
            self.number = number
            if has_too_many_values(line):
                self._add_error("too_long", f"more than {MOST_VALUES:,} values in one object")
                continue
            try:
                entry = pydantic_core.from_json(line, cache_strings="keys")
            except ValueError:  # refuses input that json accepts: lone surrogates, a byte order mark
                text = self._decode(line)
                if text is not None and text.strip():
                    yield self._parse_json(text)
                continue
            yield self._map_entry(entry)

    def count_invalid_utf8(self, message: str) -> bool:
        """Count invalid text; return whether the policy keeps it, repaired."""
        if self.utf8 == "fail":
            self._add_error("invalid_utf8", f"not valid UTF-8: {message}")
        else:
            self.stats.left_out["invalid_utf8" if self.utf8 == "replace" else "invalid_utf8_skipped"] += 1
        return self.utf8 == "replace"

    def _decode(self, data: bytes) -> str | None:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if not self.count_invalid_utf8(f"{error.reason} at byte {error.start}"):
                return None
            text = data.decode(errors="replace")
        return text.removeprefix(BYTE_ORDER_MARK)

    def _parse_json(self, line: str) -> str | None:
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._add_error("broken_json", f"expected a JSON object, found something else: {error}")
            return None
        return self._map_entry(entry)

    def _map_entry(self, entry: Any) -> str | None:
        if not isinstance(entry, dict):
            self._add_error("broken_json", f"expected a JSON object, found {type(entry).__name__}")
            return None
        self.group = self.fields.group_of(entry)
        try:
            return self.fields.document(entry)
        except MissingTextError as error:
            self._add_error("missing_text", str(error))
            return None

    def _add_error(self, reason: str, message: str) -> None:
        block = self.block
        self.stats.errors.add(InputError(reason, block.path, message, block.item, self.number, block.offset))
