"""Readers of tables: ``.parquet`` and ``.arrow``, one document per row.

Only the columns of the field mapping are read, a batch of rows at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError, MissingExtraError
from drpruning.prepare.readers.blocks import (
    LONGEST_ENTRY,
    Block,
    InputError,
    InputErrors,
    ReadUnit,
    SourceFile,
    pack_texts,
    too_long_entry,
    unreadable_file,
)
from drpruning.prepare.readers.compressed import DamagedFileError
from drpruning.prepare.readers.field_mapping import FieldMapping, MissingTextError

BATCH_ROWS = 256
"""Rows decoded at once: a few MB of usual documents."""

Row = Mapping[str, Any]


def divide_parquet(file: SourceFile, block_size: int) -> list[ReadUnit]:
    """Return a unit for each row group; one for the whole file if its footer cannot be read."""
    parquet = _import_parquet()
    try:
        with parquet.ParquetFile(file.path) as table:
            groups = table.metadata.num_row_groups
            sizes = [table.metadata.row_group(number).total_byte_size for number in range(groups)]
            first_rows = [0]
            for number in range(groups):
                first_rows.append(first_rows[-1] + table.metadata.row_group(number).num_rows)
    except (_arrow_errors(), OSError):
        return [ReadUnit("parquet", (file.path,), file.size)]
    total = max(sum(sizes), 1)
    return [
        ReadUnit("parquet", (file.path,), file.size * size // total, row_group=number, first_row=first_rows[number])
        for number, size in enumerate(sizes)
    ] or [ReadUnit("parquet", (file.path,), file.size)]


def read_parquet(unit: ReadUnit, fields: FieldMapping, block_size: int) -> Iterator[Block]:
    """Read a row group block by block."""
    yield from rows_to_blocks(_parquet_rows(unit, fields), unit.first_row + 1, unit, fields, block_size)


def read_arrow(unit: ReadUnit, fields: FieldMapping, block_size: int) -> Iterator[Block]:
    """Read an Arrow file, or an Arrow stream as the datasets library writes it, block by block."""
    (path,) = unit.files
    yield from rows_to_blocks(_arrow_rows(path, fields), 1, unit, fields, block_size)


def rows_to_blocks(
    rows: Iterator[Row], first: int, unit: ReadUnit, fields: FieldMapping, block_size: int
) -> Iterator[Block]:
    """Collect the documents of table rows into blocks.

    Args:
        rows: The rows; an error that they raise becomes an input error of the last block.
        first: Number of the first row in the file.
        unit: The unit that is read.
        fields: Mapping of a row to a document.
        block_size: Bytes of text at which a block ends.
    """
    (path,) = unit.files
    errors, left_out = InputErrors(), Counter[str]()
    texts: list[bytes] = []
    groups: list[str | None] = []
    size, number, block_first = 0, first - 1, first
    while True:
        try:
            row = next(rows, None)
        except (OSError, DamagedFileError, _arrow_errors()) as error:
            errors.add(_damaged_table(path, error))
            row = None
        number += row is not None
        if row is not None:
            text = _row_text(row, fields, path, number, errors)
            if text is not None:
                texts.append(text)
                groups.append(fields.group_of(row))
                size += len(text)
        if size >= block_size or (row is None and (texts or errors.counts or number < first)):
            if number < first and not errors.counts:
                left_out["empty_file"] += 1
            bytes_read = unit.size if row is None else 0
            # Documents are numbered by row if all rows of the block are documents, else within the block.
            item = "row" if len(texts) == number + 1 - block_first else "document"
            by_text = None if fields.group is None else tuple(groups)
            packed = pack_texts(texts)
            yield Block("documents", packed, str(path), block_first, 0, item, bytes_read, errors, left_out, by_text)
            errors, left_out, texts, groups, size, block_first = InputErrors(), Counter(), [], [], 0, number + 1
        if row is None:
            return


def _row_text(row: Row, fields: FieldMapping, path: Path, number: int, errors: InputErrors) -> bytes | None:
    try:
        text = fields.document(row)
    except MissingTextError as error:
        errors.add(InputError("missing_text", str(path), str(error), "row", number))
        return None
    if text is None:
        return None
    data = text.encode(errors="surrogateescape")
    if len(data) > LONGEST_ENTRY:
        errors.add(too_long_entry(path, "row", number))
        return None
    return data


def _parquet_rows(unit: ReadUnit, fields: FieldMapping) -> Iterator[Row]:
    (path,) = unit.files
    with _import_parquet().ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
        if table.metadata.num_row_groups == 0:
            return
        columns = _select_columns(fields, table.schema_arrow.names)
        batches = table.iter_batches(BATCH_ROWS, row_groups=[unit.row_group], columns=columns, use_threads=False)
        for batch in batches:
            yield from _batch_rows(batch)


def _arrow_rows(path: Path, fields: FieldMapping) -> Iterator[Row]:
    pyarrow = _import_pyarrow()
    with pyarrow.memory_map(str(path)) as source:
        try:
            table = pyarrow.ipc.open_file(source)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        except pyarrow.ArrowInvalid:
            source.seek(0)
            table = pyarrow.ipc.open_stream(source)
            batches = iter(table)
        columns = _select_columns(fields, table.schema.names)
        for batch in batches:
            selected = batch.select(columns)
            for start in range(0, selected.num_rows, BATCH_ROWS):
                yield from _batch_rows(selected.slice(start, BATCH_ROWS))


def _select_columns(fields: FieldMapping, names: list[str]) -> list[str]:
    """Select the columns to read. Without the text column every row is an input error, so any column will do."""
    needed = [name for name in (*fields.columns(), *fields.names()) if name in names]
    return list(dict.fromkeys(needed)) or names[:1]


def _batch_rows(batch: Any) -> Iterator[Row]:
    """Yield rows as Python objects. Invalid UTF-8 is kept as surrogates, for the UTF-8 policy."""
    pyarrow = _import_pyarrow()
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


def _damaged_table(path: Path, error: Exception) -> InputError:
    if isinstance(error, DamagedFileError) or (isinstance(error, OSError) and error.errno is not None):
        return unreadable_file(path, error)
    return InputError("damaged_file", str(path), f"truncated or damaged {path.suffix[1:]} file: {error}")


def _import_pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 -- an extra
        import pyarrow.ipc  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError(
            "reading .parquet and .arrow needs pyarrow", 'pip install "drpruning[prepare]"'
        ) from error
    return pyarrow


def _import_parquet() -> Any:
    _import_pyarrow()
    import pyarrow.parquet  # noqa: PLC0415

    return pyarrow.parquet


def _arrow_errors() -> Any:
    """Return pyarrow's exception class; without pyarrow, one that nothing here raises."""
    try:
        return _import_pyarrow().ArrowException
    except MissingExtraError:
        return ConfigError
