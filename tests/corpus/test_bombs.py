"""MDS shards that promise or unfold to far more than they hold: an error or the right result, in bounded memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import zstandard

from tests.limited import MARGIN, run_limited

SIZE = 160 << 20
"""Bytes to which each shard unfolds: more than twice the margin."""
IMPORTS = """
import tempfile, numpy as np, drpruning as dp
from drpruning.errors import CorpusError
with tempfile.TemporaryDirectory() as folder:
    np.arange(100, dtype="uint16").tofile(folder + "/valid.bin")
    dp.Corpus({"web": folder}, dtype="uint16").read_rows("web", [0], 8)
"""
OPEN = """
try:
    corpus = dp.Corpus({"web": sys.argv[1]}, dtype="uint16")
    corpus.verify()
    print(corpus.tokens()["web"])
except CorpusError as error:
    print(error)
"""


def write_shard(folder: Path, content: bytes, *, samples: int, size: int | None = None) -> None:
    """Write a shard of one column of bytes, compressed, with its index."""
    compressed = zstandard.compress(content, 3)
    (folder / "shard.00000.mds.zstd").write_bytes(compressed)
    entry = {
        "format": "mds",
        "version": 2,
        "column_names": ["tokens"],
        "column_encodings": ["bytes"],
        "column_sizes": [None],
        "compression": "zstd",
        "samples": samples,
        "raw_data": {"basename": "shard.00000.mds", "bytes": size or len(content), "hashes": {}},
        "zip_data": {"basename": "shard.00000.mds.zstd", "bytes": len(compressed), "hashes": {}},
    }
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [entry]}))


def shards() -> dict[str, tuple[bytes, int, str]]:
    """Return content, samples and the expected output of each bomb."""
    many = SIZE // 4 - 2
    equal = struct.pack("<I", many) + struct.pack("<I", SIZE) * (many + 1)
    text = struct.pack("<III", 1, SIZE - 4, SIZE) + bytes(SIZE - 12)
    sample = struct.pack("<IIII", 1, 12, SIZE, SIZE - 16) + bytes(SIZE - 16)
    return {
        "offsets": (equal, many, "expected at least 4 bytes in sample 0, found 0"),
        "text": (text, 1, "0"),
        "one sample": (sample, 1, str((SIZE - 16) // 2)),
    }


@pytest.mark.parametrize("name", shards())
def test_a_compressed_shard_is_read_in_bounded_memory(tmp_path: Path, name: str) -> None:
    content, samples, expected = shards()[name]
    write_shard(tmp_path, content, samples=samples)
    assert expected in run_limited(IMPORTS, OPEN, tmp_path, memory=MARGIN)


def test_a_window_of_any_size_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    content = struct.pack("<IIII", 1, 12, 20, 4) + bytes(4)
    write_shard(tmp_path, content, samples=1)
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 31 << 3) + (len(content) << 3 | 1).to_bytes(3, "little") + content
    shard = tmp_path / "shard.00000.mds.zstd"
    shard.write_bytes(frame)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0]["zip_data"]["bytes"] = len(frame)
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert "window_size is too big" in run_limited(IMPORTS, OPEN, tmp_path, memory=MARGIN)
