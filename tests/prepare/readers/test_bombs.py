"""Small files that unfold to far more text or objects than an entry may have: input errors, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from drpruning.prepare.readers.blocks import LONGEST_ENTRY
from drpruning.prepare.readers.columnar import LARGEST_PAGE
from tests.limited import MARGIN, run_limited

PART = bytes(16 << 20)
PARTS = 20
"""Parts of a line: 320 MiB; the longest entry has 64 MiB."""

READ = """
import os
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
import pyarrow
pyarrow.set_cpu_count(1)  # each further thread may start after the limit, with a stack of 8 MiB
pyarrow.set_io_thread_count(1)
from collections import Counter
from drpruning.prepare.readers import divide_files, read_blocks
from drpruning.prepare.readers.documents import ParseStats, parse_documents
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.source_files import source_files

def read(path):
    errors, documents = Counter(), 0
    for unit in divide_files(source_files([path])):
        for block in read_blocks(unit, FieldMapping()):
            stats = ParseStats()
            if block.kind != "giant":
                documents += sum(1 for _ in parse_documents(block, FieldMapping(), "replace", stats))
            errors += block.errors.counts + stats.errors.counts
    print(documents, dict(errors))
"""
VALID = READ + "read(sys.argv[2])\n"


def parts(before: bytes, after: bytes) -> Iterator[bytes]:
    yield before
    for _ in range(PARTS):
        yield PART
    yield after


def write_compressed(path: Path, content: Iterator[bytes]) -> None:
    if path.suffix == ".zst":
        with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
            for part in content:
                file.write(part)
        return
    open_file: Callable[..., gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]
    open_file, options = {
        ".gz": (gzip.open, {"compresslevel": 1}),
        ".bz2": (bz2.open, {"compresslevel": 1}),
        ".xz": (lzma.open, {"preset": 0}),
    }[path.suffix]
    with open_file(path, "wb", **options) as file:
        for part in content:
            file.write(part)


def write_arrow(path: Path, batches: list[pa.Array], new: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> None:
    """Write a compressed Arrow file or stream of one column; of a growing dictionary, new values alone are written."""
    options = pa.ipc.IpcWriteOptions(compression="zstd", emit_dictionary_deltas=True)
    with pa.OSFile(str(path), "wb") as file, new(file, pa.schema({"text": batches[0].type}), options=options) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch({"text": batch}))


def counts(tmp_path: Path, path: Path, memory: int) -> str:
    """Return documents and input errors of ``path``, read in ``memory`` above that of a small file of that format."""
    valid = tmp_path / "valid" / path.name
    valid.parent.mkdir()
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": ["a text"]}), valid)
    elif path.suffix == ".arrow":
        write_arrow(valid, [pa.array(["a text"])], pa.ipc.new_file)
    elif path.suffix == ".jsonl":
        valid.write_bytes(b'{"text": "a text"}\n')
    else:
        write_compressed(valid, iter([b'{"text": "a text"}\n']))
    return run_limited(VALID, "read(sys.argv[1])", path, valid, memory=memory).splitlines()[-1]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_line_of_any_length_is_read_in_the_memory_of_the_longest_entry(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl.{suffix}"
    write_compressed(path, parts(b'{"text": "', b'"}\n{"text": "the next"}\n'))
    assert path.stat().st_size < 2 << 20
    assert counts(tmp_path, path, 2 * LONGEST_ENTRY + MARGIN) == "1 {'too_long': 1}"


def test_a_dictionary_of_any_size_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    path.write_bytes(lzma.compress(b'{"text": "a"}\n', filters=filters))
    assert counts(tmp_path, path, 2 * MARGIN) == "0 {'damaged_file': 1}"
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 31 << 3) + (3 << 3 | 1).to_bytes(3, "little") + b"{}\n"
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(frame)
    (tmp_path / "valid" / "a.jsonl.xz").unlink()
    (tmp_path / "valid").rmdir()
    assert counts(tmp_path, path, MARGIN) == "0 {'damaged_file': 1}"


def test_an_entry_of_too_many_values_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lists = b'{"text": "a", "other": [' + b"[]," * (10 << 20) + b"0]}\n"
    commas = b'{"text": "' + b"," * (2 << 20) + b'"}\n'
    path.write_bytes(lists + commas)
    assert counts(tmp_path, path, 2 * len(lists) + MARGIN) == "1 {'too_long': 1}"


def test_a_parquet_page_of_any_size_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["x" * (LARGEST_PAGE + 1)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    assert counts(tmp_path, path, MARGIN) == "0 {'damaged_file': 1}"


def test_rows_that_share_a_large_value_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": pa.array(["x" * (8 << 20)] * 24).dictionary_encode()})
    pq.write_table(table.cast(pa.schema({"text": pa.string()})), path, compression="zstd", write_statistics=False)
    assert path.stat().st_size < 1 << 20
    assert counts(tmp_path, path, 3 * LONGEST_ENTRY + MARGIN) == "24 {}"


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("memory", [MARGIN, 6 * LARGEST_PAGE])
def test_a_record_batch_of_any_size_is_refused_before_it_is_allocated(
    tmp_path: Path, new: Callable[..., pa.ipc.RecordBatchStreamWriter], memory: int
) -> None:
    path = tmp_path / "a.arrow"
    write_arrow(path, [pa.array(["the first"]), pa.array(["x" * (LARGEST_PAGE + 1)])], new)
    assert path.stat().st_size < 1 << 20
    assert counts(tmp_path, path, memory) == "1 {'damaged_file': 1}"


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_dictionaries_of_any_size_are_refused_before_they_are_allocated(
    tmp_path: Path, new: Callable[..., pa.ipc.RecordBatchStreamWriter]
) -> None:
    path = tmp_path / "a.arrow"
    values = [letter * (LARGEST_PAGE // 4) for letter in "abcd"]
    batches = [
        pa.DictionaryArray.from_arrays(pa.array([count - 1], pa.int8()), pa.array(values[:count]))
        for count in range(1, len(values) + 1)
    ]
    write_arrow(path, batches, new)
    assert path.stat().st_size < 1 << 20
    memory = 3 * LARGEST_PAGE + MARGIN  # values that a stream holds before the last one, twice, and the text of a row
    documents = 0 if new is pa.ipc.new_file else len(values) - 1
    assert counts(tmp_path, path, memory) == f"{documents} {{'damaged_file': 1}}"


def test_values_without_bytes_are_refused(tmp_path: Path) -> None:
    many = 1 << 28
    offsets = pa.array([0, many], pa.int32())
    columns = [
        pa.nulls(many),
        pa.FixedSizeListArray.from_arrays(pa.nulls(many), many),
        pa.ListArray.from_arrays(offsets, pa.nulls(many)),
        pa.RunEndEncodedArray.from_arrays(pa.array([many], pa.int32()), pa.array(["a text"])),
    ]
    for number, column in enumerate(columns):
        write_arrow(tmp_path / f"{number}.arrow", [column], pa.ipc.new_file)
    assert counts(tmp_path, tmp_path / "*.arrow", MARGIN) == f"0 {{'damaged_file': {len(columns)}}}"


def test_a_sample_of_any_size_is_read_in_the_memory_of_the_longest_entry(tmp_path: Path) -> None:
    size = PARTS * len(PART)
    head = struct.pack("<IIII", 1, 12, 16 + size, size)
    write_compressed(tmp_path / "shard.mds.zst", parts(head, b""))
    entry = {
        "column_names": ["text"], "column_encodings": ["str"], "column_sizes": [None],
        "raw_data": {"basename": "shard.mds"}, "zip_data": {"basename": "shard.mds.zst"},
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
    (tmp_path / "valid.jsonl").write_bytes(b'{"text": "a text"}\n')
    found = run_limited(
        VALID, "read(sys.argv[1])", tmp_path / "index.json", tmp_path / "valid.jsonl", memory=4 * LONGEST_ENTRY + MARGIN
    )
    assert found.splitlines()[-1] == "0 {'too_long': 1}"
