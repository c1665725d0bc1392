import json
import os
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import drpruning as dp
from drpruning.cache import cache_folder
from drpruning.errors import ConfigError, CorpusError
from tests.conftest import MakeCorpus, WriteShard, megatron_index

GOLDEN_FOLDER = Path(__file__).parent / "golden" / "corpus"
GOLDEN = json.loads((GOLDEN_FOLDER / "expected.json").read_text())
MEGATRON = GOLDEN_FOLDER / "megatron"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path_factory.mktemp("cache")))


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
    with pytest.raises(ConfigError, match="at least one domain"):
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
    with pytest.raises(CorpusError, match="domain 'x' has 3 tokens, not one row of 4"):
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


def golden_ids(count: int, dtype: str) -> NDArray[np.int64]:
    """Token i is 7919 i modulo a number that makes use of the dtype."""
    modulus = {"uint8": 200, "int8": 100, "int16": 30_000, "uint16": 60_000}.get(dtype, 2**20)
    return np.arange(count) * 7919 % modulus


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
    with pytest.raises(CorpusError, match=r"compression to be null or zstd, found gz"):
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


def test_llm_c_headers(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    for magic, version, dtype in [(20240520, 1, "uint16"), (20240801, 7, "uint32")]:
        ids = np.arange(1000, 1100, dtype=dtype)
        header = np.zeros(256, "<i4")
        header[:3] = magic, version, len(ids)
        good = header.tobytes() + ids.tobytes()
        for named in (None, dtype):
            path.write_bytes(good)
            open_corpus = partial(dp.Corpus, {"x": path}, dtype=named)
            assert open_corpus().read_rows("x", [0], 100).tolist() == [ids.tolist()]
            for place, found in mutations(path, good, range(1024), open_corpus):
                assert found == ids.tolist()
                assert place >= 12  # what llm.c leaves unused
        with pytest.raises(CorpusError, match=f"expected int64 tokens .*found {dtype} .header"):
            dp.Corpus({"x": path}, dtype="int64")
    path.write_bytes(np.array([20240522, 1] + [0] * 254, "<i4").tobytes())
    with pytest.raises(CorpusError, match="multiple-choice questions"):
        dp.Corpus({"x": path}, dtype="uint16")


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


def mutations(
    path: Path, good: bytes, places: Iterable[int], open_corpus: Callable[[], dp.Corpus]
) -> Iterator[tuple[int, list[int]]]:
    """Changes each byte in several ways; yields what is read where that is no CorpusError, and puts the file back."""
    for place in places:
        for value in {0, 1, 127, 128, 255, good[place] ^ 1, good[place] ^ 128} - {good[place]}:
            path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
            try:
                corpus = open_corpus()
                found = corpus.read_rows("x", [0], corpus.tokens()["x"])[0].tolist()
            except CorpusError:
                continue
            yield place, found
    path.write_bytes(good)


@pytest.mark.parametrize("name", ["uint16", "int64", "modes"])
def test_every_byte_of_a_megatron_index_is_checked(tmp_path: Path, name: str) -> None:
    for suffix in ("bin", "idx"):
        shutil.copy(MEGATRON / f"{name}.{suffix}", tmp_path / f"a.{suffix}")
    path = tmp_path / "a.idx"
    good = path.read_bytes()
    inner_boundaries = range(34 + 12 * 6 + 8, 34 + 12 * 6 + 24)  # where documents begin: rows do not depend on it
    modes = range(34 + 12 * 6 + 32, len(good))  # nor on the modes, which can be any
    for place, found in mutations(path, good, range(len(good)), lambda: dp.Corpus({"x": tmp_path / "a"})):
        assert found == golden_ids(40, name if name != "modes" else "int32").tolist()
        assert place in inner_boundaries or place in modes


@pytest.mark.parametrize("name", ["bytes", "fixed", "shaped", "typed", "columns"])
def test_every_byte_of_an_mds_head_is_checked(tmp_path: Path, name: str) -> None:
    """A shard in place: its head (count, offsets, text), and each sample's sizes, dtypes and shapes."""
    case = GOLDEN[f"mds/{name}"]
    folder = shutil.copytree(GOLDEN_FOLDER / "mds" / name, tmp_path / name)
    path = folder / "shard.00000.mds"
    good = path.read_bytes()
    first = int.from_bytes(good[4:8], "little")
    options = {"dtype": case["dtype"]}
    samples = range(first, len(good))
    whole = golden_ids(case["tokens"], case["dtype"]).tolist()
    size = np.dtype(case["dtype"]).itemsize
    for place, found in mutations(path, good, range(len(good)), lambda: dp.Corpus({"x": folder}, **options)):
        different = [number for number, (a, b) in enumerate(zip(found, whole, strict=True)) if a != b]
        assert not different or (place in samples and len(different) == 1)  # a token, changed where it stands
        if different:
            assert good[place - size : place + size].find(int(whole[different[0]]).to_bytes(size, "little")) >= 0


@pytest.mark.parametrize("name", ["bytes-ragged", "shaped-ragged", "columns-ragged"])
def test_every_byte_of_a_ragged_mds_head_is_checked(tmp_path: Path, name: str) -> None:
    """A shard that has to be unpacked is read through: whatever its head says is held against every sample."""
    case = GOLDEN[f"mds/{name}"]
    folder = shutil.copytree(GOLDEN_FOLDER / "mds" / name, tmp_path / name)
    path = folder / "shard.00000.mds"
    good = path.read_bytes()
    text = range(4 + 4 * 6, int.from_bytes(good[4:8], "little"))  # a copy of what index.json says, not read
    for place, found in mutations(path, good, range(text[-1]), lambda: dp.Corpus({"x": folder}, dtype="uint16")):
        assert found == golden_ids(case["tokens"], case["dtype"]).tolist()
        assert place in text
        if place > text[0] + 3:
            break  # each of these costs a file in the cache
    path.write_bytes(good)


@pytest.mark.parametrize("name", ["bytes", "columns", "fixed-zstd"])
def test_every_byte_of_an_mds_index_is_checked(tmp_path: Path, name: str) -> None:
    case = GOLDEN[f"mds/{name}"]
    folder = shutil.copytree(GOLDEN_FOLDER / "mds" / name, tmp_path / name)
    path = folder / "index.json"
    good = path.read_bytes()
    options = {"dtype": case["dtype"]} if name == "bytes" else {}
    for _, found in mutations(path, good, range(len(good)), lambda: dp.Corpus({"x": folder}, **options)):
        assert found == golden_ids(case["tokens"], case["dtype"]).tolist()


def test_damaged_zstd_data_is_an_error_or_found_by_verify(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN_FOLDER / "mds" / "fixed-zstd", tmp_path / "a")
    path = folder / "shard.00000.mds.zstd"
    good = path.read_bytes()
    for place in [*range(12), *range(12, len(good), 23)]:
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with suppress(CorpusError):
            dp.Corpus({"x": folder}).read_rows("x", [0], 192)
        with pytest.raises(CorpusError, match=r"shard\.00000\.mds\.zstd"):
            dp.Corpus({"x": folder}).verify()
    for length in (0, 3, 100, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(CorpusError, match=r"expected 848 bytes \(index\.json\)"):
            dp.Corpus({"x": folder})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(version=3), "version to be 2, found 3"),
        (lambda b: b.update(shards=[]), "shards to be at least one shard"),
        (lambda b: b["shards"][0].update(format="json"), r'shards\[0\]\.format to be "mds", found "json"'),
        (lambda b: b["shards"][0].update(samples=13), r"expected 13 samples \(index\.json\), found 12"),
        (lambda b: b["shards"][0].update(samples=2**32), r"samples to be an integer from 1 to"),
        (lambda b: b["shards"][0].update(samples=2**31), "room for all offsets"),
        (lambda b: b["shards"][0].update(column_sizes=[32, 1]), "one size for each of 1 columns"),
        (lambda b: b["shards"][0].update(column_sizes=[None]), r"column_sizes\[0\] to be 32 for ndarray:uint16:16"),
        (lambda b: b["shards"][0].update(column_encodings=["pkl"]), "bytes or ndarray, as tokens are stored"),
        (lambda b: b["shards"][0].update(column_encodings=["ndarray:float32"]), "an ndarray of uint8, int8"),
        (lambda b: b["shards"][0].update(column_encodings=["ndarray:uint16:x"]), "axes are 1 or longer"),
        (lambda b: b["shards"][0]["raw_data"].update(basename="../x.mds"), "a path inside the folder"),
        (lambda b: b["shards"][0]["raw_data"].update(basename="gone.mds"), "gone.mds: expected a file, found none"),
        (lambda b: b["shards"][0]["raw_data"].update(bytes=637), r"expected 637 bytes \(index\.json\), found 638"),
    ],
)
def test_a_wrong_mds_index_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    folder = shutil.copytree(GOLDEN_FOLDER / "mds" / "fixed", tmp_path / "a")
    body = json.loads((folder / "index.json").read_text())
    change(body)
    (folder / "index.json").write_text(json.dumps(body))
    with pytest.raises(CorpusError, match=message):
        dp.Corpus({"x": folder})


@pytest.mark.parametrize("kind", ["flat.bin", "fixed", "bytes-zstd"])
@pytest.mark.parametrize("change", ["cut", "grow", "write", "delete", "replace"])
def test_a_file_that_changes_after_it_was_opened_is_refused(tmp_path: Path, kind: str, change: str) -> None:
    if kind == "flat.bin":
        path = target = tmp_path / kind
        golden_ids(192, "uint16").astype("uint16").tofile(path)
    else:
        target = Path(shutil.copytree(GOLDEN_FOLDER / "mds" / kind, tmp_path / kind))
        path = next(target.glob("shard.00000*"))
    corpus = dp.Corpus({"x": target}, dtype="uint16")
    if kind != "bytes-zstd":  # once unpacked, the unpacked file counts
        corpus.read_rows("x", [0], 16)
    if change == "cut":
        os.truncate(path, path.stat().st_size - 2)
    elif change == "grow":
        os.truncate(path, path.stat().st_size + 2)
    elif change == "write":
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(0, 0))
    elif change == "delete":
        path.unlink()
    else:
        shutil.copy(path, tmp_path / "other")
        (tmp_path / "other").replace(path)
    with pytest.raises(CorpusError, match=rf"{path.name}: (the file changed while it was in use: )?expected .*, found"):
        corpus.read_rows("x", [1], 16)


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
