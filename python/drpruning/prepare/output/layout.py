"""Layout of the shards: the documents to drop, the holdout of each domain, and the tokenized blocks of each shard.

The layout is a function of the tokenized blocks in their order, so any number of workers on any number of machines
writes the same shards. It reads digests, lengths and sizes, no tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drpruning.corpus.manifest import SPLITS, Split
from drpruning.errors import CorpusError
from drpruning.files import write_bytes
from drpruning.prepare.dedup.exact import Digests, DocumentBitmap, find_duplicates
from drpruning.prepare.dedup.overlap import ngram_hashes, overlap_shares
from drpruning.prepare.output.holdout import TEST, TRAIN, VALIDATION, Holdout, assign_splits
from drpruning.prepare.output.shards import NumberedBlock, ShardTask
from drpruning.prepare.tokenize.tokenized_blocks import DIGEST_SIZE, DomainBlocks

SHARD_TOKENS = 1 << 30
"""A shard ends with the tokenized block that reaches this: 2 or 4 GiB, which copy and hash in seconds."""

SHARD_DOCUMENTS = 1 << 23
"""A shard also ends with the block that reaches this many documents, since their index must fit in memory."""

MORE_DOCUMENTS = "Provide more or smaller documents: a .jsonl with one document per line, or one file for each."
DROPPED = "dropped.bits"


@dataclass(frozen=True, kw_only=True)
class ExistingDomain:
    """A domain of the corpus to append to.

    Args:
        fraction: Its holdout fraction.
        shards: Number of its shards by split.
    """

    fraction: float
    shards: Mapping[Split, int]


@dataclass(frozen=True, kw_only=True)
class DomainLayout:
    """The shards of a domain to write.

    Args:
        shards: Shards by split.
        fraction: Groups with a hash position below it are held out.
        text_bytes: UTF-8 bytes of the documents kept.
        left_out: Documents dropped or repaired, by reason.
        unknown_share: Share of unknown tokens in all tokens made.
        byte_share: Share of tokens that are a part of a character.
    """

    shards: dict[Split, list[ShardTask]]
    fraction: float
    text_bytes: int
    left_out: dict[str, int]
    unknown_share: float
    byte_share: float


@dataclass
class _Counts:
    """Documents and tokens of a tokenized block in one split."""

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
    max_overlap: float | None = None,
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
        max_overlap: Drop held-out documents of which a larger share of n-grams also occurs in training text, see
            :mod:`~drpruning.prepare.dedup.overlap`; the n-grams of all training text are in memory. None: keep them.
        shard_tokens: Tokens of a shard.

    Raises:
        CorpusError: A domain has no text, or too few documents for training and held-out text.
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

    builders: dict[str, _LayoutBuilder] = {}
    first = 0
    for name, blocks in domains.items():
        numbered = []
        for block in blocks.blocks:
            numbered.append(NumberedBlock(block, first))
            first += block.documents
        builders[name] = _LayoutBuilder(
            name, numbered, blocks, (existing or {}).get(name), block_folder, repeats, dropped
        )
    for builder in builders.values():
        builder.choose_fraction(holdout)
    if max_overlap is not None:
        _drop_overlaps(builders, holdout, max_overlap)
        dropped = DocumentBitmap(dropped.bits | _bitmap([b.overlapping for b in builders.values()], first).bits)
    write_bytes(work / DROPPED, dropped.bits.tobytes())
    return {name: builder.build(shard_folder, work / DROPPED, shard_tokens) for name, builder in builders.items()}


def _drop_overlaps(builders: Mapping[str, _LayoutBuilder], holdout: Holdout, max_overlap: float) -> None:
    """Find the held-out documents that overlap training text; raise the fraction of domains left with too little."""
    while True:
        training = np.sort(np.concatenate([builder.training_ngrams() for builder in builders.values()]))
        for builder in builders.values():
            builder.find_overlaps(training, max_overlap)
        raised = [builder.raise_fraction(holdout) for builder in builders.values()]
        if not any(raised):
            return


@dataclass
class _LayoutBuilder:
    """Computes the layout of one domain."""

    name: str
    numbered: list[NumberedBlock]
    blocks: DomainBlocks
    existing: ExistingDomain | None
    folder: Path
    repeats: DocumentBitmap
    dropped: DocumentBitmap
    fraction: float = 0.0
    overlapping: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # document numbers

    def choose_fraction(self, holdout: Holdout) -> None:
        """Set the smallest candidate that yields enough test and validation text, else the largest."""
        self.fraction = holdout.fraction if self.existing is None else self.existing.fraction
        while self.raise_fraction(holdout):
            pass

    def raise_fraction(self, holdout: Holdout) -> bool:
        """Use the next candidate if the held-out text is too little; return whether one leaves training text."""
        larger = [fraction for fraction in holdout.candidates() if fraction > self.fraction]
        if self.existing is not None or not larger or self._is_enough(holdout):
            return False
        before, self.fraction = self.fraction, larger[0]
        if any((self.splits(numbered) == TRAIN).any() for numbered in self.numbered):
            return True
        self.fraction = before
        return False

    def _is_enough(self, holdout: Holdout) -> bool:
        groups: set[int] = set()
        tokens = {VALIDATION: 0, TEST: 0}
        for numbered in self.numbered:
            splits, lengths = self.splits(numbered), numbered.block.lengths(self.folder)
            for split in tokens:
                tokens[split] += int(lengths[splits == split].sum())
            if len(groups) < holdout.min_groups:  # more need not be counted
                groups.update(numbered.block.groups(self.folder)[splits == TEST, 0].tolist())
        return holdout.is_enough(groups=len(groups), test_tokens=tokens[TEST], validation_tokens=tokens[VALIDATION])

    def splits(self, numbered: NumberedBlock) -> npt.NDArray[np.int8]:
        """Return the split of each document of a block, -1 for a dropped one: int8 ``[documents]``."""
        splits = assign_splits(numbered.block.groups(self.folder), self.fraction)
        splits[self.dropped.read(numbered.first, numbered.block.documents)] = -1
        inside = self.overlapping - numbered.first
        splits[inside[(inside >= 0) & (inside < len(splits))]] = -1
        return splits

    def count(self) -> list[list[_Counts]]:
        """Return the documents and tokens of each split and block."""
        counts: list[list[_Counts]] = [[] for _ in SPLITS]
        for numbered in self.numbered:
            splits, lengths = self.splits(numbered), numbered.block.lengths(self.folder)
            for split, of_split in enumerate(counts):
                selected = splits == split
                of_split.append(_Counts(int(selected.sum()), int(lengths[selected].sum())))
        return counts

    def training_ngrams(self) -> npt.NDArray[np.uint64]:
        """Return the hashes of the n-grams of the training text."""
        found = [np.zeros(0, np.uint64)]
        for numbered in self.numbered:
            is_training = self.splits(numbered) == TRAIN
            found.append(ngram_hashes(*self._read_documents(numbered, is_training))[0])
        return np.concatenate(found)

    def find_overlaps(self, training: npt.NDArray[np.uint64], max_overlap: float) -> None:
        """Find the held-out documents that overlap training text, whose n-grams have these hashes, ascending."""
        self.overlapping = self.overlapping[:0]
        for numbered in self.numbered:
            is_held_out = self.splits(numbered) > TRAIN
            shares = overlap_shares(*self._read_documents(numbered, is_held_out), training)
            numbers = numbered.first + np.flatnonzero(is_held_out)[shares > max_overlap]
            self.overlapping = np.concatenate([self.overlapping, numbers])

    def _read_documents(
        self, numbered: NumberedBlock, selected: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
        """Read the tokens and lengths of some documents of a block."""
        lengths = numbered.block.lengths(self.folder)
        return numbered.block.read_tokens(self.folder)[np.repeat(selected, lengths)], lengths[selected]

    def build(self, shard_folder: Path, dropped: Path, shard_tokens: int) -> DomainLayout:
        """Return the shards and statistics of the domain."""
        left_out = Counter(self.blocks.left_out)
        text_bytes = 0
        for numbered in self.numbered:
            repeated = self.repeats.read(numbered.first, numbered.block.documents)
            left_out["duplicate"] += int(repeated.sum())
            similar = self.dropped.read(numbered.first, numbered.block.documents) & ~repeated
            left_out["near_duplicate"] += int(similar.sum())
            text_bytes += int(numbered.block.sizes(self.folder)[self.splits(numbered) >= 0].sum())
        left_out["overlap"] = len(self.overlapping)
        left_out = +left_out
        counts = self.count()
        self._check(counts, left_out)
        all_tokens = max(sum(numbered.block.tokens for numbered in self.numbered), 1)
        kinds = Counter[str]()
        for numbered in self.numbered:
            kinds.update(numbered.block.kinds)
        return DomainLayout(
            shards={
                split: self._shard_tasks(split, of_split, shard_folder, dropped, shard_tokens)
                for split, of_split in zip(SPLITS, counts, strict=True)
            },
            fraction=self.fraction,
            text_bytes=text_bytes,
            left_out=dict(sorted(left_out.items())),
            unknown_share=kinds["unknown"] / all_tokens,
            byte_share=kinds["bytes"] / all_tokens,
        )

    def _check(self, counts: list[list[_Counts]], left_out: Counter[str]) -> None:
        """Raise if a new domain has no training or no held-out text."""
        train, *held_out = (sum(block.documents for block in of_split) for of_split in counts)
        if self.existing is not None:
            return
        documents = train + sum(held_out)
        if documents == 0:
            raise CorpusError(f"domain {self.name!r} has no text", _list_reasons(left_out))
        if documents == 1 and self.fraction > 0:
            raise CorpusError(
                f"domain {self.name!r} has 1 document; expected 2 or more, for training and holdout", MORE_DOCUMENTS
            )
        if train == 0 or (self.fraction > 0 and sum(held_out) == 0):
            side = "training" if train == 0 else "held-out"
            raise CorpusError(
                f"domain {self.name!r}: with {self.fraction:g} held out, {documents} documents leave no {side} text",
                MORE_DOCUMENTS,
            )

    def _shard_tasks(
        self, split: Split, counts: list[_Counts], shard_folder: Path, dropped: Path, shard_tokens: int
    ) -> list[ShardTask]:
        first = 0 if self.existing is None else self.existing.shards[split]
        at_least_one = self.existing is None and split == "train"
        return [
            ShardTask(
                prefix=shard_prefix(shard_folder, self.name, split, first + number),
                blocks=tuple(blocks),
                fraction=self.fraction,
                split=split,
                dropped=dropped,
                dtype=self.numbered[0].block.dtype if self.numbered else "uint16",
            )
            for number, blocks in enumerate(
                _divide_blocks(self.numbered, counts, shard_tokens, at_least_one=at_least_one)
            )
        ]


def shard_prefix(folder: Path, domain: str, split: Split, number: int) -> Path:
    """Return the path of a shard without its suffix."""
    return folder / f"{domain}-{split}-{number:05d}"


def _divide_blocks(
    numbered: list[NumberedBlock], counts: list[_Counts], shard_tokens: int, *, at_least_one: bool
) -> Iterator[list[NumberedBlock]]:
    """Divide blocks into shards; blocks without documents in this split are skipped."""
    shard: list[NumberedBlock] = []
    tokens = documents = shards = 0
    for block, of_block in zip(numbered, counts, strict=True):
        if of_block.documents:
            shard.append(block)
            tokens += of_block.tokens
            documents += of_block.documents
        if tokens >= shard_tokens or documents >= SHARD_DOCUMENTS:
            yield shard
            shards += 1
            shard, tokens, documents = [], 0, 0
    if shard or (at_least_one and not shards):
        yield shard


def _bitmap(numbers: Sequence[npt.NDArray[np.int64]], count: int) -> DocumentBitmap:
    bitmap = DocumentBitmap.zeros(count)
    bitmap.set(np.concatenate(numbers))
    return bitmap


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
