"""Megatron's indexed dataset, ``PREFIX.bin`` and ``PREFIX.idx``: the shards of a corpus.

Layout of the index, little-endian, as Megatron-LM (``megatron/core/datasets/indexed_dataset.py``) reads it:

    offset     type     content
    0          9 bytes  "MMIDIDX" and two zero bytes
    9          u64      version, 1
    17         u8       dtype code: 4 is int32, 8 is uint16
    18         u64      S, number of sequences
    26         u64      D, documents + 1
    34         i32[S]   tokens of each sequence
    34 + 4S    i64[S]   byte offset of each sequence in the .bin
    34 + 12S   i64[D]   first sequence of each document, then S

Here every document is one sequence. The ``.bin`` holds the tokens back to back, without a header.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
CODES: dict[str, int] = {"int32": 4, "uint16": 8}
LARGEST_UINT16_VOCABULARY = 65500
"""Megatron's bound: below it tokens are uint16, from it on int32 (``DType.optimal_dtype``)."""


def dtype_for(vocab_size: int) -> str:
    """Name of the token dtype Megatron uses for a vocabulary.

    >>> dtype_for(32000), dtype_for(128256)
    ('uint16', 'int32')
    """
    return "uint16" if vocab_size < LARGEST_UINT16_VOCABULARY else "int32"


class MegatronWriter:
    """Writes one shard, document by document; the two files appear under their names on leaving the ``with`` block.

    Args:
        prefix: Path without ``.bin`` and ``.idx``.
        dtype: ``"uint16"`` or ``"int32"``.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.code = CODES[dtype]
        self.lengths: list[int] = []
        self.sha256: dict[str, str] = {}
        self._hash = hashlib.sha256()
        self._bin = _aside(self.path(".bin")).open("wb")

    def path(self, suffix: str) -> Path:
        """The file of this shard that ends in ``suffix``."""
        return self.prefix.with_name(self.prefix.name + suffix)

    def add(self, tokens: npt.NDArray[np.integer]) -> None:
        """Appends a document, its end token included; ids outside the dtype's range are the caller's to prevent."""
        data = tokens.astype(self.dtype, copy=False).tobytes()
        self._hash.update(data)
        self._bin.write(data)
        self.lengths.append(len(tokens))

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return sum(self.lengths)

    def close(self) -> None:
        """Writes the index, then gives both files their names; :attr:`sha256` holds their checksums by suffix."""
        self._bin.close()
        index = index_bytes(self.lengths, self.dtype.itemsize, self.code)
        _aside(self.path(".idx")).write_bytes(index)
        for suffix in (".bin", ".idx"):
            _aside(self.path(suffix)).rename(self.path(suffix))
        self.sha256 = {".bin": self._hash.hexdigest(), ".idx": hashlib.sha256(index).hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._bin.close()
            _aside(self.path(".bin")).unlink(missing_ok=True)


def index_bytes(lengths: list[int], itemsize: int, code: int) -> bytes:
    """The ``.idx`` for documents of these lengths in tokens, one sequence each."""
    count = len(lengths)
    sizes = np.array(lengths, dtype="<i4")
    ends = np.cumsum(sizes, dtype=np.int64) * itemsize
    offsets = np.concatenate([np.zeros(1, np.int64), ends])[:count].astype("<i8")
    documents = np.arange(count + 1, dtype="<i8")
    header = MAGIC + struct.pack("<QBQQ", VERSION, code, count, count + 1)
    return header + sizes.tobytes() + offsets.tobytes() + documents.tobytes()


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
