"""Making the pieces of all domains, on all workers; what could not be used is counted, too much of it an error."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from drpruning.errors import CorpusError
from drpruning.prepare.compressed import STDIN
from drpruning.prepare.fields import Fields
from drpruning.prepare.pieces import Piece
from drpruning.prepare.units import NAMED_TROUBLES, Block, Trouble, Unit, blocks_of
from drpruning.prepare.work import BlockTask, Made, Task, UnitTask
from drpruning.prepare.workers import Pool

STREAM_FROM = 64 << 20
"""Compressed files from this size on are decompressed here and their blocks dealt to the workers; smaller ones are each
one worker's. Decompressing is some 50 times as fast as tokenising."""


@dataclass(frozen=True)
class DomainSource:
    """The text of one domain.

    Args:
        units: What to read, in order.
        fields: How entries become documents.
        blocks: Text that is in memory already, instead of units.
    """

    units: tuple[Unit, ...] = ()
    fields: Fields = field(default_factory=Fields)
    blocks: Callable[[], Iterator[Block]] | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(unit.size for unit in self.units)


@dataclass(frozen=True)
class Progress:
    """What has been done since the last call.

    Args:
        domain: Of which domain.
        read: Bytes on disk.
        documents: Documents tokenised.
        text_bytes: Their UTF-8.
        tokens: Their tokens.
        was_there: Whether an earlier, interrupted preparation had done it.
        troubles: Entries and files that could not be used, the first few.
        began: When the work on the first domain began, by ``time.monotonic``.
    """

    domain: str
    read: int
    documents: int
    text_bytes: int
    tokens: int
    was_there: bool = False
    troubles: tuple[Trouble, ...] = ()
    began: float = 0.0


Watch = Callable[[Progress], None]


@dataclass
class Gathered:
    """The pieces of one domain.

    Args:
        pieces: In the order of the text.
        names: Theirs, also when only names were asked for.
        left_out: Documents dropped or repaired, by reason, the unusable ones among them.
        named: The first few of the unusable ones.
    """

    pieces: list[Piece] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    named: list[Trouble] = field(default_factory=list)


def gather(
    pool: Pool,
    domains: Mapping[str, DomainSource],
    *,
    max_bad: int = 0,
    watch: Watch | None = None,
    names_only: bool = False,
) -> dict[str, Gathered]:
    """Makes the pieces of all domains, or finds out what they would be called.

    Args:
        pool: The workers.
        domains: By name.
        max_bad: How many entries and files, all together, may be unusable.
        watch: Called after each block.
        names_only: Whether to read, but not to tokenise.

    Raises:
        CorpusError: More than ``max_bad`` were unusable; the first one is named.
    """
    results: dict[str, dict[tuple[int, int], list[Made]]] = {name: {} for name in domains}
    began = time.monotonic()
    bad = 0
    for (name, unit, block), result in pool.run(_tasks(domains, names_only)):
        assert isinstance(result, list)
        results[name][unit, block] = result
        for made in result:
            bad += made.troubles.counts.total()
            if bad > max_bad and not names_only:
                raise too_many(bad, max_bad, made.troubles.named[0])
            if watch is not None:
                watch(_progress(name, made, began))
    gathered = {}
    for name, by_place in results.items():
        found = gathered[name] = Gathered()
        for place in sorted(by_place):
            for made in by_place[place]:
                if made.name:
                    found.names.append(made.name)
                if made.piece is not None:
                    found.pieces.append(made.piece)
                found.left_out += made.left_out + made.troubles.counts
                found.named += made.troubles.named[: NAMED_TROUBLES - len(found.named)]
    return gathered


def _tasks(domains: Mapping[str, DomainSource], names_only: bool) -> Iterator[tuple[tuple[str, int, int], Task]]:
    for name, source in domains.items():
        if source.blocks is not None:
            for number, block in enumerate(source.blocks()):
                yield (name, 0, number), BlockTask(block, source.fields, names_only)
        for place, unit in enumerate(source.units):
            if _is_stream(unit):
                for number, block in enumerate(blocks_of(unit, source.fields)):
                    yield (name, place, number), BlockTask(block, source.fields, names_only)
            else:
                yield (name, place, 0), UnitTask(unit, source.fields, names_only)


def reads_stdin(domains: Mapping[str, DomainSource]) -> bool:
    """Whether some of the text is on the standard input, which can be read once and by one process only."""
    return any(STDIN in unit.files for source in domains.values() for unit in source.units)


def _is_stream(unit: Unit) -> bool:
    return STDIN in unit.files or (unit.kind in {"line_stream", "json", "arrow"} and unit.size >= STREAM_FROM)


def _progress(name: str, made: Made, began: float) -> Progress:
    piece = made.piece
    troubles = tuple(made.troubles.named)
    if piece is None:
        return Progress(name, made.read, 0, 0, 0, False, troubles, began)
    return Progress(name, made.read, piece.documents, piece.text_bytes, piece.tokens, made.was_there, troubles, began)


def too_many(bad: int, max_bad: int, first: Trouble) -> CorpusError:
    """The error for more unusable entries than allowed."""
    next_step = "Repair it, or leave out up to N such entries with --max-bad N; the report counts them."
    if first.reason == "missing_text":
        next_step = "Name the key with --text-field, or leave out up to N such entries with --max-bad N."
    message = str(first)
    if max_bad:
        message = f"{bad} entries or files could not be used, more than --max-bad {max_bad}; for instance {message}"
    return CorpusError(message, next_step)
