"""Text is read whole from every format, counted where repaired, and named where broken."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from drpruning.errors import ConfigError
from drpruning.prepare.readers import divide_files, read_blocks
from drpruning.prepare.readers.compressed import DamagedFileError, read_file
from drpruning.prepare.readers.documents import ParseStats, parse_documents
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.source_files import source_files
from drpruning.prepare.readers.text import split_json_values

LINES = b'{"text": "three"}\n\n{"text": "four\\nfive", "id": 7}'
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


class Read:
    """Reads paths: the texts, counts of left-out texts, and input errors."""

    def __init__(self, *paths: Path | str, size: int = 16 << 20, utf8: str = "replace", **fields: object) -> None:
        mapping = FieldMapping(**fields)  # type: ignore[arg-type]
        stats = ParseStats()
        self.texts, self.blocks = [], 0
        for unit in divide_files(source_files(paths), size):
            for block in read_blocks(unit, mapping, size):
                stats.errors.counts += block.errors.counts
                stats.errors.examples += block.errors.examples
                stats.left_out += block.left_out
                self.blocks += 1
                self.texts += [document.text for document in parse_documents(block, mapping, utf8, stats)]  # type: ignore[arg-type]
        self.left_out, self.errors = dict(stats.left_out), dict(stats.errors.counts)
        self.examples = [str(error) for error in stats.errors.examples]


def test_a_text_file_is_a_document_and_a_line_of_jsonl_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_bytes(LINES)
    assert Read(tmp_path).texts == ["one\ntwo\n", "three", "four\nfive"]
    assert Read(*sorted(tmp_path.iterdir())).texts == Read(tmp_path).texts


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "a", "score": NaN}',
        b'{"text": "a", "id": 123456789012345678901234567890}',
        b'\xef\xbb\xbf {"text": "a"}\r',
        b'{"text": "b", "text": "a"}',
    ],
)
def test_what_python_calls_json_is_json(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    read = Read(tmp_path)
    assert (read.texts, read.errors) == (["a"], {})


@pytest.mark.parametrize("suffix", COMPRESS)
def test_files_may_be_compressed_in_several_parts(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](b"one ") + COMPRESS[suffix](b"two"))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(COMPRESS[suffix](LINES))
    (tmp_path / f"c.json{suffix}").write_bytes(COMPRESS[suffix](b'[{"text": "six"},\n {"text": "seven"}]'))
    read = Read(tmp_path)
    assert read.texts == ["one two", "three", "four\nfive", "six", "seven"]
    assert (read.left_out, read.errors) == ({}, {})


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_truncated_file_is_named_and_its_last_line_not_taken(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / (name + suffix)
    whole = COMPRESS[suffix](b"".join(json.dumps({"text": f"{n} {hash((n, 'x'))}"}).encode() + b"\n" for n in range(9)))
    for broken in (whole[:-12], b"not compressed at all", whole[:10] + b"\xff" * 20 + whole[30:]):
        path.write_bytes(broken)
        read = Read(path)
        assert read.errors == {"damaged_file": 1}
        assert f"{path}: truncated or damaged" in read.examples[0]
        assert name == "a.jsonl" or read.texts == []


def test_a_zstd_frame_that_is_cut_is_not_mistaken_for_the_end(tmp_path: Path) -> None:
    whole = zstandard.ZstdCompressor().compress(bytes(range(256)) * 40_000)
    (tmp_path / "a.zst").write_bytes(whole[:-1])
    with pytest.raises(DamagedFileError, match="ended before the end of a frame"):
        list(read_file(tmp_path / "a.zst"))


@pytest.mark.parametrize(
    "body",
    [
        b'[{"text": "a"}, {"text": "b, ]}\\" "}]',
        b'\xef\xbb\xbf [\n  {"text": "a"},\n  {"text":\n "b, ]}\\" "}\n]\n',
        b'{"text": "a"}\n{"text": "b, ]}\\" "}\n',
        b'{\n "text": "a"\n}\n{\n "text": "b, ]}\\" "\n}',
    ],
)
def test_json_may_be_an_array_or_objects_however_they_are_laid_out(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.json").write_bytes(body)
    assert Read(tmp_path).texts == ["a", 'b, ]}" ']


def test_an_array_that_breaks_off_is_counted(tmp_path: Path) -> None:
    for body in (b'[{"text": "a"}, {"text": "b"', b'[{"text": "a"}, {"text": "b"}'):
        (tmp_path / "a.json").write_bytes(body)
        read = Read(tmp_path)
        assert read.texts[0] == "a"
        assert read.errors == {"broken_json": 1 + body.endswith(b'"')}


@given(st.lists(st.dictionaries(st.text(max_size=4), st.text(), max_size=3)), st.integers(1, 9), st.booleans())
def test_values_are_found_wherever_the_file_is_cut(values: list[dict[str, str]], size: int, indented: bool) -> None:
    body = json.dumps(values, indent=1 if indented else None, ensure_ascii=False).encode()
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    assert [json.loads(line) for line in split_json_values(parts, 1 << 20)] == values


def test_columns_are_read_from_parquet_and_arrow(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["one", None, "", "four"], "meta": [{"set": "a"}, {"set": "a"}, {"set": "b"}, None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    for name, new in (("b.arrow", pyarrow.ipc.new_stream), ("c.arrow", pyarrow.ipc.new_file)):
        with pyarrow.OSFile(str(tmp_path / name), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        read = Read(tmp_path / name)
        assert read.texts == ["one", "four"]
        assert (read.left_out, read.errors) == ({"empty": 1}, {"missing_text": 1})
        assert read.examples == [f"{tmp_path / name}, row 2: expected text under 'text', found NoneType in it"]
        assert Read(tmp_path / name, where={"meta.set": "a"}).texts == ["one"]
        missing = Read(tmp_path / name, text=("body",))
        assert missing.errors == {"missing_text": 4}
    (tmp_path / "d.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    read = Read(tmp_path / "d.parquet")
    assert read.errors == {"damaged_file": 1}
    assert "d.parquet: truncated or damaged parquet file" in read.examples[0]


def test_repeated_columns_of_a_table_are_an_input_error(tmp_path: Path) -> None:
    table = pyarrow.table([pyarrow.array(["one"]), pyarrow.array(["two"])], names=["text", "text"])
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    read = Read(tmp_path / "a.arrow")
    assert read.texts == []
    assert read.errors == {"damaged_file": 1}
    assert read.examples == [f"{tmp_path / 'a.arrow'}: expected one column 'text', found several"]


@pytest.mark.parametrize("zipped", [False, True])
def test_text_is_read_from_mds(tmp_path: Path, zipped: bool) -> None:
    texts = ["one", "zwei ü", ""]
    samples = []
    for number, text in enumerate(texts):
        data = text.encode()
        samples.append(len(data).to_bytes(4, "little") + number.to_bytes(8, "little") + data)
    offsets = [4 + 4 * 4]
    for sample in samples:
        offsets.append(offsets[-1] + len(sample))
    shard = len(samples).to_bytes(4, "little") + b"".join(o.to_bytes(4, "little") for o in offsets) + b"".join(samples)
    entry = {
        "column_names": ["id", "text"],
        "column_encodings": ["int", "str"],
        "column_sizes": [8, None],
        "raw_data": {"basename": "shard.00000.mds"},
        "zip_data": {"basename": "shard.00000.mds.zstd"} if zipped else None,
    }
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))
    if zipped:
        (tmp_path / "shard.00000.mds.zstd").write_bytes(zstandard.ZstdCompressor().compress(shard))
    else:
        (tmp_path / "shard.00000.mds").write_bytes(shard)
    read = Read(tmp_path)
    assert (read.texts, read.left_out) == (["one", "zwei ü"], {"empty": 1})
    assert Read(tmp_path, where={"id": 1}).texts == ["zwei ü"]
    if not zipped:
        (tmp_path / "shard.00000.mds").write_bytes(shard[:-3])
        assert Read(tmp_path).errors == {"damaged_file": 1}


def test_json_in_mds_that_is_broken_is_an_entry_without_text(tmp_path: Path) -> None:
    samples = [len(data).to_bytes(4, "little") + data for data in (b'"one"', b'"tw', b'"three"')]
    offsets = [4 + 4 * 4]
    for sample in samples:
        offsets.append(offsets[-1] + len(sample))
    shard = len(samples).to_bytes(4, "little") + b"".join(o.to_bytes(4, "little") for o in offsets) + b"".join(samples)
    (tmp_path / "shard.mds").write_bytes(shard)
    entry = {"column_names": ["text"], "column_encodings": ["json"], "column_sizes": [None]}
    file = {"raw_data": {"basename": "shard.mds"}}
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [entry | file]}))
    read = Read(tmp_path)
    assert (read.texts, read.errors) == (["one", "three"], {"missing_text": 1})
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": [file]}))
    with pytest.raises(ConfigError, match="names a shard without column_names"):
        source_files([tmp_path])


def test_fields_are_joined_and_select_entries(tmp_path: Path) -> None:
    entries = [
        {"q": "Why?", "a": {"body": "So."}, "meta": {"set": "qa"}},
        {"q": "Alone", "a": None, "meta": {"set": "qa"}},
        {"q": "Other", "meta": {"set": "web"}},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    read = Read(tmp_path, text=("q", "a.body"), join="\n", where={"meta.set": "qa"})
    assert (read.texts, read.errors) == (["Why?\nSo.", "Alone"], {})


def test_a_folder_is_read_in_the_order_of_paths_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a.txt", "b/a.txt", ".git/no.txt", "notes.pdf", "state.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert Read(tmp_path).texts == ["a.txt", "b/a.txt", "b/x.txt"]
    assert Read(tmp_path / "b/*.txt").texts == ["b/a.txt", "b/x.txt"]
    assert Read(tmp_path / "b/**").texts == ["b/a.txt", "b/x.txt"]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30)), st.integers(1, 200))
def test_the_size_of_blocks_changes_no_document(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    body = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    (folder / "a.jsonl").write_bytes(body)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(body))
    whole = Read(folder / "a.jsonl")
    for name in ("a.jsonl", "b.jsonl.gz"):
        cut = Read(folder / name, size=size)
        assert cut.texts == whole.texts == [text for text in texts if text and not text.isspace()]


@pytest.mark.parametrize(
    ("utf8", "texts", "left_out", "bad"),
    [
        ("replace", ["caf\ufffd", "\ufffd", "?", "fine"], {"invalid_utf8": 3}, {}),
        ("skip", ["fine"], {"invalid_utf8_skipped": 3}, {}),
        ("fail", ["fine"], {}, {"invalid_utf8": 3}),
    ],
)
def test_invalid_utf8_is_replaced_left_out_or_refused(
    tmp_path: Path, utf8: str, texts: list[str], left_out: dict[str, int], bad: dict[str, int]
) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "\\ud800"}\n{"text": "fine"}\n')
    read = Read(tmp_path, utf8=utf8)
    assert (read.texts, read.left_out, read.errors) == (texts, left_out, bad)


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "two"}), encoding="utf-8-sig")
    assert Read(tmp_path).texts == ["one", "two"]


def test_empty_files_and_documents_are_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl", "d.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "e.jsonl").write_text('{"text": " \\n"}')
    read = Read(tmp_path)
    assert (read.texts, read.left_out, read.errors) == ([], {"empty_file": 3, "empty": 2}, {})


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("{not json", "broken_json", "line 2: expected a JSON object, found something else"),
        ("[1, 2]", "broken_json", "line 2: expected a JSON object, found list"),
        ('{"body": "x", "id": 1}', "missing_text", "line 2: expected text under 'text', found only 'body', 'id'"),
        ('{"text": null}', "missing_text", "line 2: expected text under 'text', found NoneType in it"),
        ("[" * 100_000, "broken_json", "line 2: expected a JSON object"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, reason: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    for size in (16 << 20, 18):
        read = Read(tmp_path / "a.jsonl", size=size)
        assert (read.texts, read.errors) == (["fine"], {reason: 1})
        assert f"a.jsonl, {message}" in read.examples[0]


def test_a_line_too_long_for_memory_is_passed_over_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drpruning.prepare.readers.text.LONGEST_ENTRY", 2_000_000)
    body = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "x" * 5_000_000, "three")).encode()
    (tmp_path / "a.jsonl").write_bytes(body)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(body))
    for name in ("a.jsonl", "b.jsonl.gz"):
        for size in (100_000, 3_000_000):
            read = Read(tmp_path / name, size=size)
            assert (read.texts, read.errors) == (["one", "three"], {"too_long": 1})
            assert f"{name}, line 2: longer than" in read.examples[0]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n')
    units = list(divide_files(source_files([tmp_path / "a.jsonl"])))
    (tmp_path / "a.jsonl").unlink()
    (block,) = read_blocks(units[0], FieldMapping())
    assert block.errors.counts == {"unreadable_file": 1}
    assert str(block.errors.examples[0]) == f"{tmp_path / 'a.jsonl'}: expected a file, found none"


def test_paths_that_cannot_be_read_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ConfigError, match="does not exist"):
        source_files([tmp_path / "absent.txt"])
    with pytest.raises(ConfigError, match="unknown file format"):
        source_files([tmp_path / "a.pdf"])
    with pytest.raises(ConfigError, match="contains no readable file"):
        source_files([tmp_path])
    with pytest.raises(ConfigError, match="contains no readable file"):
        source_files([tmp_path / "*.txt"])
    for uri, message in [
        ("hf://datasets/c4", "is not a Hugging Face URI"),
        ("hf://allenai/c4", "names a model; expected a dataset"),
    ]:
        with pytest.raises(ConfigError, match=message):
            source_files([uri])
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(ConfigError, match="occurs twice"):
        source_files([tmp_path / "b.txt", tmp_path])


def test_more_suffixes_are_read_as_text(tmp_path: Path) -> None:
    for name in ("a.py", "b.py", "c.rs", "d.txt"):
        (tmp_path / name).write_text("x")
    assert [file.path.name for file in source_files([tmp_path], [".py"])] == ["a.py", "b.py", "d.txt"]
    assert {file.format for file in source_files([tmp_path / "*.rs"], [".rs"])} == {"text"}
    with pytest.raises(ConfigError, match="unknown file format") as caught:
        source_files([tmp_path / "c.rs"])
    assert caught.value.next_step == "If it is text, add --text-suffix .rs"
    (tmp_path / "d.txt").unlink()
    with pytest.raises(ConfigError, match="contains no readable file") as caught:
        source_files([tmp_path])
    assert caught.value.next_step == "If its .py files are text, add --text-suffix .py"
    for suffix in ("py", ".json", ".gz", "."):
        with pytest.raises(ConfigError, match="text suffix"):
            source_files([tmp_path], [suffix])
