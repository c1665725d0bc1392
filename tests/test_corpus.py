import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import drpruning as dp
from drpruning.errors import ConfigError, CorpusError
from tests.conftest import MakeCorpus, WriteShard, megatron_index


@pytest.fixture
def folder(make_corpus: MakeCorpus) -> Path:
    return make_corpus({"web": [500, 300], "code": [200]})


def test_a_folder_opens_as_described(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    assert corpus.domains == ("web", "code")
    assert corpus.tokens() == {"web": 800, "code": 200}
    assert corpus.tokens("eval") == {"web": 100, "code": 100}
    assert corpus.num_rows(64) == {"web": 12, "code": 3}
    assert corpus.tokenizer is not None
    assert corpus.tokenizer.file == folder / "tokenizer.json"
    assert (corpus.vocab_size, corpus.tokenizer.eos_id) == (20_000, 0)
    corpus.verify()


def test_rows_are_consecutive_tokens_across_shards(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    rows = corpus.read_rows("web", [0, 7, 11], seq_len=64)
    assert rows.dtype == np.int64
    assert np.array_equal(rows, np.array([[0], [448], [704]]) + np.arange(64))
    assert np.array_equal(corpus.read_rows("code", [2], 64), 10_000 + 128 + np.arange(64)[None])


def test_eval_rows_are_the_first_held_out_ones_within_the_budget(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    assert np.array_equal(corpus.eval_rows("web", 30), 800 + np.arange(90).reshape(3, 30))
    assert np.array_equal(corpus.eval_rows("web", 30, max_tokens=89), 800 + np.arange(60).reshape(2, 30))
    with pytest.raises(CorpusError, match="'code' has 100 held-out tokens, not one row of 101"):
        corpus.eval_rows("code", 101)
    with pytest.raises(ConfigError, match="max_tokens is 29"):
        corpus.eval_rows("web", 30, max_tokens=29)


def test_bad_requests_say_what_there_is(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    with pytest.raises(ConfigError, match="no domain 'wiki'; the corpus has web, code"):
        corpus.eval_rows("wiki", 8)
    with pytest.raises(ConfigError, match="rows 0 to 2 of 64 tokens"):
        corpus.read_rows("code", [3], 64)
    with pytest.raises(ConfigError, match="rows 0 to 2 of 64 tokens"):
        corpus.read_rows("code", [-1], 64)
    with pytest.raises(ConfigError, match="seq_len is 0"):
        corpus.num_rows(0)


def test_the_fingerprint_is_of_training_content_not_of_place(make_corpus: MakeCorpus) -> None:
    first = dp.Corpus.open(make_corpus({"web": [50], "code": [20]}, folder="first"))
    moved = dp.Corpus.open(make_corpus({"web": [50], "code": [20]}, folder="moved", held_out=30))
    swapped = dp.Corpus.open(make_corpus({"code": [20], "web": [50]}, folder="swapped"))
    shorter = dp.Corpus.open(make_corpus({"web": [49], "code": [20]}, folder="shorter"))
    assert first.fingerprint == moved.fingerprint
    assert len({first.fingerprint, swapped.fingerprint, shorter.fingerprint}) == 3


# Loose files


def test_loose_files_open_by_path_prefix_and_folder(tmp_path: Path, write_shard: WriteShard) -> None:
    (tmp_path / "many").mkdir()
    write_shard(tmp_path / "a", [[1, 2, 3], [4, 5]])
    write_shard(tmp_path / "many" / "b1", [[6, 7]], "int32")
    write_shard(tmp_path / "many" / "b0", [[8, 9]], "uint8")
    corpus = dp.Corpus({"x": [str(tmp_path / "a.bin"), tmp_path / "many"], "y": tmp_path / "a"})
    assert corpus.tokens() == {"x": 9, "y": 5}
    assert corpus.read_rows("x", [0], 9).tolist() == [[1, 2, 3, 4, 5, 8, 9, 6, 7]]
    assert [shard.documents for shard in corpus.shards()["x"]] == [2, 1, 1]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"])
def test_flat_files_of_every_dtype(tmp_path: Path, dtype: str) -> None:
    ids = np.array([0, 1, np.iinfo(dtype).max], dtype)
    ids.tofile(tmp_path / "flat.bin")
    corpus = dp.Corpus({"x": tmp_path / "flat.bin"}, dtype=dtype)
    assert corpus.read_rows("x", [0], 3).tolist() == [ids.tolist()]


def test_loose_files_that_are_not_what_is_asked_for(tmp_path: Path, write_shard: WriteShard) -> None:
    write_shard(tmp_path / "indexed", [[1, 2, 3]])
    (tmp_path / "flat.bin").write_bytes(bytes(7))
    (tmp_path / "empty").mkdir()
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"x": tmp_path / "none.bin"}, {}, "none.bin: expected a file, found none"),
        ({"x": tmp_path / "empty"}, {}, "empty: expected .bin files"),
        ({"x": []}, {}, "at least one token file"),
        ({"x": tmp_path / "flat.bin"}, {}, r'(?s)flat.bin: expected an index.*dtype="uint16"'),
        ({"x": tmp_path / "flat.bin"}, {"dtype": "uint16"}, "a multiple of 2 bytes .*found 7"),
        ({"x": tmp_path / "indexed"}, {"dtype": "int32"}, r"expected int32 tokens \(dtype=\), found uint16 \(index\)"),
    ]
    for domains, options, message in cases:
        with pytest.raises(CorpusError, match=message):
            dp.Corpus(domains, **options)
    for dtype in ["float32", "uint64", "int", "<u2", "nonsense"]:
        with pytest.raises(ConfigError, match="dtype is"):
            dp.Corpus({"x": tmp_path / "flat.bin"}, dtype=dtype)
    with pytest.raises(ConfigError, match="at least one domain"):
        dp.Corpus({})
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        dp.Corpus({"x": tmp_path / "indexed"}, vocab_size=0)


def test_ids_are_checked_against_the_vocabulary(tmp_path: Path, write_shard: WriteShard) -> None:
    write_shard(tmp_path / "a", [[1, 2, 300]])
    dp.Corpus({"x": tmp_path / "a"}, vocab_size=301).read_rows("x", [0], 3)
    with pytest.raises(CorpusError, match=r"a\.bin: expected token ids below the vocabulary's 300, found 300"):
        dp.Corpus({"x": tmp_path / "a"}, vocab_size=300).read_rows("x", [0], 3)


# Files that are not what they should be


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "corpus.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def shard_of(body: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = body["domains"]["web"]["train"][0]
    return shard


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(format="other"), 'format to be "drpruning-corpus", found "other"'),
        (lambda b: b.update(version=2), "expected version 1, found 2"),
        (lambda b: b.pop("tokenizer"), "expected a key tokenizer, found none"),
        (lambda b: b.update(tokenizer=3), "expected tokenizer to be an object, found 3"),
        (lambda b: b["tokenizer"].update(vocab_size=0), r"tokenizer\.vocab_size to be an integer from 1 "),
        (lambda b: b["tokenizer"].update(eos_id=20_000), r"tokenizer\.eos_id to be an integer from 0 to 19999"),
        (lambda b: b["tokenizer"].update(sha256="AB"), r"tokenizer\.sha256 to be 64 hexadecimal digits"),
        (lambda b: b.update(domains={}), "domains to be at least one domain"),
        (lambda b: b["domains"]["web"].pop("eval"), r"expected a key domains\.web\.eval"),
        (lambda b: b["domains"]["web"].update(train=[]), r"domains\.web\.train to be at least one shard"),
        (lambda b: b["domains"]["web"].update(train={}), r"domains\.web\.train to be a list"),
        (lambda b: shard_of(b).update(tokens=True), r"domains\.web\.train\[0\]\.tokens to be an integer"),
        (lambda b: shard_of(b).update(file="/etc/passwd"), "a path inside the folder"),
        (lambda b: shard_of(b).update(file="../x.bin"), "a path inside the folder"),
        (lambda b: shard_of(b).update(file="x.txt"), "a name that ends with .bin"),
        (lambda b: shard_of(b).update(file="gone.bin"), "gone.bin: expected a file, found none"),
        (lambda b: shard_of(b).update(tokens=501), r"expected 501 tokens \(corpus.json\), found 500 \(index\)"),
        (lambda b: shard_of(b).update(documents=2), r"expected 2 documents \(corpus.json\), found 1 \(index\)"),
        (lambda b: shard_of(b).update(bytes=1000), r"expected 1000 bytes \(corpus.json\), found 2000 \(index\)"),
    ],
)
def test_a_wrong_corpus_json_is_named(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(folder, change)
    with pytest.raises(CorpusError, match=message):
        dp.Corpus.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "format": 2}', "[" * 100_000, "\udcff"])
def test_a_corpus_json_that_is_not_one(folder: Path, text: str) -> None:
    (folder / "corpus.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CorpusError, match=r"corpus\.json: expected"):
        dp.Corpus.open(folder)


def test_a_folder_without_corpus_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"(?s)corpus\.json: expected a file, found none.*Corpus\("):
        dp.Corpus.open(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_corpus_json_is_a_corpus_error_or_harmless(folder: Path, data: st.DataObject) -> None:
    path = folder / "corpus.json"
    pristine = folder / "pristine"
    if not pristine.exists():
        pristine.write_bytes(path.read_bytes())
    body = bytearray(pristine.read_bytes())
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255))
    path.write_bytes(body)
    try:
        corpus = dp.Corpus.open(folder)
    except CorpusError:
        return
    assert sorted(corpus.tokens().values()) == [200, 800]


@pytest.mark.parametrize("what", ["bin", "idx"])
@pytest.mark.parametrize("change", ["cut", "grow", "delete", "folder"])
def test_a_changed_file_is_refused_when_opened(folder: Path, what: str, change: str) -> None:
    path = folder / f"web-train-00001.{what}"
    if change == "cut":
        os.truncate(path, path.stat().st_size - 4)
    elif change == "grow":
        with path.open("ab") as file:
            file.write(bytes(4))
    else:
        path.unlink()
        if change == "folder":
            path.mkdir()
    with pytest.raises(CorpusError, match=r"web-train-00001\.(bin|idx): expected .*, found"):
        dp.Corpus.open(folder)


def test_verify_finds_a_flipped_byte_anywhere(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".bin", ".idx"} and path.name != "tokenizer.json":
            continue
        good = path.read_bytes()
        for place in {0, len(good) // 2, len(good) - 1}:
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(CorpusError, match=f"{path.stem}.*expected"):
                corpus.verify()
        path.write_bytes(good)
    corpus.verify()


def test_every_byte_of_an_index_is_checked(tmp_path: Path, write_shard: WriteShard) -> None:
    """Whatever byte of header or index is changed, rows stay the same or a CorpusError says why not."""
    bin_path = write_shard(tmp_path / "a", [[40_000, 2, 3], [4], [5, 6]])
    idx_path = bin_path.with_suffix(".idx")
    good = idx_path.read_bytes()
    assert good == megatron_index([3, 1, 2], "uint16")
    expected = [[40_000, 2, 3, 4, 5, 6]]
    inner_boundaries = range(len(good) - 24, len(good) - 8)  # where documents begin: rows do not depend on it
    for place in range(len(good)):
        for value in {0, 1, 127, 128, 255, good[place] ^ 1, good[place] ^ 128} - {good[place]}:
            idx_path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
            try:
                found = dp.Corpus({"x": bin_path}).read_rows("x", [0], 6).tolist()
            except CorpusError:
                continue
            assert found == expected
            assert place in inner_boundaries
