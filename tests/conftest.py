"""Token files for tests, written byte by byte from the format specifications, independent of the package's writers."""

import gc
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

# The models are small: more threads cost more time than they save, above all with tests in several processes
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Tests must pass on a busy machine
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

DTYPE_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


WriteShard = Callable[..., Path]
MakeCorpus = Callable[..., Path]


def megatron_index(lengths: list[int], dtype: str) -> bytes:
    """Return an `.idx` for documents of the given lengths, each one sequence."""
    size = np.dtype(dtype).itemsize
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * size if lengths else []
    return b"".join(
        [
            b"MMIDIDX\0\0",
            struct.pack("<QBQQ", 1, DTYPE_CODES[dtype], len(lengths), len(lengths) + 1),
            np.asarray(lengths, "<i4").tobytes(),
            np.asarray(offsets, "<i8").tobytes(),
            np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
        ]
    )


def write_tokens(path: Path, documents: list[list[int]], dtype: str = "uint16") -> Path:
    """Write documents (lists of ids) to PATH.bin and PATH.idx; return the `.bin`."""
    tokens = np.concatenate([np.asarray(document, dtype) for document in documents])
    tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(path.with_suffix(".bin"))
    index = megatron_index([len(document) for document in documents], dtype)
    path.with_suffix(".idx").write_bytes(index)
    return path.with_suffix(".bin")


def write_described(path: Path, ids: list[int]) -> dict[str, object]:
    """Write a shard with one document, as int32; return its entry in `corpus.json`."""
    bin_path = write_tokens(path, [ids], "int32")
    return {
        "file": bin_path.name,
        "tokens": len(ids),
        "documents": 1,
        "bytes": bin_path.stat().st_size,
        "sha256": hashlib.sha256(bin_path.read_bytes()).hexdigest(),
        "index_sha256": hashlib.sha256(bin_path.with_suffix(".idx").read_bytes()).hexdigest(),
    }


def write_manifest(root: Path, domains: Mapping[str, object], vocab_size: int) -> None:
    """Write `corpus.json`, and a `tokenizer.json` without content."""
    (root / "tokenizer.json").write_bytes(b"{}")
    body = {
        "format": "drpruning-corpus",
        "version": 2,
        "tokenizer": {
            "name": "test",
            "file": "tokenizer.json",
            "vocab_size": vocab_size,
            "eos_id": 0,
            "sha256": hashlib.sha256(b"{}").hexdigest(),
        },
        "domains": domains,
    }
    (root / "corpus.json").write_text(json.dumps(body))


def pytest_collection_finish() -> None:
    """Exempt the objects of imported modules from garbage collection, which every phase of a training run starts."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Undo this: libraries report objects that the interpreter does not collect at its end."""
    gc.unfreeze()


@pytest.fixture
def write_shard() -> WriteShard:
    """Return :func:`write_tokens`."""
    return write_tokens


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """Return a function that writes a corpus folder. A token is its address: 10,000 * domain index + position."""

    def make(train: dict[str, list[int]], held_out: int = 100, folder: str = "corpus", test: int = 0) -> Path:
        root = tmp_path / folder
        root.mkdir()
        domains: dict[str, dict[str, list[dict[str, object]]]] = {}
        for number, (name, lengths) in enumerate(train.items()):
            place = 10_000 * number
            splits = {"train": lengths, "validation": [held_out] if held_out else []} | (
                {"test": [test]} if test else {}
            )
            domains[name] = {split: [] for split in splits}
            for split, parts in splits.items():
                for shard, tokens in enumerate(parts):
                    path = root / f"{name}-{split}-{shard:05}"
                    domains[name][split].append(write_described(path, list(range(place, place + tokens))))
                    place += tokens
        write_manifest(root, domains, 10_000 * len(train))
        return root

    return make
