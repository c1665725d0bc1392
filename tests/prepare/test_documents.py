"""Text files are read whole, counted where repaired, and named where broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from drpruning.errors import ConfigError, CorpusError
from drpruning.prepare.documents import FileDocuments


def test_a_text_file_is_a_document_and_a_line_of_jsonl_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n\n{"text": "four\\nfive", "id": 7}')
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"six"))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "seven"}\n'))
    expected = ["one\ntwo\n", "three", "four\nfive", "six", "seven"]
    assert list(FileDocuments([tmp_path])) == expected
    assert list(FileDocuments(sorted(tmp_path.iterdir()))) == expected


def test_a_folder_is_read_in_the_order_of_paths_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name in ("b/x.txt", "a.txt", "b/a.txt", ".git/no.txt", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(FileDocuments([tmp_path])) == ["a.txt", "b/a.txt", "b/x.txt"]


def test_a_pattern_stands_for_what_it_matches(tmp_path: Path) -> None:
    for name in ("a1.txt", "a2.txt", "b1.txt"):
        (tmp_path / name).write_text(name)
    assert list(FileDocuments([tmp_path / "a*.txt"])) == ["a1.txt", "a2.txt"]


def test_another_key_can_hold_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "one"}\n')
    assert list(FileDocuments([tmp_path], text_field="content")) == ["one"]


def test_invalid_utf8_is_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "\\ud800"}\n{"text": "fine"}\n')
    documents = FileDocuments([tmp_path])
    assert list(documents) == ["caf\ufffd", "\ufffd", "?", "fine"]
    assert documents.left_out == {"invalid_utf8": 3}
    assert list(documents)
    assert documents.left_out == {"invalid_utf8": 3}  # of the last pass, not of all


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "two"}), encoding="utf-8-sig")
    assert list(FileDocuments([tmp_path])) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: expected a JSON object, found something else"),
        ("[1, 2]", "line 2: expected a JSON object, found list"),
        ('{"body": "x", "id": 1}', "line 2: expected text under 'text', found only 'body', 'id'"),
        ('{"text": null}', "line 2: expected text under 'text', found NoneType in it"),
        ("[" * 100_000, "line 2: expected a JSON object"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(CorpusError, match=message):
        list(FileDocuments([tmp_path / "a.jsonl"]))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_truncated_gzip_file_is_named(tmp_path: Path, name: str) -> None:
    whole = gzip.compress(b'{"text": "some words"}\n' * 50)
    for broken in (whole[:-12], b"not gzip at all", whole[:20] + b"\xff" * 20 + whole[40:]):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(CorpusError, match=f"{name}: truncated or damaged gzip file"):
            list(FileDocuments([tmp_path / name]))


def test_paths_that_cannot_be_read_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ConfigError, match="does not exist"):
        FileDocuments([tmp_path / "absent.txt"])
    with pytest.raises(ConfigError, match="cannot read this kind of file"):
        FileDocuments([tmp_path / "a.pdf"])
    with pytest.raises(ConfigError, match="holds no file to read"):
        FileDocuments([tmp_path])
    with pytest.raises(ConfigError, match="holds no file to read"):
        FileDocuments([tmp_path / "*.txt"])


def test_the_fingerprint_is_of_names_content_and_field(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    first = FileDocuments([tmp_path]).fingerprint()
    assert FileDocuments([tmp_path]).fingerprint() == first
    assert FileDocuments([tmp_path], text_field="body").fingerprint() != first
    (tmp_path / "a.txt").write_text("two")
    assert FileDocuments([tmp_path]).fingerprint() != first
