"""Token files, byte by byte."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning import _native
from drpruning.prepare.output.megatron import MegatronWriter, dtype_for, index_bytes


def test_the_bytes_are_those_of_the_table(tmp_path: Path) -> None:
    with MegatronWriter(tmp_path / "a", "uint16") as writer:
        writer.add(np.array([1, 2, 0]))
        writer.add(np.array([513, 0]))
    assert (tmp_path / "a.bin").read_bytes() == bytes([1, 0, 2, 0, 0, 0, 1, 2, 0, 0])
    assert (tmp_path / "a.idx").read_bytes() == (
        b"MMIDIDX\0\0"
        + struct.pack("<Q", 1)
        + bytes([8])
        + struct.pack("<QQ", 2, 3)
        + struct.pack("<ii", 3, 2)
        + struct.pack("<qq", 0, 6)
        + struct.pack("<qqq", 0, 1, 2)
    )
    assert (writer.tokens, len(writer.lengths)) == (5, 2)
    for suffix, checksum in writer.sha256.items():
        assert hashlib.sha256((tmp_path / f"a{suffix}").read_bytes()).hexdigest() == checksum


def test_int32_has_code_4_and_four_bytes(tmp_path: Path) -> None:
    with MegatronWriter(tmp_path / "a", "int32") as writer:
        writer.add(np.array([70000, 0]))
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<ii", 70000, 0)
    assert (tmp_path / "a.idx").read_bytes()[17] == 4


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, "uint16"), (65499, "uint16"), (65500, "int32"), (151_936, "int32")]
)
def test_the_dtype_follows_megatrons_bound(vocab_size: int, dtype: str) -> None:
    assert dtype_for(vocab_size) == dtype


def test_no_document_is_a_valid_shard(tmp_path: Path) -> None:
    with MegatronWriter(tmp_path / "a", "uint16"):
        pass
    assert _native.verify_index(tmp_path / "a.bin") == ("uint16", 0, 0)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AttributeError), MegatronWriter(tmp_path / "a", "uint16") as writer:
        writer.add(None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.integers(1, 50), max_size=30), st.sampled_from(["uint16", "int32"]))
def test_the_reader_in_rust_agrees(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], dtype: str) -> None:
    folder = tmp_path_factory.mktemp("shard")
    with MegatronWriter(folder / "a", dtype) as writer:
        for length in lengths:
            writer.add(np.arange(length))
    assert _native.verify_index(folder / "a.bin") == (dtype, sum(lengths), len(lengths))


def test_offsets_do_not_overflow_in_large_shards() -> None:
    index = index_bytes([2**31 - 1] * 3, 4, 4)
    assert np.frombuffer(index[34 + 12 : 34 + 36], "<i8").tolist() == [0, 4 * (2**31 - 1), 8 * (2**31 - 1)]
