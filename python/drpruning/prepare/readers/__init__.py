"""Readers: the files of a domain become read units, units become blocks of text, blocks become documents.

:data:`READERS` maps each file format to its functions. ``source_files.FORMATS`` maps file suffixes to formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from drpruning.prepare.readers.blocks import BLOCK_SIZE, Block, FileFormat, ReadUnit, SourceFile
from drpruning.prepare.readers.columnar import divide_parquet, read_arrow, read_parquet
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.mds import read_mds
from drpruning.prepare.readers.text import divide_lines, read_json_values, read_lines, read_texts

__all__ = ["READERS", "FormatReader", "divide_files", "read_blocks"]


class FormatReader(NamedTuple):
    """The functions of one file format: divide a file into read units, read a unit block by block."""

    divide: Callable[[SourceFile, int], Iterable[ReadUnit]]
    read: Callable[[ReadUnit, FieldMapping, int], Iterator[Block]]


def _whole_file(file: SourceFile, block_size: int) -> list[ReadUnit]:
    return [ReadUnit(file.format, (file.path,), file.size)]


READERS: dict[FileFormat, FormatReader] = {
    "text": FormatReader(_whole_file, read_texts),
    "lines": FormatReader(divide_lines, read_lines),
    "json": FormatReader(_whole_file, read_json_values),
    "parquet": FormatReader(divide_parquet, read_parquet),
    "arrow": FormatReader(_whole_file, read_arrow),
    "mds": FormatReader(_whole_file, read_mds),
}
"""The functions of each file format."""


def divide_files(files: Iterable[SourceFile], block_size: int = BLOCK_SIZE) -> Iterator[ReadUnit]:
    """Divide files into read units. Opens ``.parquet`` files only, to read their footers.

    Args:
        files: The files of a domain, in order.
        block_size: Bytes of text in a block.
    """
    group: list[SourceFile] = []
    for file in files:
        is_small = file.format == "text" and not file.compressed and file.size < block_size
        if group and not (is_small and sum(member.size for member in group) + file.size <= block_size):
            yield _group_unit(group)
            group = []
        if is_small:
            group.append(file)
        else:
            yield from READERS[file.format].divide(file, block_size)
    if group:
        yield _group_unit(group)


def read_blocks(unit: ReadUnit, fields: FieldMapping, block_size: int = BLOCK_SIZE) -> Iterator[Block]:
    """Read ``unit`` block by block.

    Damage and read errors become input errors of the last block, which is yielded even if it is empty.
    """
    yield from READERS[unit.format].read(unit, fields, block_size)


def _group_unit(files: list[SourceFile]) -> ReadUnit:
    return ReadUnit("text", tuple(file.path for file in files), sum(file.size for file in files))
