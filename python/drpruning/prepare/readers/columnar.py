"""Readers of tables: ``.parquet`` and ``.arrow``, one document per row.

Only the columns of the field mapping are read, a batch of rows at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError, MissingExtraError, install_command
from drpruning.inputs import open_file
from drpruning.prepare.readers.arrow_messages import (
    DICTIONARIES,
    ArrowMessageError,
    Sizes,
    file_blocks,
    read_message,
    stream_messages,
)
from drpruning.prepare.readers.blocks import (
    LONGEST_ENTRY,
    READ_ERRORS,
    Block,
    InputError,
    InputErrors,
    ReadUnit,
    SourceFile,
    pack_texts,
    too_long_entry,
    unreadable_file,
)
from drpruning.prepare.readers.compressed import DamagedFileError, UnreadableFileError
from drpruning.prepare.readers.field_mapping import FieldMapping, MissingTextError
from drpruning.prepare.readers.parquet_pages import column_ranges, largest_page

BATCH_ROWS = 256
"""Rows decoded at once: a few MB of usual documents; fewer where the pages of a file are large."""
LARGEST_PAGE = 128 << 20
"""Uncompressed bytes of a Parquet page; a larger one is an input error. DuckDB writes pages of 100 MB, most writers of
1 MB. Also of a compressed record batch of an Arrow file, if those are more than :data:`LARGEST_RATIO` times its bytes:
some writers store a whole table in one batch."""
LARGEST_RATIO = 32
"""Uncompressed size of a record batch relative to its size on disk; zstd reaches 3 to 10 for text."""

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
    except (_arrow_errors(), OSError, UnicodeDecodeError):
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
        except (*READ_ERRORS, UnicodeDecodeError, _arrow_errors()) as error:
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
        groups = table.metadata.num_row_groups
        if groups == 0 or (unit.row_group < groups and table.metadata.row_group(unit.row_group).num_rows == 0):
            return  # a column of no rows has no page
        columns, largest = _select_leaves(path, table, unit.row_group, fields)
        # A value is inside a page, so a batch spans at most as many pages as values.
        rows = min(max(LONGEST_ENTRY // 2 // max(largest, 1), 1), BATCH_ROWS)
        for batch in table.iter_batches(rows, row_groups=[unit.row_group], columns=columns, use_threads=False):
            yield from _batch_rows(batch)


def _select_leaves(path: Path, table: Any, row_group: int, fields: FieldMapping) -> tuple[list[str], int]:
    """Select the columns to read, and return the uncompressed size of their largest page.

    Columns of lists are left out: their elements are no text, and a page of a few bytes has any number of nulls.

    Raises:
        DamagedFileError: A page is larger than :data:`LARGEST_PAGE`, or the headers of pages are damaged.
    """
    needed = {*fields.columns(), *fields.names()}
    leaves, largest = [], 0
    with open_file(path, UnreadableFileError) as file:
        try:
            ranges = column_ranges(path, os.fstat(file.fileno()).st_size)[row_group]
        except (ValueError, IndexError, OSError) as error:
            raise DamagedFileError(f"{path}: truncated or damaged parquet file: {error}") from None
        for number, (start, end) in enumerate(ranges[: len(table.schema)]):
            leaf = table.schema.column(number)
            if leaf.max_repetition_level or not {leaf.path, leaf.path.partition(".")[0]} & needed:
                continue
            try:
                largest = max(largest, largest_page(file, start, end))
            except (ValueError, OSError) as error:
                raise DamagedFileError(f"{path}: truncated or damaged parquet file: {error}") from None
            leaves.append(leaf.path)
    if largest > LARGEST_PAGE:
        raise DamagedFileError(f"{path}: a page has {largest:,} bytes; expected at most {LARGEST_PAGE >> 20} MiB")
    return leaves, largest


def _arrow_rows(path: Path, fields: FieldMapping) -> Iterator[Row]:
    pyarrow = _import_pyarrow()
    with pyarrow.memory_map(str(path)) as source:
        try:
            names = pyarrow.ipc.open_file(source).schema.names
            is_stream = False
        except pyarrow.ArrowInvalid:
            source.seek(0)
            names = pyarrow.ipc.open_stream(source).schema.names
            is_stream = True
        columns = _select_columns(fields, names)
        if repeated := [name for name in columns if names.count(name) > 1]:
            raise DamagedFileError(f"{path}: expected one column {repeated[0]!r}, found several")
        options = pyarrow.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns], use_threads=False)
        for batch in (_stream_batches if is_stream else _file_batches)(path, source, options):
            selected = batch.select(columns)
            _check_offsets(selected)
            _check_num_values(path, selected)
            for start in range(0, selected.num_rows, BATCH_ROWS):
                yield from _batch_rows(selected.slice(start, BATCH_ROWS))


def _file_batches(path: Path, source: Any, options: Any) -> Iterator[Any]:
    """Yield the record batches of an Arrow file, each after a check of its sizes."""
    source.seek(0)
    data = memoryview(source.read_buffer())
    with _message_errors(path):
        dictionaries, batches = file_blocks(data)
        _check_sizes(path, sum((read_message(data, *block).sizes for block in dictionaries), Sizes()))
    table = _import_pyarrow().ipc.open_file(source, options=options)
    for number, block in enumerate(batches):
        with _message_errors(path):
            _check_sizes(path, read_message(data, *block).sizes)
        yield table.get_batch(number)


def _stream_batches(path: Path, source: Any, options: Any) -> Iterator[Any]:
    """Yield the record batches of an Arrow stream, each after a check of its sizes and of the dictionaries before."""
    source.seek(0)
    data = memoryview(source.read_buffer())
    source.seek(0)
    table = _import_pyarrow().ipc.open_stream(source, options=options)
    dictionaries = Sizes()
    while True:
        with _message_errors(path):
            for message in stream_messages(data, source.tell()):
                if message.kind == DICTIONARIES:  # pyarrow keeps them all
                    dictionaries += message.sizes
                _check_sizes(path, dictionaries if message.kind == DICTIONARIES else message.sizes)
        try:
            batch = table.read_next_batch()
        except StopIteration:
            return
        yield batch


@contextmanager
def _message_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ArrowMessageError as error:
        raise DamagedFileError(f"{path}: truncated or damaged arrow file: {error}") from None


def _check_sizes(path: Path, sizes: Sizes) -> None:
    most = max(LARGEST_PAGE, LARGEST_RATIO * sizes.stored)
    if sizes.uncompressed > most:
        raise DamagedFileError(
            f"{path}: a record batch of {sizes.stored:,} bytes unfolds to {sizes.uncompressed:,}; "
            f"expected at most {LARGEST_PAGE >> 20} MiB, or {LARGEST_RATIO} times its size"
        )


def _check_num_values(path: Path, batch: Any) -> None:
    """Check that a batch has a bit for each value; nulls and repeated values need no memory in some types."""
    num_values = sum(map(_num_values, batch.columns))
    size = batch.get_total_buffer_size()
    if num_values > 8 * size:
        raise DamagedFileError(f"{path}: a record batch has {num_values:,} values in {size:,} bytes")


def _num_values(array: Any) -> int:
    """Return the number of values of an array and of the lists, structs and dictionaries in it."""
    types = _import_pyarrow().types
    if types.is_struct(array.type) or types.is_union(array.type):
        return sum(_num_values(array.field(number)) for number in range(array.type.num_fields))
    is_encoded = types.is_run_end_encoded(array.type)
    inner = [getattr(array, name) for name in ("storage", "dictionary", "values") if hasattr(array, name)]
    return len(array) + (0 if is_encoded else sum(map(_num_values, inner)))


def _select_columns(fields: FieldMapping, names: list[str]) -> list[str]:
    """Select the columns to read. Without the text column every row is an input error, so any column will do."""
    needed = [name for name in (*fields.columns(), *fields.names()) if name in names]
    return list(dict.fromkeys(needed)) or names[:1]


def _check_offsets(batch: Any) -> None:
    """Raise an Arrow exception for offsets outside of the data, which are read without a check later.

    Texts are checked as bytes, because the UTF-8 policy applies to them.
    """
    pyarrow = _import_pyarrow()
    for column in batch.columns:
        if pyarrow.types.is_string(column.type):
            column = column.view(pyarrow.binary())  # noqa: PLW2901
        elif pyarrow.types.is_large_string(column.type):
            column = column.view(pyarrow.large_binary())  # noqa: PLW2901
        column.validate(full=True)


def _batch_rows(batch: Any) -> Iterator[Row]:
    """Yield rows as Python objects, one at a time: the rows of a dictionary share values of any size."""
    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for number in range(batch.num_rows):
        yield {name: _value(column[number]) for name, column in columns}


def _value(cell: Any) -> Any:
    """Return a cell as a Python object. Invalid UTF-8 is kept as surrogates, for the UTF-8 policy."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        pyarrow = _import_pyarrow()
        if isinstance(cell, pyarrow.DictionaryScalar):
            cell = cell.value
        if not isinstance(cell, (pyarrow.StringScalar, pyarrow.LargeStringScalar)):
            return None  # nested; the field is an entry without text
        return cell.as_buffer().to_pybytes().decode(errors="surrogateescape")


def _damaged_table(path: Path, error: Exception) -> InputError:
    if isinstance(error, (DamagedFileError, UnreadableFileError)) or (
        isinstance(error, OSError) and error.errno is not None
    ):
        return unreadable_file(path, error)
    return InputError("damaged_file", str(path), f"truncated or damaged {path.suffix[1:]} file: {error}")


def _import_pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415 -- an extra
        import pyarrow.ipc  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("reading .parquet and .arrow needs pyarrow", install_command("pyarrow")) from error
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
