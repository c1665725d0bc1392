"""Corpora of every format: content and methods."""

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import drpruning as dp
from drpruning import _native
from drpruning.corpus import HELD_OUT_KEY, Split, held_out_order
from drpruning.errors import ConfigError, CorpusError
from drpruning.files import cache_folder
from tests.conftest import MakeCorpus, WriteShard, write_described, write_manifest
from tests.corpus.conftest import GOLDEN, GOLDEN_FOLDER, MEGATRON, golden_ids


def test_a_folder_opens_as_described(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    assert corpus.domains == ("web", "code")
    assert corpus.tokens() == {"web": 800, "code": 200}
    assert corpus.tokens("validation") == {"web": 100, "code": 100}
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


def test_held_out_rows_are_within_the_budget(make_corpus: MakeCorpus) -> None:
    corpus = dp.Corpus.open(make_corpus({"web": [800], "code": [200]}, test=120))
    assert np.array_equal(corpus.held_out_rows("web", 30, split="validation"), 800 + np.arange(90).reshape(3, 30))
    assert np.array_equal(corpus.held_out_rows("web", 30), 900 + np.arange(120).reshape(4, 30))
    numbers = corpus.held_out_row_numbers("web", 30, max_tokens=89)
    assert len(numbers) == 2
    assert np.array_equal(corpus.held_out_rows("web", 30, max_tokens=89), corpus.read_rows("web", numbers, 30, "test"))
    with pytest.raises(CorpusError, match="'code' has 100 validation tokens, less than one row of 101"):
        corpus.held_out_rows("code", 101, split="validation")
    with pytest.raises(CorpusError, match="'code' has 120 test tokens, less than one row of 121"):
        corpus.held_out_rows("code", 121)
    with pytest.raises(ConfigError, match="max_tokens is 29"):
        corpus.held_out_rows("web", 30, max_tokens=29)
    with pytest.raises(ConfigError, match="the split train is not held out"):
        corpus.held_out_rows("web", 30, split="train")


@pytest.mark.parametrize("rows", [419, 5000])  # a table and a Feistel network, see rust/core/src/shuffle.rs
@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_rows_are_spread_over_all_files_and_nested(make_corpus: MakeCorpus, rows: int, split: Split) -> None:
    """Regression: evaluations once read the first rows, here all from the easy one of two files."""
    corpus = dp.Corpus.open(make_corpus({"web": [8]}, held_out=8 * rows, test=8 * rows))
    easy = rows * 99 // 419
    numbers = corpus.held_out_row_numbers("web", 8, 64 * 8, split)
    assert len(numbers) == 64
    assert (np.diff(numbers) > 0).all()
    # Of 64 rows without replacement 48.9 of 320/419 are hard, standard deviation 3.1: five of them are 16
    assert 33 <= (numbers >= easy).sum() <= 63
    larger = corpus.held_out_row_numbers("web", 8, 65 * 8, split)
    assert len(larger) == 65
    assert set(numbers) < set(larger)
    assert np.array_equal(corpus.held_out_row_numbers("web", 8, None, split), np.arange(rows))


@given(st.integers(2, 400), st.integers(1, 9), st.integers(0, 8), st.integers(0, 500), st.integers(0, 500))
def test_no_row_is_in_validation_and_in_test(
    corpora: dict[bool, dp.Corpus], rows: int, seq_len: int, rest: int, seen: int, measured: int
) -> None:
    """Check every budget and length of rows, with test shards or with one held-out split that both divide."""
    for has_test, corpus in corpora.items():
        domain = "web" if rows * seq_len + rest % seq_len > 900 else "code"
        if not has_test and corpus.num_rows(seq_len, "validation")[domain] < 2:
            continue
        of_split = {
            split: corpus.held_out_rows(domain, seq_len, max(tokens, seq_len), split)  # type: ignore[arg-type]
            for split, tokens in {"validation": seen, "test": measured}.items()
        }
        tokens = {split: set(read.ravel().tolist()) for split, read in of_split.items()}  # a token is its address
        assert all(found.size == len(tokens[split]) for split, found in of_split.items())
        assert not tokens["validation"] & tokens["test"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dp.Corpus]:
    """Return a corpus with test shards and one without; a token is its address."""
    found = {}
    for has_test in (True, False):
        root = tmp_path_factory.mktemp("corpus")
        flat = {"train": 10, "validation": 4000, **({"test": 3000} if has_test else {})}
        domains: dict[str, dict[str, list[dict[str, object]]]] = {"web": {}, "code": {}}
        for number, (name, splits) in enumerate(domains.items()):
            place = 10_000 * number
            for split, tokens in flat.items():
                count = tokens // (1 + 6 * number)
                splits[split] = [write_described(root / f"{name}-{split}", list(range(place, place + count)))]
                place += count
        write_manifest(root, domains, vocab_size=20_000)
        found[has_test] = dp.Corpus.open(root)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_validation_and_test_divide_a_held_out_split(count: int) -> None:
    parts = {split: held_out_order(count, split, divided=True) for split in ("validation", "test")}  # type: ignore[arg-type]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(count))
    assert len(parts["validation"]) == max(count // 3, 1)
    whole = [held_out_order(count, split, divided=False).tolist() for split in ("validation", "test")]  # type: ignore[arg-type]
    assert whole[0] == whole[1]
    assert sorted(whole[0]) == list(range(count))


def test_one_held_out_row_cannot_be_validation_and_test(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    assert corpus.held_out_source("web") == "validation"
    assert len(corpus.held_out_rows("web", 60, split="validation")) == 1
    with pytest.raises(CorpusError, match="1 held-out row of 60 tokens; expected 2 or more"):
        corpus.held_out_rows("web", 60)


def test_held_out_rows_are_the_same_on_every_platform() -> None:
    """Frozen: other numbers here are a value-breaking change."""
    assert HELD_OUT_KEY == 0x68656C64
    assert _native.permuted(HELD_OUT_KEY, 10, 10).tolist() == [3, 6, 0, 7, 9, 8, 4, 5, 2, 1]
    assert held_out_order(10, "validation", divided=True).tolist() == [3, 6, 0]
    assert held_out_order(10, "test", divided=True).tolist() == [1, 2, 5, 4, 8, 9, 7]
    assert _native.permuted(HELD_OUT_KEY, 5000, 4).tolist() == [448, 1046, 3813, 1952]
    assert _native.permuted(HELD_OUT_KEY, 0, 0).tolist() == []
    with pytest.raises(ValueError, match="count must be at most size"):
        _native.permuted(HELD_OUT_KEY, 3, 4)


def test_a_corpus_without_groups_has_none(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    assert corpus.held_out_groups("web") is None
    assert corpus.held_out_groups("web", "validation") is None
    with pytest.raises(ConfigError, match="unknown domain 'wiki'"):
        corpus.held_out_groups("wiki")


def test_tokens_are_read_wherever_they_begin(make_corpus: MakeCorpus) -> None:
    corpus = dp.Corpus.open(make_corpus({"web": [9000], "code": [30]}))
    for start, stop in [(0, 9000), (5, 5), (4095, 4097), (4096, 8192), (8000, 8500), (8192, 9000), (8999, 9000)]:
        assert corpus.read_tokens("web", start, stop).tolist() == list(range(start, stop))
    assert corpus.read_tokens("code", 3, 30).tolist() == list(range(10_003, 10_030))
    with pytest.raises(ConfigError, match="has tokens 0 to 30"):
        corpus.read_tokens("code", 3, 31)


def test_bad_requests_say_what_there_is(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    with pytest.raises(ConfigError, match="unknown domain 'wiki'; the corpus has web, code"):
        corpus.held_out_rows("wiki", 8)
    with pytest.raises(ConfigError, match="rows 0 to 2 of 64 tokens"):
        corpus.read_rows("code", [3], 64)
    with pytest.raises(ConfigError, match="rows 0 to 2 of 64 tokens"):
        corpus.read_rows("code", [-1], 64)
    with pytest.raises(ConfigError, match="seq_len is 0"):
        corpus.num_rows(0)
    with pytest.raises(ConfigError, match="split is 'dev'; expected one of train, validation, test"):
        corpus.tokens("dev")  # type: ignore[arg-type]


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


def test_loose_files_of_another_kind_are_errors(tmp_path: Path, write_shard: WriteShard) -> None:
    write_shard(tmp_path / "indexed", [[1, 2, 3]])
    (tmp_path / "flat.bin").write_bytes(bytes(7))
    (tmp_path / "empty").mkdir()
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"x": tmp_path / "none.bin"}, {}, "none.bin: expected a file, found none"),
        ({"x": tmp_path / "empty"}, {}, "empty: expected .bin files or an index.json"),
        ({"x": []}, {}, "at least one token file"),
        ({"x": tmp_path / "flat.bin"}, {}, r'flat.bin: expected an index.*dtype="uint16"'),
        ({"x": tmp_path / "flat.bin"}, {"dtype": "uint16"}, "a multiple of 2 bytes .*found 7"),
        ({"x": tmp_path / "indexed"}, {"dtype": "int32"}, r"expected int32 tokens \(dtype=\), found uint16 \(index\)"),
    ]
    for domains, options, message in cases:
        with pytest.raises(CorpusError, match=message):
            dp.Corpus(domains, **options)
    for dtype in ["float32", "uint64", "int", "<u2", "nonsense"]:
        with pytest.raises(ConfigError, match="dtype is"):
            dp.Corpus({"x": tmp_path / "flat.bin"}, dtype=dtype)
    with pytest.raises(ConfigError, match="domains is empty; expected at least one"):
        dp.Corpus({})
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        dp.Corpus({"x": tmp_path / "indexed"}, vocab_size=0)


def test_patterns_and_folders_come_in_the_order_of_names(tmp_path: Path, write_shard: WriteShard) -> None:
    for number, name in enumerate(["web-2", "web-10", "web-1", "code"]):
        write_shard(tmp_path / name, [[number]])
    (tmp_path / "note.txt").touch()
    corpus = dp.Corpus({"web": f"{tmp_path}/web-*.bin", "all": tmp_path, "any": [f"{tmp_path}/[wc]*"]})
    assert corpus.read_rows("web", [0], 3).tolist() == [[2, 1, 0]]
    assert corpus.read_rows("all", [0], 4).tolist() == corpus.read_rows("any", [0], 4).tolist() == [[3, 2, 1, 0]]
    with pytest.raises(CorpusError, match=r"wiki-\*: expected \.bin files or folders of that pattern, found no others"):
        dp.Corpus({"x": f"{tmp_path}/wiki-*"})
    (tmp_path / "index.json").touch()
    with pytest.raises(CorpusError, match=r"(?s)found both.*index\.json or .*\*\.bin"):
        dp.Corpus({"x": tmp_path})


def test_a_domain_shorter_than_a_row_is_named(tmp_path: Path, write_shard: WriteShard) -> None:
    corpus = dp.Corpus({"x": write_shard(tmp_path / "a", [[1, 2, 3]])})
    assert corpus.num_rows(4) == {"x": 0}
    with pytest.raises(CorpusError, match="domain 'x' has 3 tokens, less than one row of 4"):
        corpus.read_rows("x", [0], 4)


def test_rows_are_int32_on_request(tmp_path: Path) -> None:
    np.array([7, 2**31 - 1, 2**31], "uint32").tofile(tmp_path / "a.bin")
    reader = dp.Corpus({"x": tmp_path / "a.bin"}, dtype="uint32").reader()
    out = np.empty((1, 2), np.int32)
    reader.gather(np.zeros(1, np.int32), np.zeros(1, np.int64), out)
    assert out.tolist() == [[7, 2**31 - 1]]
    out = np.empty((3, 1), np.int32)
    with pytest.raises(CorpusError, match=r"expected token ids below 2\^31 for int32, found 2147483648 at token 2"):
        reader.gather(np.zeros(3, np.int32), np.arange(3), out, threads=2)


def test_far_away_rows_of_a_huge_sparse_file(tmp_path: Path) -> None:
    """2^40 tokens: no place, count or offset fits 32 bits."""
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        try:
            file.truncate(2**41)
        except OSError:
            pytest.skip("the file system has no files of 2 TiB")
        file.seek(-4096, os.SEEK_END)
        file.write(np.arange(2048, dtype="<u2").tobytes())
    corpus = dp.Corpus({"x": path}, dtype="uint16")
    assert corpus.tokens() == {"x": 2**40}
    rows = corpus.read_rows("x", [2**29 - 1, 2**28], 2048)
    assert rows[0].tolist() == list(range(2048))
    assert not rows[1].any()


def test_more_shards_than_descriptors(tmp_path: Path) -> None:
    for number in range(300):
        np.full(4, number, "uint16").tofile(tmp_path / f"{number:03}.bin")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = sum(1 for _ in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 60, before[1]))
    try:
        corpus = dp.Corpus({"x": tmp_path}, dtype="uint16")
        rows = corpus.read_rows("x", range(300), 4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert np.array_equal(rows, np.repeat(np.arange(300)[:, None], 4, axis=1))


# Files that other programs wrote: see golden/make_corpus.py


@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "mds/gz"])
def test_files_of_other_writers_are_read(name: str) -> None:
    case = GOLDEN[name]
    corpus = dp.Corpus({"x": GOLDEN_FOLDER / name}, dtype=case["dtype"])
    assert corpus.tokens() == {"x": case["tokens"]}
    shards = corpus.shards()["x"]
    assert {(shard.dtype, shard.documents) for shard in shards} == {(case["dtype"], case["documents"])}
    expected = golden_ids(case["tokens"], case["dtype"])
    for seq_len in (1, 7, 16, case["tokens"]):
        rows = case["tokens"] // seq_len
        found = corpus.read_rows("x", range(rows), seq_len)
        assert np.array_equal(found, expected[: rows * seq_len].reshape(rows, seq_len))
    corpus.verify()
    assert corpus.fingerprint == dp.Corpus({"x": GOLDEN_FOLDER / name}, dtype=case["dtype"]).fingerprint


def test_what_other_writers_can_write_and_tokens_cannot_be() -> None:
    with pytest.raises(CorpusError, match=r"float32\.idx: expected dtype code 1, .*, found 7 \(float32\)"):
        dp.Corpus({"x": GOLDEN_FOLDER / "megatron" / "float32"})
    with pytest.raises(CorpusError, match=r"compression to be null or zstd, found 'gz'"):
        dp.Corpus({"x": GOLDEN_FOLDER / "mds" / "gz"}, dtype="uint16")
    with pytest.raises(CorpusError, match=r'(?s)expected a dtype for the bytes of tokens, found none.*dtype="uint16"'):
        dp.Corpus({"x": GOLDEN_FOLDER / "mds" / "bytes"})
    with pytest.raises(CorpusError, match=r"expected int32 tokens \(dtype=\), found uint16 \(index\.json\)"):
        dp.Corpus({"x": GOLDEN_FOLDER / "mds" / "fixed"}, dtype="int32")
    with pytest.raises(CorpusError, match=r"expected int32 tokens \(dtype=\), found int64 \(sample 0\)"):
        dp.Corpus({"x": GOLDEN_FOLDER / "mds" / "typed"}, dtype="int32")


def test_formats_mix_and_columns_are_named(tmp_path: Path) -> None:
    np.arange(9, dtype="uint32").tofile(tmp_path / "flat.bin")
    columns = GOLDEN_FOLDER / "mds" / "columns"
    corpus = dp.Corpus(
        {"flat": tmp_path / "flat.bin", "mds": columns, "mask": columns / "index.json", "meg": MEGATRON / "int8"},
        dtype={"flat": "uint32"},
        column={"mask": "attention_mask"},
    )
    assert corpus.tokens() == {"flat": 9, "mds": 192, "mask": 192, "meg": 40}
    assert corpus.read_rows("mask", [11], 16).tolist() == [[1] * 16]
    assert len({dp.Corpus({"x": columns}, column=name).fingerprint for name in ("tokens", "attention_mask")}) == 2
    with pytest.raises(CorpusError, match=r"(?s)expected a column nope .*found attention_mask \(.*column="):
        dp.Corpus({"x": columns}, column="nope")
    with pytest.raises(CorpusError, match='bytes or ndarray, as tokens are stored, found "str"'):
        dp.Corpus({"x": columns}, column="id")
    with pytest.raises(ConfigError, match="dtype names 'nope'; the domains are x"):
        dp.Corpus({"x": columns}, dtype={"nope": "uint16"})


def test_a_shard_is_unpacked_once(tmp_path: Path) -> None:
    cache = cache_folder() / "mds"
    corpus = dp.Corpus({"x": shutil.copytree(GOLDEN_FOLDER / "mds" / "fixed-zstd", tmp_path / "a")})
    assert not cache.exists()  # opening reads the head, no more
    corpus.read_rows("x", [0], 16)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    again = dp.Corpus({"x": tmp_path / "a"})
    assert np.array_equal(again.read_rows("x", [0], 192)[0], golden_ids(192, "int32"))
    assert [file] == list(cache.iterdir())
    assert file.stat().st_mtime_ns == written
    os.truncate(file, 20)  # whatever is not complete is written again
    assert np.array_equal(dp.Corpus({"x": tmp_path / "a"}).read_rows("x", [11], 16)[0], golden_ids(192, "int32")[-16:])


def test_ids_are_checked_against_the_vocabulary(tmp_path: Path, write_shard: WriteShard) -> None:
    write_shard(tmp_path / "a", [[1, 2, 300]])
    dp.Corpus({"x": tmp_path / "a"}, vocab_size=301).read_rows("x", [0], 3)
    with pytest.raises(CorpusError, match=r"a\.bin: expected token ids below the vocabulary's 300, found 300"):
        dp.Corpus({"x": tmp_path / "a"}, vocab_size=300).read_rows("x", [0], 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"domains": {"a": 5}},
        {"domains": {"a": [None]}},
        {"domains": {5: "a.bin"}},
        {"domains": {"": "a.bin"}},
        {"domains": {"\ud800": "a.bin"}},
        {"vocab_size": "5"},
        {"vocab_size": 1.5},
        {"end_token": 1.5},
        {"dtype": 5},
        {"dtype": ["uint8"]},
        {"column": 5},
    ],
)
def test_arguments_of_another_type_are_errors(tmp_path: Path, changes: dict[str, Any]) -> None:
    np.arange(100, dtype=np.uint8).tofile(tmp_path / "a.bin")
    arguments: dict[str, Any] = {"domains": {"a": tmp_path / "a.bin"}, "dtype": "uint8"}
    assert dp.Corpus(**arguments).tokens() == {"a": 100}
    with pytest.raises(ConfigError, match="expected"):
        dp.Corpus(**{**arguments, **changes})


def test_rows_and_tokens_are_integers_in_range(folder: Path) -> None:
    corpus = dp.Corpus.open(folder)
    for rows in ([1.5], ["1"], [None], [2**70]):
        with pytest.raises(ConfigError, match="rows of domain 'web' are not integers"):
            corpus.read_rows("web", rows, 4)  # type: ignore[arg-type]
    for seq_len in (1.5, "4", None):
        with pytest.raises(ConfigError, match="seq_len is"):
            corpus.num_rows(seq_len)  # type: ignore[arg-type]
    assert len(corpus.read_tokens("web", 800, 800)) == 0
    for start, stop in ((5, 2), (-1, 2), (0, 801), (900, 900), (0.5, 2)):
        with pytest.raises(ConfigError, match=r"domain 'web' has tokens 0 to 800 \(train\)"):
            corpus.read_tokens("web", start, stop)  # type: ignore[arg-type]
