"""Layout of the shards: the documents to drop, the holdout of each domain, and the tokenized blocks of each shard.

The layout is a function of the tokenized blocks in their order, so any number of workers on any number of machines
writes the same shards. It reads digests, lengths and sizes, no tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drpruning.errors import CorpusError
from drpruning.files import write_bytes
from drpruning.prepare.dedup.exact import Digests, DocumentBitmap, find_duplicates
from drpruning.prepare.output.holdout import Holdout, hash_positions
from drpruning.prepare.output.shards import NumberedBlock, ShardTask
from drpruning.prepare.tokenize.tokenized_blocks import DIGEST_SIZE, DomainBlocks

SHARD_TOKENS = 1 << 30
"""A shard ends with the tokenized block that reaches this: 2 or 4 GiB, which copy and hash in seconds."""

SHARD_DOCUMENTS = 1 << 23
"""A shard also ends with the block that reaches this many documents, since their index must fit in memory."""

DROPPED = "dropped.bits"


@dataclass(frozen=True, kw_only=True)
class ExistingDomain:
    """A domain of the corpus to append to.

    Args:
        fraction: Its holdout fraction.
        train: Number of its training shards.
        eval: Number of its held-out shards.
    """

    fraction: float
    train: int
    eval: int


@dataclass(frozen=True, kw_only=True)
class DomainLayout:
    """The shards of a domain to write.

    Args:
        train: Training shards.
        eval: Held-out shards.
        fraction: Documents with a hash position below it are held out.
        text_bytes: UTF-8 bytes of the documents kept.
        left_out: Documents dropped or repaired, by reason.
        unknown_share: Share of unknown tokens in all tokens made.
        byte_share: Share of tokens that are a part of a character.
    """

    train: list[ShardTask]
    eval: list[ShardTask]
    fraction: float
    text_bytes: int
    left_out: dict[str, int]
    unknown_share: float
    byte_share: float


@dataclass
class _Counts:
    """Documents and tokens of a tokenized block on one side."""

    documents: int
    tokens: int


def compute_layout(
    domains: Mapping[str, DomainBlocks],
    holdout: Holdout,
    block_folder: Path,
    work: Path,
    shard_folder: Path,
    *,
    existing: Mapping[str, ExistingDomain] | None = None,
    existing_digests: Sequence[Path] = (),
    near_duplicates: DocumentBitmap | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, DomainLayout]:
    """Compute the shards of all domains, and write the bitmap of dropped documents into ``work``.

    A text is kept once in the whole corpus, in its first domain, so that no document is trained on in one domain and
    held out in another.

    Args:
        domains: Tokenized blocks by domain.
        holdout: Size of the holdout.
        block_folder: Folder of the tokenized blocks.
        work: Folder for the bitmap and for temporary files.
        shard_folder: Folder of the shards.
        existing: Domains that have shards already.
        existing_digests: Files with the digests of the documents in the corpus.
        near_duplicates: Documents to drop because they resemble others.
        shard_tokens: Tokens of a shard.

    Raises:
        CorpusError: A domain has no text, or too few documents for training and held-out shards.
    """
    before = sum(path.stat().st_size for path in existing_digests) // DIGEST_SIZE
    counts = [block.documents for blocks in domains.values() for block in blocks.blocks]
    digests = chain(
        (_read_digests(path) for path in existing_digests),
        (block.digests(block_folder) for blocks in domains.values() for block in blocks.blocks),
    )
    all_repeats = find_duplicates(digests, before + sum(counts), work)
    repeats = DocumentBitmap.zeros(sum(counts))
    for first, count in _ranges(counts):
        repeats.set(first + np.flatnonzero(all_repeats.read(before + first, count)))
    dropped = repeats if near_duplicates is None else DocumentBitmap(repeats.bits | near_duplicates.bits)
    write_bytes(work / DROPPED, dropped.bits.tobytes())

    layouts: dict[str, DomainLayout] = {}
    first = 0
    for name, blocks in domains.items():
        numbered = []
        for block in blocks.blocks:
            numbered.append(NumberedBlock(block, first))
            first += block.documents
        old = (existing or {}).get(name)
        builder = _LayoutBuilder(name, numbered, blocks, old, block_folder, repeats, dropped)
        layouts[name] = builder.build(holdout, shard_folder, work / DROPPED, shard_tokens)
    return layouts


@dataclass
class _LayoutBuilder:
    """Computes the layout of one domain."""

    name: str
    numbered: list[NumberedBlock]
    blocks: DomainBlocks
    existing: ExistingDomain | None
    block_folder: Path
    repeats: DocumentBitmap
    dropped: DocumentBitmap

    def build(self, holdout: Holdout, shard_folder: Path, dropped: Path, shard_tokens: int) -> DomainLayout:
        candidates = holdout.candidates() if self.existing is None else [self.existing.fraction]
        left_out = Counter(self.blocks.left_out)
        text_bytes = 0
        kept_counts: list[_Counts] = []  # by block
        held_out_counts: list[list[_Counts]] = []  # by block and candidate
        for numbered in self.numbered:
            block = numbered.block
            keep = ~self.dropped.read(numbered.first, block.documents)
            repeated = self.repeats.read(numbered.first, block.documents)
            left_out["duplicate"] += int(repeated.sum())
            left_out["near_duplicate"] += int((~keep & ~repeated).sum())
            lengths = block.lengths(self.block_folder)[keep]
            text_bytes += int(block.sizes(self.block_folder)[keep].sum())
            positions = hash_positions(block.digests(self.block_folder)[keep])
            kept_counts.append(_Counts(len(lengths), int(lengths.sum())))
            held_out_counts.append([_count_held_out(positions, lengths, fraction) for fraction in candidates])
        left_out = +left_out
        documents = sum(counts.documents for counts in kept_counts)
        if documents == 0 and self.existing is None:
            raise CorpusError(f"domain {self.name!r} has no text", _list_reasons(left_out))
        candidate_tokens = [
            sum(counts[number].tokens for counts in held_out_counts) for number in range(len(candidates))
        ]
        fraction = holdout.choose(candidate_tokens) if self.existing is None else self.existing.fraction
        held_out = [counts[candidates.index(fraction)] for counts in held_out_counts]
        held_documents = sum(counts.documents for counts in held_out)
        if self.existing is None and (held_documents == documents or (fraction > 0 and held_documents == 0)):
            side = "training" if held_documents == documents else "held-out"
            raise CorpusError(
                f"domain {self.name!r}: with {fraction:g} held out, {documents} documents leave no {side} text",
                "Provide more or smaller documents: a .jsonl with one document per line, or one file for each.",
            )
        trained = [
            _Counts(a.documents - b.documents, a.tokens - b.tokens) for a, b in zip(kept_counts, held_out, strict=True)
        ]
        all_tokens = max(sum(numbered.block.tokens for numbered in self.numbered), 1)
        kinds = Counter[str]()
        for numbered in self.numbered:
            kinds.update(numbered.block.kinds)

        def shard_tasks(side: str, counts: list[_Counts], first: int) -> list[ShardTask]:
            shards = list(_divide_blocks(self.numbered, counts, shard_tokens, at_least_one=self.existing is None))
            return [
                ShardTask(
                    prefix=shard_prefix(shard_folder, self.name, side, first + number),
                    blocks=tuple(blocks),
                    fraction=fraction,
                    held_out=side == "eval",
                    dropped=dropped,
                    dtype=self.numbered[0].block.dtype if self.numbered else "uint16",
                )
                for number, blocks in enumerate(shards)
            ]

        return DomainLayout(
            train=shard_tasks("train", trained, 0 if self.existing is None else self.existing.train),
            eval=shard_tasks("eval", held_out, 0 if self.existing is None else self.existing.eval),
            fraction=fraction,
            text_bytes=text_bytes,
            left_out=dict(sorted(left_out.items())),
            unknown_share=kinds["unknown"] / all_tokens,
            byte_share=kinds["bytes"] / all_tokens,
        )


def shard_prefix(folder: Path, domain: str, side: str, number: int) -> Path:
    """Return the path of a shard without its suffix."""
    return folder / f"{domain}-{side}-{number:05d}"


def _count_held_out(positions: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64], fraction: float) -> _Counts:
    below = positions < fraction
    return _Counts(int(below.sum()), int(lengths[below].sum()))


def _divide_blocks(
    numbered: list[NumberedBlock], sides: list[_Counts], shard_tokens: int, *, at_least_one: bool
) -> Iterator[list[NumberedBlock]]:
    """Divide blocks into shards; blocks without documents on this side are skipped."""
    shard: list[NumberedBlock] = []
    tokens = documents = shards = 0
    for block, counts in zip(numbered, sides, strict=True):
        if counts.documents:
            shard.append(block)
            tokens += counts.tokens
            documents += counts.documents
        if tokens >= shard_tokens or documents >= SHARD_DOCUMENTS:
            yield shard
            shards += 1
            shard, tokens, documents = [], 0, 0
    if shard or (at_least_one and not shards):
        yield shard


def _read_digests(path: Path) -> Digests:
    return np.fromfile(path, ">u8").reshape(-1, 2).astype(np.uint64)


def _ranges(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = 0
    for count in counts:
        yield first, count
        first += count


def _list_reasons(left_out: Counter[str]) -> str | None:
    if not left_out:
        return None
    return "Left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()) + "."
