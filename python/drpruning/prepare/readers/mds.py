"""Reader of text in MosaicML's MDS: the shards of an ``index.json``, one document per sample.

A shard holds a u32 count n, u32[n + 1] offsets, then the samples; ``docs/corpus.md`` has the layout.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError
from drpruning.prepare.readers.blocks import Block, ReadUnit, SourceFile
from drpruning.prepare.readers.columnar import Row, rows_to_blocks
from drpruning.prepare.readers.compressed import DamagedFileError, read_file
from drpruning.prepare.readers.field_mapping import FieldMapping

MDS_INDEX = "index.json"
COLUMN_KEYS = ("column_names", "column_encodings", "column_sizes")


def is_mds_index(path: Path) -> bool:
    """Return whether a file is the ``index.json`` of an MDS folder."""
    if path.name != MDS_INDEX:
        return False
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(body, dict) and isinstance(body.get("shards"), list)


def mds_shards(index: Path) -> list[SourceFile]:
    """List the shards of an ``index.json``: the uncompressed file if it exists, else the compressed one.

    Raises:
        ConfigError: A shard has no columns or no file.
    """
    shards = []
    for shard in json.loads(index.read_bytes())["shards"]:
        missing = [key for key in COLUMN_KEYS if not isinstance(shard.get(key), list)]
        if missing:
            raise ConfigError(f"{index} names a shard without {missing[0]}; expected shards in the format MDS")
        names = [shard[key]["basename"] for key in ("raw_data", "zip_data") if shard.get(key)]
        path = next((index.parent / name for name in names if (index.parent / name).is_file()), None)
        if path is None:
            raise ConfigError(f"{index} names the shard {names[0]}, which does not exist")
        shards.append(SourceFile(path, "mds", path.stat().st_size))
    return shards


def read_mds(unit: ReadUnit, fields: FieldMapping, block_size: int) -> Iterator[Block]:
    """Read a shard block by block."""
    (path,) = unit.files
    yield from rows_to_blocks(_read_samples(path, fields), 1, unit, fields, block_size)


def _read_samples(path: Path, fields: FieldMapping) -> Iterator[Row]:
    shard = _index_entry(path)
    data = b"".join(read_file(path))
    names, encodings, sizes = (shard[key] for key in COLUMN_KEYS)
    needed = {*fields.columns(), *fields.names()}
    try:
        (samples,) = struct.unpack_from("<I", data)
        offsets = struct.unpack_from(f"<{samples + 1}I", data, 4)
        for begin, end in pairwise(offsets):
            at = begin + 4 * sum(size is None for size in sizes)
            lengths = iter(struct.unpack_from(f"<{sizes.count(None)}I", data, begin))
            row = {}
            for name, encoding, size in zip(names, encodings, sizes, strict=True):
                length = next(lengths) if size is None else size
                if name in needed:
                    row[name] = _decode(encoding, data[at : at + length])
                at += length
            if at != end or end > len(data):
                raise DamagedFileError(f"{path}: expected a sample of {end - begin} bytes, found another length")
            yield row
    except struct.error as error:
        raise DamagedFileError(f"{path}: truncated: {error}") from None


def _index_entry(path: Path) -> dict[str, Any]:
    """Return the entry of a shard in its ``index.json``."""
    for shard in json.loads((path.parent / MDS_INDEX).read_bytes())["shards"]:
        if path.name in {shard[key]["basename"] for key in ("raw_data", "zip_data") if shard.get(key)}:
            entry: dict[str, Any] = shard
            return entry
    raise DamagedFileError(f"{path} is not listed in {MDS_INDEX}")


def _decode(encoding: str, data: bytes) -> Any:
    match encoding:
        case "str":
            return data.decode(errors="surrogateescape")
        case "json":
            try:
                return json.loads(data)
            except ValueError:
                return None  # an entry without text; the rest of the shard is intact
        case "int" | "int64":
            return struct.unpack("<q", data)[0]
        case _:
            return data
