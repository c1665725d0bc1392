"""Shard writer: copies the documents of one split from tokenized blocks in their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from drpruning.corpus.corpus import GROUPS
from drpruning.corpus.manifest import SPLITS, Shard, Split
from drpruning.errors import CorpusError
from drpruning.files import write_bytes
from drpruning.prepare.dedup.exact import DocumentBitmap
from drpruning.prepare.output.holdout import assign_splits
from drpruning.prepare.output.megatron import MegatronWriter
from drpruning.prepare.tokenize.tokenized_blocks import TokenizedBlock

COPIED_TOKENS = 1 << 22
"""Tokens in memory at once."""

DIGESTS = ".documents"
"""Suffix of the file with the digests of a shard's documents, 16 bytes each, to find duplicates in later additions."""


@dataclass(frozen=True)
class NumberedBlock:
    """A tokenized block and the number of its first document in the whole corpus."""

    block: TokenizedBlock
    first: int


@dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Args:
        prefix: Path without suffix.
        blocks: Tokenized blocks to copy from, in order.
        fraction: Groups with a hash position below it are held out.
        split: The split.
        dropped: File with the bitmap of all documents of the corpus that are not kept.
        dtype: Type of the tokens.
    """

    prefix: Path
    blocks: tuple[NumberedBlock, ...]
    fraction: float
    split: Split
    dropped: Path
    dtype: str


@dataclass(frozen=True)
class WrittenShard:
    """A shard and the checksum of its digests."""

    shard: Shard
    digests_sha256: str


def write_shard(task: ShardTask, folder: Path) -> WrittenShard:
    """Write a shard, its index, its digests and, if it is held out, the groups of its documents.

    Args:
        task: The shard.
        folder: Folder of the tokenized blocks.
    """
    bits = np.memmap(task.dropped, np.uint8, "r") if task.dropped.stat().st_size else np.zeros(0, np.uint8)
    dropped = DocumentBitmap(bits)
    shard_digests, shard_groups = bytearray(), bytearray()
    with MegatronWriter(task.prefix, task.dtype) as writer:
        for numbered in task.blocks:
            block = numbered.block
            groups = block.groups(folder)
            selected = ~dropped.read(numbered.first, block.documents)
            selected &= assign_splits(groups, task.fraction) == SPLITS.index(task.split)
            shard_digests += block.digests(folder)[selected].astype(">u8").tobytes()
            shard_groups += groups[selected, 0].astype("<u8").tobytes()
            with block.open(folder) as file:
                _copy_documents(file, block, block.lengths(folder), selected, writer)
    path = task.prefix.with_name(task.prefix.name + DIGESTS)
    write_bytes(path, bytes(shard_digests))
    if task.split != "train":
        write_bytes(path.with_suffix(GROUPS), bytes(shard_groups))
    shard = Shard(
        path=writer.path(".bin"),
        dtype=writer.dtype.name,
        tokens=writer.tokens,
        documents=writer.documents,
        bytes=writer.tokens * writer.dtype.itemsize,
        sha256=writer.sha256[".bin"],
        index_sha256=writer.sha256[".idx"],
        groups_sha256=None if task.split == "train" else hashlib.sha256(shard_groups).hexdigest(),
    )
    return WrittenShard(shard, hashlib.sha256(shard_digests).hexdigest())


def _copy_documents(
    file: BinaryIO,
    block: TokenizedBlock,
    lengths: npt.NDArray[np.int64],
    selected: npt.NDArray[np.bool_],
    writer: MegatronWriter,
) -> None:
    """Copy the tokens of the selected documents; ``file`` is at the block's first token."""
    for low, high in _group_documents(lengths, COPIED_TOKENS):
        remaining = int(lengths[low:high].sum())
        if high - low > 1:
            tokens = _read_tokens(file, block, remaining)
            writer.write(tokens[np.repeat(selected[low:high], lengths[low:high])])
        elif not selected[low]:
            file.seek(remaining * block.itemsize, 1)
        else:
            while remaining:
                count = min(remaining, COPIED_TOKENS)
                writer.write(_read_tokens(file, block, count))
                remaining -= count
        writer.end_documents(lengths[low:high][selected[low:high]])


def _read_tokens(file: BinaryIO, block: TokenizedBlock, count: int) -> npt.NDArray[np.integer]:
    data = file.read(count * block.itemsize)
    if len(data) != count * block.itemsize:
        raise CorpusError(f"tokenized block {block.name}: expected {count} more tokens, found the end of the file")
    return np.frombuffer(data, np.dtype(block.dtype).newbyteorder("<"))


def _group_documents(lengths: npt.NDArray[np.int64], max_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of documents with at most ``max_tokens`` tokens each, or of one document."""
    ends = np.cumsum(lengths)
    low, before = 0, 0
    while low < len(lengths):
        high = max(int(np.searchsorted(ends, before + max_tokens, side="right")), low + 1)
        yield low, high
        low, before = high, int(ends[high - 1])
