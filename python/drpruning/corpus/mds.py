"""MosaicML's ``index.json``: the shards of an MDS folder and the layout of their tokens.

``docs/corpus.md`` describes the format. Rust reads the shards.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from drpruning.corpus.json_object import JsonObject, read_json_object
from drpruning.errors import CorpusError
from drpruning.inputs import shown

MDS_INDEX = "index.json"
VERSION = 2

DEFAULT_COLUMNS = ("tokens", "input_ids")
Encoding = Literal["plain", "shaped", "typed"]

MOST_AXES = 64
"""Of an array of NumPy."""
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64")


@dataclass(frozen=True, kw_only=True, slots=True)
class MdsShard:
    """The entry of a shard in ``index.json``.

    Attributes:
        path: The uncompressed file if it exists, else the compressed one.
        samples: Number of samples.
        bytes: Uncompressed size.
        zstd_bytes: Size of the compressed file; None if ``path`` is uncompressed.
        columns: Bytes of each column in a sample; None for a variable size.
        token_column: Index of the column that holds the tokens.
        dtype: NumPy's name of the token type; None if each sample stores its own and any is allowed.
        encoding: ``"plain"``: a column holds tokens only; ``"shaped"``: a shape, then tokens; ``"typed"``: a dtype, a
            shape, then tokens.
        hashes: Digests of the file by algorithm name.
    """

    path: Path
    samples: int
    bytes: int
    zstd_bytes: int | None
    columns: tuple[int | None, ...]
    token_column: int
    dtype: str | None
    encoding: Encoding
    hashes: dict[str, str]


def read_mds_index(folder: Path, column: str | None = None, dtype: str | None = None) -> list[MdsShard]:
    """Read the shards of an MDS folder, in order. Opens no other file.

    Args:
        folder: The folder with the ``index.json``.
        column: The column that holds tokens. None: ``tokens``, else ``input_ids``, else the only one that can.
        dtype: Type of the tokens in ``bytes`` columns, which do not record it.

    Raises:
        CorpusError: ``index.json`` is missing or damaged, or lacks the column of tokens.
    """
    top = read_json_object(folder / MDS_INDEX)
    if top.integer("version") != VERSION:
        raise top.invalid_value("version", str(VERSION), top.body["version"])
    entries = top.entries("shards", "shards")
    if not entries:
        raise top.invalid_value("shards", "at least one shard", [])
    shards = [_read_shard(folder, entry, column, dtype) for entry in entries]
    files: set[Path] = set()
    for entry, shard in zip(entries, shards, strict=True):
        if shard.path in files:
            raise CorpusError(
                f"{entry.file}: expected one file per shard, found {shard.path.name} again for {entry.where[:-1]}"
            )
        files.add(shard.path)
    return shards


def _read_shard(folder: Path, item: JsonObject, column: str | None, dtype: str | None) -> MdsShard:
    if item.text("format") != "mds":
        raise item.invalid_value("format", '"mds"', item.body["format"])
    if item.integer("version") != VERSION:
        raise item.invalid_value("version", str(VERSION), item.body["version"])
    names, encodings, sizes = (_read_list(item, key) for key in ("column_names", "column_encodings", "column_sizes"))
    if not len(names) == len(encodings) == len(sizes):
        raise item.invalid_value("column_sizes", f"one size for each of {len(names)} columns", sizes)
    columns: list[int | None] = []
    for number, (name, encoding, size) in enumerate(zip(names, encodings, sizes, strict=True)):
        if not isinstance(name, str) or not isinstance(encoding, str):
            raise item.invalid_value(f"column_names[{number}]", "a name with an encoding", [name, encoding])
        if size is not None and not (type(size) is int and 1 <= size < 2**32):
            raise item.invalid_value(f"column_sizes[{number}]", "null or an integer from 1 to 4294967295", size)
        columns.append(size)
    column_name = _choose_column(item, column, dict(zip(names, encodings, strict=True)))
    number = names.index(column_name)
    token_dtype, encoding = _parse_encoding(item, number, dtype)
    path, compressed = _find_file(folder, item)
    files = item.child("zip_data" if compressed else "raw_data")
    return MdsShard(
        path=path,
        samples=item.integer("samples", 1, 2**32 - 1),
        bytes=item.child("raw_data").integer("bytes"),
        zstd_bytes=files.integer("bytes") if compressed else None,
        columns=tuple(columns),
        token_column=number,
        dtype=token_dtype,
        encoding=encoding,
        hashes=_read_hashes(files),
    )


def _read_list(item: JsonObject, key: str) -> list[object]:
    value = item.get(key)
    if not isinstance(value, list):
        raise item.invalid_value(key, "a list", value)
    return value


def _choose_column(item: JsonObject, column: str | None, encodings: dict[object, object]) -> str:
    able = [name for name, encoding in encodings.items() if str(encoding).split(":")[0] in {"bytes", "ndarray"}]
    for name in DEFAULT_COLUMNS if column is None else (column,):
        if name in encodings:
            return name
    if column is None and len(able) == 1:
        return str(able[0])
    expected = " or ".join(DEFAULT_COLUMNS) if column is None else column
    there = ", ".join(f"{name} ({encoding})" for name, encoding in islice(encodings.items(), 12)) or "none"
    raise CorpusError(
        f"{item.file}: expected a column {expected} in {item.where.rstrip('.')}, found {shown(ValueError(there), 300)}",
        next_step='Pass the name of the token column, for example column="text_ids".',
    )


def _parse_encoding(item: JsonObject, number: int, declared: str | None) -> tuple[str | None, Encoding]:
    """Return ``dtype`` and ``encoding`` of :class:`MdsShard`."""
    encoding, size = item.body["column_encodings"][number], item.body["column_sizes"][number]
    where = f"column_encodings[{number}]"
    kind, *rest = encoding.split(":")
    if kind == "bytes" and not rest:
        if declared is None:
            raise CorpusError(
                f"{item.file}: expected a dtype for the bytes of {item.body['column_names'][number]}, found none",
                next_step='Pass their type, for example dtype="uint16".',
            )
        if size is not None:
            raise item.invalid_value(f"column_sizes[{number}]", "null for bytes", size)
        return declared, "plain"
    if kind != "ndarray" or len(rest) > 2:
        raise item.invalid_value(where, "bytes or ndarray, as tokens are stored", encoding)
    if not rest:
        if size is not None:
            raise item.invalid_value(f"column_sizes[{number}]", f"null for {shown(encoding)[1:-1]}", size)
        return declared, "typed"
    dtype = rest[0]
    if dtype not in DTYPES:
        raise item.invalid_value(where, f"an ndarray of {', '.join(DTYPES)}", encoding)
    if declared is not None and dtype != declared:
        raise CorpusError(f"{item.file}: expected {declared} tokens (dtype=), found {dtype} (index.json)")
    expected = None
    if len(rest) == 2:
        tokens = 1
        for axis in rest[1].split(",", MOST_AXES):
            if not re.fullmatch("[0-9]{1,10}", axis) or not int(axis):
                raise item.invalid_value(where, "an ndarray whose axes are 1 or longer", encoding)
            tokens = min(tokens * int(axis), 2**32)  # a column has fewer bytes
        expected = tokens * np.dtype(dtype).itemsize
    if size != expected:
        raise item.invalid_value(
            f"column_sizes[{number}]", f"{'null' if expected is None else expected} for {shown(encoding)[1:-1]}", size
        )
    return dtype, "shaped" if expected is None else "plain"


def _find_file(folder: Path, item: JsonObject) -> tuple[Path, bool]:
    """Return the file of the shard and whether it is the compressed one."""
    raw = item.child("raw_data").path("basename", folder)
    if item.get("zip_data") is None or os.path.isfile(raw):  # noqa: PTH113 - Path's raises for a long name
        return raw, False
    compression = item.text("compression")
    if compression.split(":")[0] != "zstd":
        raise CorpusError(
            f"{item.file}: expected {item.where}compression to be null or zstd, found {shown(compression)}",
            next_step="Write the data again with compression='zstd' or None, or decompress its shards.",
        )
    return item.child("zip_data").path("basename", folder), True


def _read_hashes(files: JsonObject) -> dict[str, str]:
    hashes = files.child("hashes").body
    for name, digest in hashes.items():
        if not isinstance(digest, str):
            raise files.invalid_value(f"hashes.{name}", "a text", digest)
    return hashes
