"""Token files for tests, written byte by byte from the format specifications, independent of the package's writers."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

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


@pytest.fixture
def write_shard() -> WriteShard:
    """Return a function that writes documents (lists of ids) to PATH.bin and PATH.idx and returns the `.bin`."""

    def write(path: Path, documents: list[list[int]], dtype: str = "uint16") -> Path:
        tokens = np.concatenate([np.asarray(document, dtype) for document in documents])
        tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(path.with_suffix(".bin"))
        index = megatron_index([len(document) for document in documents], dtype)
        path.with_suffix(".idx").write_bytes(index)
        return path.with_suffix(".bin")

    return write


@pytest.fixture
def make_corpus(tmp_path: Path, write_shard: WriteShard) -> MakeCorpus:
    """Return a function that writes a corpus folder. A token is its address: 10,000 * domain index + position."""

    def describe(bin_path: Path, tokens: int) -> dict[str, object]:
        return {
            "file": bin_path.name,
            "tokens": tokens,
            "documents": 1,
            "bytes": bin_path.stat().st_size,
            "sha256": hashlib.sha256(bin_path.read_bytes()).hexdigest(),
            "index_sha256": hashlib.sha256(bin_path.with_suffix(".idx").read_bytes()).hexdigest(),
        }

    def make(train: dict[str, list[int]], held_out: int = 100, folder: str = "corpus") -> Path:
        root = tmp_path / folder
        root.mkdir()
        (root / "tokenizer.json").write_bytes(b"{}")
        domains: dict[str, dict[str, list[dict[str, object]]]] = {}
        for number, (name, lengths) in enumerate(train.items()):
            domains[name] = {"train": [], "eval": []}
            place = 10_000 * number
            for split, parts in (("train", lengths), ("eval", [held_out] if held_out else [])):
                for shard, tokens in enumerate(parts):
                    ids = list(range(place, place + tokens))
                    bin_path = write_shard(root / f"{name}-{split}-{shard:05}", [ids], "int32")
                    domains[name][split].append(describe(bin_path, tokens))
                    place += tokens
        body = {
            "format": "drpruning-corpus",
            "version": 1,
            "tokenizer": {
                "name": "test",
                "file": "tokenizer.json",
                "vocab_size": 10_000 * len(train),
                "eos_id": 0,
                "sha256": hashlib.sha256(b"{}").hexdigest(),
            },
            "domains": domains,
        }
        (root / "corpus.json").write_text(json.dumps(body))
        return root

    return make
