"""The readers of files from outside, each with valid files to mutate."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benches.hardening.mutations import mutated, mutated_values

import drpruning as dp
from drpruning.cli.options import parse_numbers_by_domain
from drpruning.comparison.methods import read_methods
from drpruning.corpus.manifest import SPLITS, Manifest
from drpruning.evaluation.task_lists import read_list
from drpruning.loss_table import read_learning_rates, read_losses, read_size_losses
from drpruning.mixture.schedule_io import read_schedule
from drpruning.prepare.readers import divide_files, read_blocks
from drpruning.prepare.readers.documents import ParseStats, parse_documents
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.source_files import source_files
from drpruning.prepare.recipe import read_recipe
from drpruning.recipes import load_recipe

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "corpus"


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file.

    Args:
        name: Name of the reader.
        path: Name of the file, in a folder.
        read: Reads it; the argument is its path.
        seeds: Valid contents; none if only values are mutated.
        values: Valid contents as JSON, whose values are mutated.
        prepare: Writes the other files of the folder.
    """

    name: str
    path: str
    read: Callable[[Path], object]
    seeds: list[bytes]
    values: list[bytes] = field(default_factory=list)
    prepare: Callable[[Path], object] = lambda folder: None

    def case(self, source: random.Random) -> bytes:
        """Return the content of a mutated file."""
        if self.values and (not self.seeds or source.random() < 0.5):
            return mutated_values(source.choice(self.values), source)
        return mutated(source.choice(self.seeds), source)


def _shipped(package: str, folder: str) -> list[bytes]:
    found = (resources.files(package) / folder).iterdir()
    return [item.read_bytes() for item in sorted(found, key=lambda item: item.name) if item.name.endswith(".yaml")]


def _as_json(contents: list[bytes]) -> list[bytes]:
    return [json.dumps(yaml.safe_load(content), default=str).encode() for content in contents]


def _read_recipe(path: Path) -> None:
    config = load_recipe(str(path))
    config.notices()
    config.hash()
    config.to_yaml()


def _read_corpus(path: Path) -> None:
    corpus = dp.Corpus.open(path.parent)
    Manifest.read(path.parent)
    for domain, rows in corpus.num_rows(8).items():
        corpus.read_rows(domain, range(min(rows, 2)), 8)


def _read_index(path: Path) -> None:
    corpus = dp.Corpus({"web": path.parent}, dtype="uint16")
    if corpus.num_rows(8)["web"]:
        corpus.read_rows("web", [0], 8)
    _read_documents(path)


def _read_tokens(path: Path) -> None:
    corpus = dp.Corpus({"web": path.with_suffix(".bin")})
    if corpus.num_rows(8)["web"]:
        corpus.read_rows("web", [0], 8)
    corpus.verify()


def _read_shard(path: Path) -> None:
    dp.Corpus({"web": path.parent}, dtype="uint16").verify()


def _read_documents(path: Path) -> None:
    fields = FieldMapping()
    for unit in divide_files(source_files([path])):
        for block in read_blocks(unit, fields):
            if block.kind != "giant":
                list(parse_documents(block, fields, "replace", ParseStats()))


def _write_corpus(folder: Path) -> None:
    """Write a corpus of one domain, with its manifest."""
    from hashlib import sha256

    tokens = np.arange(64, dtype="<u2")
    index = _index([64])
    for split in SPLITS:
        tokens.tofile(folder / f"{split}.bin")
        (folder / f"{split}.idx").write_bytes(index)
    (folder / "tokenizer.json").write_bytes(b"{}")

    def shard(split: str) -> dict[str, Any]:
        return {
            "file": f"{split}.bin", "tokens": 64, "documents": 1, "bytes": 128,
            "sha256": sha256(tokens.tobytes()).hexdigest(), "index_sha256": sha256(index).hexdigest(),
        }  # fmt: skip

    text = {"bytes": 10, "held_out_share": 0.1, "left_out": {"empty": 1}, "byte_share": 0.1, "digests": {"a": "b"}}
    body = {
        "format": "drpruning-corpus",
        "version": 2,
        "tokenizer": {
            "name": "t", "file": "tokenizer.json", "vocab_size": 100, "eos_id": 0, "sha256": sha256(b"{}").hexdigest(),
        },
        "domains": {"web": {**{split: [shard(split)] for split in SPLITS}, "text": text}},
        "prepared": {"sources": "x"},
    }  # fmt: skip
    (folder / "corpus.json").write_text(json.dumps(body))


def _index(lengths: list[int]) -> bytes:
    """Return a Megatron index of uint16 documents."""
    import struct

    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * 2
    return b"".join(
        [
            b"MMIDIDX\0\0", struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1),
            np.asarray(lengths, "<i4").tobytes(), offsets.astype("<i8").tobytes(),
            np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
        ]
    )  # fmt: skip


@cache
def _corpus_json() -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        _write_corpus(Path(folder))
        return (Path(folder) / "corpus.json").read_bytes()


@cache
def _events() -> bytes:
    from tempfile import TemporaryDirectory

    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        for step in range(3):
            value = Summary.Value(tag="eval/loss/web", simple_value=2.0 - step / 10)
            writer.add_event(Event(step=step, summary=Summary(value=[value])))
        writer.close()
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two", None], "n": [1, 2, 3]}), sink)
    return sink.getvalue()


def _arrow(compression: str | None = None, *, stream: bool = False) -> bytes:
    import pyarrow as pa

    sink = io.BytesIO()
    text = pa.array(["one", "two", None])
    table = pa.table({"text": text, "n": [1, 2, 3], "by": text.dictionary_encode()})
    new, options = pa.ipc.new_stream if stream else pa.ipc.new_file, pa.ipc.IpcWriteOptions(compression=compression)
    with new(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


@contextmanager
def _sampler_of(path: Path) -> Iterator[dp.DomainSampler]:
    corpus = dp.Corpus.open(path.parent)
    yield dp.DomainSampler(corpus, seq_len=8, batch_size=2, weights={"web": 1.0}, seed=1)


def _load_state(path: Path) -> None:
    with _sampler_of(path) as sampler:
        sampler.load_state_dict(json.loads(path.read_bytes()))


@cache
def _state() -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        _write_corpus(Path(folder))
        with _sampler_of(Path(folder) / "x") as sampler:
            sampler.skip(3)
            return json.dumps(sampler.state_dict()).encode()


def _copy(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(GOLDEN / "mds" / name, folder, dirs_exist_ok=True)


def all_readers() -> dict[str, Reader]:
    """Return the readers by name."""
    recipes = _shipped("drpruning", "recipes")
    prepare_recipes = [
        *_shipped("drpruning.prepare", "recipes"),
        b"domains: {web: {paths: [a.txt], where: {lang: en}}}",
    ]
    methods, lists = _shipped("drpruning.comparison", "methods"), _shipped("drpruning.evaluation", "lists")
    schedule = [b"unit: step\nstages:\n  continue:\n    - {at: 0, weights: {web: 0.5, code: 0.5}}\n"]
    table = [b"step,tokens,lr,web,code\n1,10,0.1,2.5,2.1\n2,20,0.1,2.4,2.0\n3,30,,2.3,\n"]
    jsonl = [b'{"step": 1, "losses": {"web": 2.5, "code": 2.1}}\n{"step": 2, "eval/loss/web": 2.4}\n']
    sizes = [b'{"models": [{"model": "a", "parameters": 10, "domains": {"web": {"loss": 2, "standard_error": 0.1}}}]}']
    numbers = [b'{"web": 0.8, "code": 0.2}']
    index = (GOLDEN / "mds" / "bytes" / "index.json").read_bytes()
    zstd_index = (GOLDEN / "mds" / "bytes-zstd" / "index.json").read_bytes()
    text = [b'{"text": "a", "n": [1, {"a": 2}]}\n{"text": "b\\ud83d\\ude00"}\n']

    def losses(path: Path) -> None:
        read_losses(path, rates=True)

    def rates(path: Path) -> None:
        read_learning_rates(path, counts_tokens=False, tokens_per_step=None)

    def shard(name: str, file: str) -> Reader:
        return Reader(name, file, _read_shard, [(GOLDEN / "mds" / name / file).read_bytes()], [], _copy(name))

    readers = [
        Reader("recipe", "r.yaml", _read_recipe, recipes, _as_json(recipes)),
        Reader(
            "prepare recipe", "p.yaml", lambda path: read_recipe(str(path)), prepare_recipes, _as_json(prepare_recipes)
        ),
        Reader("methods", "m.yaml", lambda path: read_methods(str(path)), methods, _as_json(methods)),
        Reader("task list", "l.yaml", lambda path: read_list(str(path)), lists, _as_json(lists)),
        Reader("schedule", "s.yaml", read_schedule, schedule, _as_json(schedule)),
        Reader("numbers", "n.yaml", lambda path: parse_numbers_by_domain("--ratio", str(path)), numbers, numbers),
        Reader("corpus.json", "corpus.json", _read_corpus, [_corpus_json()], [_corpus_json()], _write_corpus),
        Reader("index.json", "index.json", _read_index, [index], [index], _copy("bytes")),
        Reader("index.json, zstd", "index.json", _read_index, [zstd_index], [zstd_index], _copy("bytes-zstd")),
        Reader("sampler state", "state.json", _load_state, [], [_state()], _write_corpus),
        Reader("CSV", "t.csv", losses, table),
        Reader("JSON lines", "t.jsonl", losses, jsonl, [jsonl[0].splitlines()[0]]),
        Reader("TensorBoard", "a.tfevents.1", losses, [_events()]),
        Reader("sizes", "t.json", read_size_losses, sizes, sizes),
        Reader("learning rates", "t.csv", rates, table),
        Reader("Megatron index", "train.idx", _read_tokens, [_index([32, 32])], [], _write_corpus),
        shard("shaped-ragged", "shard.00000.mds"),
        shard("columns-ragged-zstd", "shard.00000.mds.zstd"),
        Reader("text, JSON lines", "a.jsonl", _read_documents, text),
        Reader("text, JSON", "a.json", _read_documents, [b"[" + text[0].replace(b"\n", b",")[:-1] + b"]"]),
        Reader("text, gzip", "a.jsonl.gz", _read_documents, [gzip.compress(text[0])]),
        Reader("text, Parquet", "a.parquet", _read_documents, [_parquet()]),
        Reader("text, Arrow", "a.arrow", _read_documents, [_arrow()]),
        Reader(
            "text, compressed Arrow",
            "a.arrow",
            _read_documents,
            [_arrow("zstd"), _arrow("lz4"), _arrow("zstd", stream=True), _arrow("lz4", stream=True)],
        ),
    ]
    return {reader.name: reader for reader in readers}
