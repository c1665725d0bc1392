"""Corpora that are not what they should be: each is an error that names what is wrong, never other tokens."""

import json
import os
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

import drpruning as dp
from drpruning.errors import CorpusError
from tests.conftest import WriteShard, megatron_index
from tests.corpus.conftest import GOLDEN, GOLDEN_FOLDER, MEGATRON, golden_ids


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
        (lambda b: b.update(version=1), "expected version 2, found 1"),
        (lambda b: b.pop("tokenizer"), "expected a key tokenizer, found none"),
        (lambda b: b.update(tokenizer=3), "expected tokenizer to be an object, found 3"),
        (lambda b: b["tokenizer"].update(vocab_size=0), r"tokenizer\.vocab_size to be an integer from 1 "),
        (lambda b: b["tokenizer"].update(eos_id=20_000), r"tokenizer\.eos_id to be an integer from 0 to 19999"),
        (lambda b: b["tokenizer"].update(sha256="AB"), r"tokenizer\.sha256 to be 64 hexadecimal digits"),
        (lambda b: b.update(domains={}), "domains to be at least one domain"),
        (lambda b: b["domains"]["web"].pop("validation"), r"expected a key domains\.web\.validation"),
        (lambda b: b["domains"]["web"].update(train=[]), r"domains\.web\.train to be at least one shard"),
        (lambda b: b["domains"]["web"].update(train={}), r"domains\.web\.train to be a list"),
        (lambda b: b["domains"]["web"].update(test=[shard_of(b)]), r"web\.test to be shards that no domain trains on"),
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


def test_a_folder_without_corpus_json_is_an_error_with_advice(tmp_path: Path) -> None:
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
        for value in {good[place] ^ 1, good[place] ^ 128}:
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
            for place, found in mutations(path, good, [*range(14), 500, 1023], open_corpus):
                assert found == ids.tolist()
                assert place >= 12  # what llm.c leaves unused
        with pytest.raises(CorpusError, match=f"expected int64 tokens .*found {dtype} .header"):
            dp.Corpus({"x": path}, dtype="int64")
    path.write_bytes(np.array([20240522, 1] + [0] * 254, "<i4").tobytes())
    with pytest.raises(CorpusError, match="multiple-choice questions"):
        dp.Corpus({"x": path}, dtype="uint16")


def test_big_endian_headers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    path.write_bytes(np.array([20240520, 1, 100] + [0] * 303, ">i4").tobytes())
    with pytest.raises(CorpusError):
        dp.Corpus({"x": path})
    shutil.copy(MEGATRON / "uint16.bin", tmp_path / "a.bin")
    index = (MEGATRON / "uint16.idx").read_bytes()
    (tmp_path / "a.idx").write_bytes(index[:9] + index[9:17][::-1] + index[17:])  # the version of the format
    with pytest.raises(CorpusError):
        dp.Corpus({"x": tmp_path / "a"})


@pytest.mark.parametrize("name", ["bytes", "shaped", "columns", "bytes-ragged", "shaped-ragged", "columns-ragged"])
def test_every_byte_of_an_mds_head_is_checked(tmp_path: Path, name: str) -> None:
    """Change count, offsets and bytes before the first sample's tokens; ``rust/core/tests/mds.rs`` tries all values."""
    case = GOLDEN[f"mds/{name}"]
    folder = shutil.copytree(GOLDEN_FOLDER / "mds" / name, tmp_path / name)
    path = folder / "shard.00000.mds"
    good = path.read_bytes()
    count, first = (int.from_bytes(good[at : at + 4], "little") for at in (0, 4))
    head = range(4 + 4 * (count + 1))
    text = range(head.stop, head.stop + 2)  # a copy of index.json, not read
    sample = range(first, first + (8 if name == "columns" else 4))
    open_corpus = partial(dp.Corpus, {"x": folder}, dtype=case["dtype"])
    for place, found in mutations(path, good, [*head, *text, *sample], open_corpus):
        assert found == golden_ids(case["tokens"], case["dtype"]).tolist()
        assert place not in head


@pytest.mark.parametrize("name", ["bytes", "columns", "fixed-zstd"])
def test_every_byte_of_an_mds_index_is_checked(tmp_path: Path, name: str) -> None:
    case = GOLDEN[f"mds/{name}"]
    folder = shutil.copytree(GOLDEN_FOLDER / "mds" / name, tmp_path / name)
    path = folder / "index.json"
    good = path.read_bytes()
    options = {"dtype": case["dtype"]} if name == "bytes" else {}
    for _, found in mutations(path, good, range(0, len(good), 3), partial(dp.Corpus, {"x": folder}, **options)):
        assert found == golden_ids(case["tokens"], case["dtype"]).tolist()


def test_damaged_zstd_data_is_an_error_or_found_by_verify(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN_FOLDER / "mds" / "fixed-zstd", tmp_path / "a")
    path = folder / "shard.00000.mds.zstd"
    good = path.read_bytes()
    for place in [*range(12), *range(12, len(good), 50)]:
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
    """Change each byte of header and index: rows stay the same, or a CorpusError is raised."""
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
