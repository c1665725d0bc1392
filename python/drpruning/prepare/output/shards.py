"""Writing one shard: the documents of one side, copied from pieces in their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from drpruning.corpus_json import Shard
from drpruning.errors import CorpusError
from drpruning.files import write_bytes
from drpruning.prepare.duplicates import Marks
from drpruning.prepare.megatron import MegatronWriter
from drpruning.prepare.pieces import Piece
from drpruning.prepare.split import positions_of

COPIED_TOKENS = 1 << 22
"""Tokens in memory at once."""

DIGESTS = ".documents"
"""Suffix of the file with the digests of a shard's documents, 16 bytes each, by which later additions are compared."""


@dataclass(frozen=True)
class Numbered:
    """A piece and the number of its first document in the whole corpus."""

    piece: Piece
    first: int


@dataclass(frozen=True)
class ShardJob:
    """What to write.

    Args:
        prefix: Path without suffix.
        pieces: Whose documents, in order.
        share: Documents whose position lies below it are held out.
        held_out: The side: held-out documents or the others.
        dropped: File with a bit for each document of the corpus that is not kept.
        dtype: Of the tokens.
    """

    prefix: Path
    pieces: tuple[Numbered, ...]
    share: float
    held_out: bool
    dropped: Path
    dtype: str


@dataclass(frozen=True)
class WrittenShard:
    """A shard and the checksum of its digests."""

    shard: Shard
    digests_sha256: str


def write_shard(job: ShardJob, folder: Path) -> WrittenShard:
    """Writes the shard, its index and its digests.

    Args:
        job: What to write.
        folder: Of the pieces.
    """
    marks = Marks(np.memmap(job.dropped, np.uint8, "r") if job.dropped.stat().st_size else np.zeros(0, np.uint8))
    digests = bytearray()
    with MegatronWriter(job.prefix, job.dtype) as writer:
        for numbered in job.pieces:
            piece = numbered.piece
            found = piece.digests(folder)
            taken = ~marks.of(numbered.first, piece.documents)
            taken &= (positions_of(found) < job.share) == job.held_out
            digests += found[taken].astype(">u8").tobytes()
            with piece.open(folder) as file:
                _copy(file, piece, piece.lengths(folder), taken, writer)
    path = job.prefix.with_name(job.prefix.name + DIGESTS)
    write_bytes(path, bytes(digests))
    shard = Shard(
        path=writer.path(".bin"),
        dtype=writer.dtype.name,
        tokens=writer.tokens,
        documents=writer.documents,
        bytes=writer.tokens * writer.dtype.itemsize,
        sha256=writer.sha256[".bin"],
        index_sha256=writer.sha256[".idx"],
    )
    return WrittenShard(shard, hashlib.sha256(digests).hexdigest())


def _copy(
    file: BinaryIO, piece: Piece, lengths: npt.NDArray[np.int64], taken: npt.NDArray[np.bool_], writer: MegatronWriter
) -> None:
    """Copies the tokens of the documents taken; ``file`` is at the piece's first token."""
    for low, high in _groups(lengths, COPIED_TOKENS):
        left = int(lengths[low:high].sum())
        if high - low > 1:
            tokens = _read(file, piece, left)
            writer.write(tokens[np.repeat(taken[low:high], lengths[low:high])])
        elif not taken[low]:
            file.seek(left * piece.itemsize, 1)
        else:
            while left:
                part = min(left, COPIED_TOKENS)
                writer.write(_read(file, piece, part))
                left -= part
        writer.end_documents(lengths[low:high][taken[low:high]])


def _read(file: BinaryIO, piece: Piece, count: int) -> npt.NDArray[np.integer]:
    data = file.read(count * piece.itemsize)
    if len(data) != count * piece.itemsize:
        raise CorpusError(f"piece {piece.name}: expected {count} more tokens, found the end of the file")
    return np.frombuffer(data, np.dtype(piece.dtype).newbyteorder("<"))


def _groups(lengths: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Runs of documents with at most ``most`` tokens each, or of one document."""
    ends = np.cumsum(lengths)
    low, before = 0, 0
    while low < len(lengths):
        high = max(int(np.searchsorted(ends, before + most, side="right")), low + 1)
        yield low, high
        low, before = high, int(ends[high - 1])
