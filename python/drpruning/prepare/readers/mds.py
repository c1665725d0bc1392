"""Reader of text in MosaicML's MDS: the shards of an ``index.json``, one document per sample.

A shard holds a u32 count n, u32[n + 1] offsets, then the samples; ``docs/corpus.md`` has the layout.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from drpruning.corpus.json_object import JsonObject, read_json_object
from drpruning.errors import ConfigError, CorpusError
from drpruning.inputs import shown
from drpruning.prepare.readers.blocks import LONGEST_ENTRY, Block, ReadUnit, SourceFile
from drpruning.prepare.readers.columnar import Row, rows_to_blocks
from drpruning.prepare.readers.compressed import DamagedFileError, read_file
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.text import has_too_many_values

MDS_INDEX = "index.json"
COLUMN_KEYS = ("column_names", "column_encodings", "column_sizes")
Column = tuple[str, str, int | None]
"""Name, encoding, and bytes in a sample; None if they vary."""


def is_mds_index(path: Path) -> bool:
    """Return whether a file is the ``index.json`` of an MDS folder."""
    if path.name != MDS_INDEX:
        return False
    try:
        return isinstance(read_json_object(path).body.get("shards"), list)
    except (CorpusError, OSError):
        return False


def mds_shards(index: Path) -> list[SourceFile]:
    """List the shards of an ``index.json``: the uncompressed file if it exists, else the compressed one.

    Raises:
        ConfigError: A shard has no columns or no file.
        CorpusError: A key has another type.
    """
    shards = []
    for shard in read_json_object(index).entries("shards", "shards"):
        missing = [key for key in COLUMN_KEYS if not isinstance(shard.body.get(key), list)]
        if missing:
            raise ConfigError(f"{index} names a shard without {missing[0]}; expected shards in the format MDS")
        paths = _paths(shard, index.parent)
        path = next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113 - of any length
        if path is None:
            raise ConfigError(f"{index} names the shard {shown(paths[0].name)}, which does not exist")
        shards.append(SourceFile(path, "mds", path.stat().st_size))
    return shards


def _paths(shard: JsonObject, folder: Path) -> list[Path]:
    """Return the paths of the uncompressed and, if there is one, of the compressed file."""
    keys = [key for key in ("raw_data", "zip_data") if shard.body.get(key)]
    return [shard.child(key).path("basename", folder) for key in keys or ["raw_data"]]


def read_mds(unit: ReadUnit, fields: FieldMapping, block_size: int) -> Iterator[Block]:
    """Read a shard block by block."""
    (path,) = unit.files
    yield from rows_to_blocks(_read_samples(path, fields), 1, unit, fields, block_size)


def _read_samples(path: Path, fields: FieldMapping) -> Iterator[Row]:
    """Yield the samples of a shard, in memory of its offsets and one sample's columns."""
    columns = _read_columns(path)
    needed = {*fields.columns(), *fields.names()}
    varying = sum(size is None for _, _, size in columns)
    least = 4 * varying + sum(size or 0 for _, _, size in columns)
    file = _ForwardReader(path)
    offsets = _read_offsets(file, least)
    file.skip(offsets[0] - file.place)
    for begin, end in pairwise(offsets):
        lengths = iter(struct.unpack(f"<{varying}I", file.take(4 * varying)))
        sized = [(name, encoding, next(lengths) if size is None else size) for name, encoding, size in columns]
        if 4 * varying + sum(length for _, _, length in sized) != end - begin:
            raise DamagedFileError(f"{path}: expected a sample of {end - begin} bytes, found another length")
        row = {}
        for name, encoding, length in sized:
            kept = min(length, LONGEST_ENTRY + 1) if name in needed else 0  # a longer text is an input error
            data = file.take(kept)
            file.skip(length - kept)
            if name in needed:
                row[name] = _decode(encoding, data)
        yield row


def _read_offsets(file: _ForwardReader, least: int) -> array[int]:
    """Read the offsets of samples of ``least`` bytes or more, each checked before the next is in memory."""
    (samples,) = struct.unpack("<I", file.take(4))
    offsets, before, rest = array("I"), 4 * (samples + 2), samples + 1
    while rest:
        part = min(rest, PART >> 2)
        for offset in struct.unpack(f"<{part}I", file.take(4 * part)):
            if offset < before + (least if offsets else 0):
                raise DamagedFileError(f"{file.path}: sample {len(offsets)} starts at byte {offset}, in another one")
            offsets.append(offset)
            before = offset
        rest -= part
    return offsets


PART = 1 << 16
"""Bytes of offsets read at a time."""


class _ForwardReader:
    """Reads a file, decompressed, from its start; holds one part of it in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, 0
        self._parts = read_file(path)
        self._part = memoryview(b"")

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        data = bytearray()
        while len(data) < count:
            data += self._next(count - len(data))
        return bytes(data)

    def skip(self, count: int) -> None:
        """Read ``count`` bytes and drop them."""
        while count > 0:
            count -= len(self._next(count))

    def _next(self, most: int) -> memoryview:
        if not self._part:
            self._part = memoryview(next(self._parts, b""))
            if not self._part:
                raise DamagedFileError(f"{self.path}: truncated: expected more than {self.place} bytes")
        found, self._part = self._part[:most], self._part[most:]
        self.place += len(found)
        return found


def _read_columns(path: Path) -> list[Column]:
    """Return the columns of a shard, from its ``index.json``."""
    for shard in read_json_object(path.parent / MDS_INDEX).entries("shards", "shards"):
        if path in _paths(shard, path.parent):
            names, encodings, sizes = (shard.body.get(key) for key in COLUMN_KEYS)
            if not (isinstance(names, list) and isinstance(encodings, list) and isinstance(sizes, list)):
                raise shard.invalid_value(COLUMN_KEYS[0], "a list, as encodings and sizes", names)
            columns = list(zip(names, encodings, sizes, strict=False))
            for name, encoding, size in columns:
                whole = size is None or (type(size) is int and 0 <= size < 2**32)
                if not (isinstance(name, str) and isinstance(encoding, str) and whole):
                    raise shard.invalid_value(COLUMN_KEYS[2], "a size for each name and encoding", sizes)
            return columns
    raise DamagedFileError(f"{path} is not listed in {MDS_INDEX}")


def _decode(encoding: str, data: bytes) -> Any:
    match encoding:
        case "str":
            return data.decode(errors="surrogateescape")
        case "json":
            try:
                return None if has_too_many_values(data) else json.loads(data)
            except (ValueError, RecursionError):
                return None  # an entry without text; the rest of the shard is intact
        case "int" | "int64":
            return int.from_bytes(data, "little", signed=True)
        case _:
            return data
