"""From pieces to shards, on paper: which documents are dropped, how many are held out, what goes into which file.

Everything follows from the pieces in their order, so any number of workers, on any number of machines, writes the same
shards. Nothing here looks at a token.
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
from drpruning.prepare.duplicates import Digests, Marks, duplicates
from drpruning.prepare.gather import Gathered
from drpruning.prepare.pieces import DIGEST_SIZE
from drpruning.prepare.shards import Numbered, ShardJob
from drpruning.prepare.split import HeldOut, positions_of

SHARD_TOKENS = 1 << 30
"""A shard ends with the piece that reaches it: 2 or 4 GiB, which copy and hash in seconds."""

SHARD_DOCUMENTS = 1 << 23
"""... or with the one that reaches so many documents, whose index has to be in memory."""

DROPPED = "dropped.bits"


@dataclass(frozen=True, kw_only=True)
class Existing:
    """What a corpus that is added to has of a domain already.

    Args:
        share: Of it that is held out.
        train: Number of its training shards.
        eval: Number of its held-out shards.
    """

    share: float
    train: int
    eval: int


@dataclass(frozen=True, kw_only=True)
class DomainPlan:
    """What to write of a domain.

    Args:
        train: Jobs of its training shards.
        eval: Jobs of its held-out shards.
        share: Documents whose position lies below it are held out.
        text_bytes: UTF-8 bytes of the documents kept.
        left_out: Documents dropped or repaired, by reason.
        unknown_share: Tokens that stand for unknown text, in all that were made.
        byte_share: Tokens that stand for a part of a character.
    """

    train: list[ShardJob]
    eval: list[ShardJob]
    share: float
    text_bytes: int
    left_out: dict[str, int]
    unknown_share: float
    byte_share: float


@dataclass
class _Side:
    """What a piece gives to one side."""

    documents: int
    tokens: int


def plan_corpus(
    gathered: Mapping[str, Gathered],
    rule: HeldOut,
    pieces: Path,
    work: Path,
    prefix: Path,
    *,
    existing: Mapping[str, Existing] | None = None,
    seen: Sequence[Path] = (),
    near: Marks | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, DomainPlan]:
    """Plans the shards of all domains and writes down, into ``work``, which documents are not kept.

    Documents with the same text are kept once in the whole corpus, in the domain that comes first, so that none is
    trained on in one domain and held out in another.

    Args:
        gathered: The pieces by domain.
        rule: How much is held out.
        pieces: Folder of the pieces.
        work: Folder for notes and for what does not fit in memory.
        prefix: Folder that the shards are to be in.
        existing: Domains that have shards already.
        seen: Files with the digests of documents that the corpus has already.
        near: Marks documents to drop because they resemble others.
        shard_tokens: Tokens of a shard.

    Raises:
        CorpusError: A domain has no text, or too few documents to have some on both sides.
    """
    before = sum(path.stat().st_size for path in seen) // DIGEST_SIZE
    counts = [piece.documents for found in gathered.values() for piece in found.pieces]
    digests = chain(
        (_digests_in(path) for path in seen),
        (piece.digests(pieces) for found in gathered.values() for piece in found.pieces),
    )
    everything = duplicates(digests, before + sum(counts), work)
    exact = Marks.none(sum(counts))
    for first, count in _runs(counts):
        exact.add(first + np.flatnonzero(everything.of(before + first, count)))
    dropped = exact if near is None else Marks(exact.bits | near.bits)
    write_bytes(work / DROPPED, dropped.bits.tobytes())

    plans: dict[str, DomainPlan] = {}
    first = 0
    for name, found in gathered.items():
        numbered = []
        for piece in found.pieces:
            numbered.append(Numbered(piece, first))
            first += piece.documents
        old = (existing or {}).get(name)
        domain = _Domain(name, numbered, found, old, pieces, exact, dropped)
        plans[name] = domain.plan(rule, prefix, work / DROPPED, shard_tokens)
    return plans


@dataclass
class _Domain:
    name: str
    numbered: list[Numbered]
    found: Gathered
    old: Existing | None
    pieces: Path
    exact: Marks
    dropped: Marks

    def plan(self, rule: HeldOut, prefix: Path, dropped: Path, shard_tokens: int) -> DomainPlan:
        candidates = rule.candidates() if self.old is None else [self.old.share]
        left_out = Counter(self.found.left_out)
        text_bytes = 0
        kept: list[_Side] = []  # of each piece
        held: list[list[_Side]] = []  # of each piece, for each candidate
        for numbered in self.numbered:
            piece = numbered.piece
            keep = ~self.dropped.of(numbered.first, piece.documents)
            repeated = self.exact.of(numbered.first, piece.documents)
            left_out["duplicate"] += int(repeated.sum())
            left_out["near_duplicate"] += int((~keep & ~repeated).sum())
            lengths = piece.lengths(self.pieces)[keep]
            text_bytes += int(piece.sizes(self.pieces)[keep].sum())
            where = positions_of(piece.digests(self.pieces)[keep])
            kept.append(_Side(len(lengths), int(lengths.sum())))
            held.append([_held(where, lengths, fraction) for fraction in candidates])
        left_out = +left_out
        documents = sum(side.documents for side in kept)
        if documents == 0 and self.old is None:
            raise CorpusError(f"domain {self.name!r} has no text", _reasons(left_out))
        sums = [sum(sides[number].tokens for sides in held) for number in range(len(candidates))]
        share = rule.choose(sums) if self.old is None else self.old.share
        held_out = [sides[candidates.index(share)] for sides in held]
        held_documents = sum(side.documents for side in held_out)
        if self.old is None and (held_documents == documents or (share > 0 and held_documents == 0)):
            side = "training" if held_documents == documents else "held-out"
            raise CorpusError(
                f"domain {self.name!r}: with {share:g} held out, {documents} documents leave no {side} text",
                "Give more or smaller documents: a .jsonl with one document a line, or one file for each.",
            )
        trained = [_Side(a.documents - b.documents, a.tokens - b.tokens) for a, b in zip(kept, held_out, strict=True)]
        made = max(sum(numbered.piece.tokens for numbered in self.numbered), 1)
        kinds = Counter[str]()
        for numbered in self.numbered:
            kinds.update(numbered.piece.kinds)

        def jobs(side: str, sides: list[_Side], first: int) -> list[ShardJob]:
            runs = list(_shards(self.numbered, sides, shard_tokens, at_least_one=self.old is None))
            return [
                ShardJob(
                    prefix=prefix / f"{self.name}-{side}-{first + number:05d}",
                    pieces=tuple(run),
                    share=share,
                    held_out=side == "eval",
                    dropped=dropped,
                    dtype=_dtype(self.numbered),
                )
                for number, run in enumerate(runs)
            ]

        return DomainPlan(
            train=jobs("train", trained, 0 if self.old is None else self.old.train),
            eval=jobs("eval", held_out, 0 if self.old is None else self.old.eval),
            share=share,
            text_bytes=text_bytes,
            left_out=dict(sorted(left_out.items())),
            unknown_share=kinds["unknown"] / made,
            byte_share=kinds["bytes"] / made,
        )


def _held(where: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64], fraction: float) -> _Side:
    below = where < fraction
    return _Side(int(below.sum()), int(lengths[below].sum()))


def _shards(
    numbered: list[Numbered], sides: list[_Side], shard_tokens: int, *, at_least_one: bool
) -> Iterator[list[Numbered]]:
    """Pieces dealt into shards; pieces that give this side nothing are passed over."""
    run: list[Numbered] = []
    tokens = documents = shards = 0
    for piece, side in zip(numbered, sides, strict=True):
        if side.documents:
            run.append(piece)
            tokens += side.tokens
            documents += side.documents
        if tokens >= shard_tokens or documents >= SHARD_DOCUMENTS:
            yield run
            shards += 1
            run, tokens, documents = [], 0, 0
    if run or (at_least_one and not shards):
        yield run


def _dtype(numbered: list[Numbered]) -> str:
    return numbered[0].piece.dtype if numbered else "uint16"


def _digests_in(path: Path) -> Digests:
    return np.fromfile(path, ">u8").reshape(-1, 2).astype(np.uint64)


def _runs(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = 0
    for count in counts:
        yield first, count
        first += count


def _reasons(left_out: Counter[str]) -> str | None:
    return None if not left_out else "Left out: " + ", ".join(f"{count} {why}" for why, count in left_out.items()) + "."
