"""Text in columns: ``.parquet``, ``.arrow`` and MosaicML's MDS, as blocks of documents.

Only the columns that a mapping needs are read, a batch of rows at a time.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError, MissingExtraError
from drpruning.prepare.compressed import DamagedFileError, read_file
from drpruning.prepare.fields import Fields, MissingTextError
from drpruning.prepare.sources import MDS_COLUMNS, MDS_INDEX, SourceFile
from drpruning.prepare.units import LONGEST_LINE, Block, Trouble, Troubles, Unit, packed, unreadable

ROWS_AT_ONCE = 256
"""Rows decoded at a time: a few MB of usual documents."""

Row = Mapping[str, Any]


def parquet_units(file: SourceFile) -> list[Unit]:
    """A unit for each row group of a ``.parquet`` file; one for the whole if its end cannot be read."""
    parquet = _pyarrow_parquet()
    try:
        with parquet.ParquetFile(file.path) as opened:
            groups = opened.metadata.num_row_groups
            sizes = [opened.metadata.row_group(number).total_byte_size for number in range(groups)]
            firsts = [0]
            for number in range(groups):
                firsts.append(firsts[-1] + opened.metadata.row_group(number).num_rows)
    except (_arrow_errors(), OSError):
        return [Unit("parquet", (file.path,), -1, 0, file.size)]
    whole = max(sum(sizes), 1)
    return [
        Unit("parquet", (file.path,), number, firsts[number], file.size * size // whole)
        for number, size in enumerate(sizes)
    ] or [Unit("parquet", (file.path,), -1, 0, file.size)]


def blocks_of(unit: Unit, fields: Fields, block_size: int) -> Iterator[Block]:
    """Reads ``unit``, block by block; see :func:`drpruning.prepare.units.blocks_of`."""
    (path,) = unit.files
    first = 1
    match unit.kind:
        case "parquet":
            rows, first = _parquet_rows(unit, fields), unit.end + 1
        case "arrow":
            rows = _arrow_rows(path, fields)
        case _:
            rows = _mds_rows(path, fields)
    troubles, notes = Troubles(), Counter[str]()
    texts: list[bytes] = []
    size, number, begun = 0, first - 1, first
    while True:
        try:
            row = next(rows, None)
        except (OSError, DamagedFileError, _arrow_errors()) as error:
            troubles.add(_damaged(path, error))
            row = None
        number += row is not None
        if row is not None:
            text = _text(row, fields, path, number, troubles)
            if text is not None:
                texts.append(text)
                size += len(text)
        if size >= block_size or (row is None and (texts or troubles.counts or number < first)):
            if number < first and not troubles.counts:
                notes["empty_file"] += 1
            read = unit.size if row is None else 0
            # A document is found by its row where all rows of the block are documents, else by its place among them.
            word = "row" if len(texts) == number + 1 - begun else "document"
            yield Block("documents", packed(texts), str(path), begun, 0, word, read, troubles, notes)
            troubles, notes, texts, size, begun = Troubles(), Counter(), [], 0, number + 1
        if row is None:
            return


def _text(row: Row, fields: Fields, path: Path, number: int, troubles: Troubles) -> bytes | None:
    try:
        text = fields.document(row)
    except MissingTextError as error:
        troubles.add(Trouble("missing_text", str(path), str(error), "row", number))
        return None
    if text is None:
        return None
    data = text.encode(errors="surrogateescape")
    if len(data) > LONGEST_LINE:
        message = f"longer than {LONGEST_LINE >> 20} MiB; a document of that size can be a .txt file of its own"
        troubles.add(Trouble("too_long", str(path), message, "row", number))
        return None
    return data


def _parquet_rows(unit: Unit, fields: Fields) -> Iterator[Row]:
    (path,) = unit.files
    with _pyarrow_parquet().ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        if file.metadata.num_row_groups == 0:
            return
        columns = _present(fields, file.schema_arrow.names)
        batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[unit.start], columns=columns, use_threads=False)
        for batch in batches:
            yield from _rows_of(batch)


def _arrow_rows(path: Path, fields: Fields) -> Iterator[Row]:
    """Of an Arrow file, or an Arrow stream, which is what the datasets library writes."""
    pyarrow = _pyarrow()
    with pyarrow.memory_map(str(path)) as source:
        try:
            opened = pyarrow.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        except pyarrow.ArrowInvalid:
            source.seek(0)
            opened = pyarrow.ipc.open_stream(source)
            batches = iter(opened)
        columns = _present(fields, opened.schema.names)
        for batch in batches:
            chosen = batch.select(columns)
            for start in range(0, chosen.num_rows, ROWS_AT_ONCE):
                yield from _rows_of(chosen.slice(start, ROWS_AT_ONCE))


def _present(fields: Fields, names: list[str]) -> list[str]:
    """The columns to read. Where the text itself is missing all rows fail, each counted, so one column is enough."""
    wanted = [name for name in (*fields.columns(), *fields.text, *fields.where) if name in names]
    return list(dict.fromkeys(wanted)) or names[:1]


def _rows_of(batch: Any) -> Iterator[Row]:
    """Rows as Python objects; text that is not UTF-8 as it was, in surrogates, for the policy to see."""
    pyarrow = _pyarrow()
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append((name, column.to_pylist()))
        except UnicodeDecodeError:
            raw = column.cast(
                pyarrow.large_binary() if pyarrow.types.is_large_string(column.type) else pyarrow.binary()
            )
            texts = [None if item is None else item.decode(errors="surrogateescape") for item in raw.to_pylist()]
            columns.append((name, texts))
    for number in range(batch.num_rows):
        yield {name: values[number] for name, values in columns}


def _mds_rows(path: Path, fields: Fields) -> Iterator[Row]:
    """Of an MDS shard: u32 samples, u32 offsets, then each sample; ``docs/corpus.md`` has the layout."""
    shard = _mds_entry(path)
    data = b"".join(read_file(path))
    names, encodings, sizes = (shard[key] for key in MDS_COLUMNS)
    wanted = {*fields.columns(), *fields.text, *fields.where}
    try:
        (samples,) = struct.unpack_from("<I", data)
        offsets = struct.unpack_from(f"<{samples + 1}I", data, 4)
        for begin, end in pairwise(offsets):
            at = begin + 4 * sum(size is None for size in sizes)
            lengths = iter(struct.unpack_from(f"<{sizes.count(None)}I", data, begin))
            row = {}
            for name, encoding, size in zip(names, encodings, sizes, strict=True):
                length = next(lengths) if size is None else size
                if name in wanted:
                    row[name] = _mds_value(encoding, data[at : at + length])
                at += length
            if at != end or end > len(data):
                raise DamagedFileError(f"{path}: expected a sample of {end - begin} bytes, found another length")
            yield row
    except struct.error as error:
        raise DamagedFileError(f"{path}: truncated: {error}") from None


def _mds_entry(path: Path) -> dict[str, Any]:
    """What ``index.json`` says of a shard."""
    for shard in json.loads((path.parent / MDS_INDEX).read_bytes())["shards"]:
        if path.name in {shard[key]["basename"] for key in ("raw_data", "zip_data") if shard.get(key)}:
            found: dict[str, Any] = shard
            return found
    raise DamagedFileError(f"{path} is not named in {MDS_INDEX}")


def _mds_value(encoding: str, data: bytes) -> Any:
    match encoding:
        case "str":
            return data.decode(errors="surrogateescape")
        case "json":
            try:
                return json.loads(data)
            except ValueError:
                return None  # an entry without text, not the end of the shard
        case "int" | "int64":
            return struct.unpack("<q", data)[0]
        case _:
            return data


def _damaged(path: Path, error: Exception) -> Trouble:
    if isinstance(error, DamagedFileError) or (isinstance(error, OSError) and error.errno is not None):
        return unreadable(path, error)
    return Trouble("damaged_file", str(path), f"truncated or damaged {path.suffix[1:]} file: {error}")


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 -- an extra
        import pyarrow.ipc  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "reading .parquet and .arrow needs pyarrow", 'pip install "drpruning[prepare]"'
        ) from error
    return pyarrow


def _pyarrow_parquet() -> Any:
    _pyarrow()
    import pyarrow.parquet  # noqa: PLC0415

    return pyarrow.parquet


def _arrow_errors() -> Any:
    """Pyarrow's own error class; without pyarrow one that nothing raises."""
    try:
        return _pyarrow().ArrowException
    except MissingExtraError:
        return ConfigError
