"""Writer of Megatron's indexed dataset, ``PREFIX.bin`` and ``PREFIX.idx``: the shards of a corpus.

Layout of the index, little-endian, from Megatron-LM (``megatron/core/datasets/indexed_dataset.py``):

    offset     type     content
    0          9 bytes  "MMIDIDX" and two zero bytes
    9          u64      version, 1
    17         u8       dtype code: 4 is int32, 8 is uint16
    18         u64      S, number of sequences
    26         u64      D, documents + 1
    34         i32[S]   tokens of each sequence
    34 + 4S    i64[S]   byte offset of each sequence in the .bin
    34 + 12S   i64[D]   first sequence of each document, then S

Every document is one sequence here, unless it has 2^31 tokens or more. The ``.bin`` holds the concatenated tokens
without a header.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from drpruning.files import create_file

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
CODES: dict[str, int] = {"int32": 4, "uint16": 8}
LONGEST_SEQUENCE = 2**31 - 1
"""Lengths are int32; a longer document becomes several sequences, which the format allows."""

LARGEST_UINT16_VOCABULARY = 65500
"""Megatron uses uint16 below this vocabulary size, and int32 otherwise (``DType.optimal_dtype``)."""


def dtype_for(vocab_size: int) -> str:
    """Return the token dtype that Megatron uses for a vocabulary.

    >>> dtype_for(32000), dtype_for(128256)
    ('uint16', 'int32')
    """
    return "uint16" if vocab_size < LARGEST_UINT16_VOCABULARY else "int32"


class MegatronWriter:
    """Writes one shard, document by document; leaving the ``with`` block renames the two files into place.

    Args:
        prefix: Path without ``.bin`` and ``.idx``.
        dtype: ``"uint16"`` or ``"int32"``.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.code = CODES[dtype]
        self.lengths = array("q")
        self.tokens = 0
        self.sha256: dict[str, str] = {}
        self._hash = hashlib.sha256()
        self._bin = create_file(_partial_path(self.path(".bin")))

    def path(self, suffix: str) -> Path:
        """Return the path of the shard with ``suffix``."""
        return self.prefix.with_name(self.prefix.name + suffix)

    def add(self, tokens: npt.NDArray[np.integer]) -> None:
        """Append a document, its end token included. The caller ensures that ids fit the dtype."""
        self.write(tokens)
        self.lengths.append(len(tokens))

    def write(self, tokens: npt.NDArray[np.integer]) -> None:
        """Append tokens of documents or of a part of one; :meth:`end_documents` then sets document boundaries."""
        data = tokens.astype(self.dtype, copy=False).tobytes()
        self._hash.update(data)
        self._bin.write(data)
        self.tokens += len(tokens)

    def end_documents(self, lengths: npt.NDArray[np.int64]) -> None:
        """End the next documents, which have these lengths in tokens."""
        self.lengths.frombytes(lengths.astype(np.int64, copy=False).tobytes())

    @property
    def documents(self) -> int:
        """Number of complete documents."""
        return len(self.lengths)

    def close(self) -> None:
        """Write the index, rename both files into place, and set :attr:`sha256`, their checksums by suffix."""
        self._bin.close()
        index = index_bytes(np.frombuffer(self.lengths, np.int64), self.dtype.itemsize, self.code)
        with create_file(_partial_path(self.path(".idx"))) as file:
            file.write(index)
        for suffix in (".bin", ".idx"):
            _partial_path(self.path(suffix)).rename(self.path(suffix))
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
            _partial_path(self.path(".bin")).unlink(missing_ok=True)


def index_bytes(lengths: npt.ArrayLike, itemsize: int, code: int, longest: int = LONGEST_SEQUENCE) -> bytes:
    """Return the ``.idx`` of documents: one sequence each, or several for a document that is too long.

    Args:
        lengths: Tokens of each document.
        itemsize: Bytes of a token.
        code: Code of the dtype.
        longest: Most tokens of a sequence.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    parts = np.maximum((tokens + longest - 1) // longest, 1)  # sequences of each document
    documents = np.concatenate([np.zeros(1, np.int64), np.cumsum(parts)])
    sizes = np.full(int(documents[-1]), longest, np.int64)
    if len(tokens):
        sizes[documents[1:] - 1] = tokens - (parts - 1) * longest
    ends = np.cumsum(sizes) * itemsize
    offsets = np.concatenate([np.zeros(1, np.int64), ends])[: len(sizes)]
    header = MAGIC + struct.pack("<QBQQ", VERSION, code, len(sizes), len(documents))
    return header + b"".join(
        [sizes.astype("<i4").tobytes(), offsets.astype("<i8").tobytes(), documents.astype("<i8").tobytes()]
    )


def _partial_path(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
