"""The work of one worker: a block becomes a piece, or a shard is written from pieces."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from drpruning.prepare.compressed import DamagedFileError
from drpruning.prepare.documents import Found, Utf8, documents, giant, look_through
from drpruning.prepare.encode import BATCH_CHARACTERS, Encoder
from drpruning.prepare.fields import Fields
from drpruning.prepare.pieces import Piece, PieceWriter, block_digest, find_piece, new_piece
from drpruning.prepare.seams import LONGEST_PART
from drpruning.prepare.shards import ShardJob, WrittenShard, write_shard
from drpruning.prepare.split import keyed_hash
from drpruning.prepare.units import BLOCK_SIZE, Block, Trouble, Troubles, Unit, blocks_of, unreadable

CONTENT = 3
"""Raised when the same text and settings yield other pieces than before."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the tokens of a text, and where pieces are kept.

    Args:
        pieces: Folder of the pieces.
        tokenizer: Folder of the saved tokenizer.
        tokenizer_name: As the user called it.
        end_token: Text of the token that ends a document.
        tokenizer_sha256: Checksum of what makes the tokens.
        end_id: The token that ends a document.
        vocab_size: The largest id + 1.
        dtype: Of the tokens in the pieces.
        utf8: What becomes of invalid UTF-8.
        block_size: Bytes of text in a piece.
    """

    pieces: Path
    tokenizer: Path
    tokenizer_name: str
    end_token: str
    tokenizer_sha256: str
    end_id: int
    vocab_size: int
    dtype: str
    utf8: Utf8 = "replace"
    block_size: int = BLOCK_SIZE

    def key(self, block: Block, fields: Fields) -> str:
        """What decides the piece of a block besides its content."""
        decides = {
            "content": CONTENT,
            "tokenizer": self.tokenizer_sha256,
            "end": self.end_id,
            "dtype": self.dtype,
            "utf8": self.utf8,
            "part": LONGEST_PART,
            "kind": block.kind,
            "fields": fields.described() if block.kind == "lines" else None,
        }
        return json.dumps(decides, sort_keys=True)


@dataclass(frozen=True)
class Made:
    """What became of a block.

    Args:
        name: Of its piece; empty if it held nothing to tokenise.
        piece: The piece, unless only names were asked for.
        read: Bytes on disk that were read for it.
        troubles: Entries and files that could not be used.
        left_out: Documents and files dropped or repaired, by reason.
        was_there: Whether the piece had been made before.
    """

    name: str
    piece: Piece | None
    read: int
    troubles: Troubles
    left_out: Counter[str]
    was_there: bool = False


@dataclass(frozen=True)
class UnitTask:
    """Read a unit and make its pieces."""

    unit: Unit
    fields: Fields
    names_only: bool = False


@dataclass(frozen=True)
class BlockTask:
    """Make the piece of a block that somebody else has read."""

    block: Block
    fields: Fields
    names_only: bool = False


Task = UnitTask | BlockTask | ShardJob
Result = list[Made] | WrittenShard


@dataclass
class Station:
    """What a worker keeps between tasks.

    Args:
        settings: The settings.
        encoder: The tokenizer, if it is loaded already.
    """

    settings: Settings
    encoder: Encoder | None = None

    def perform(self, task: Task) -> Result:
        """Does ``task``."""
        match task:
            case UnitTask():
                blocks = blocks_of(task.unit, task.fields, self.settings.block_size)
                return [self.make(block, task.fields, task.names_only) for block in blocks]
            case BlockTask():
                return [self.make(task.block, task.fields, task.names_only)]
            case ShardJob():
                return write_shard(task, self.settings.pieces)

    def make(self, block: Block, fields: Fields, names_only: bool = False) -> Made:
        """The piece of a block: found, or made now."""
        troubles = Troubles(Counter(block.troubles.counts), list(block.troubles.named))
        nothing = Made("", None, block.read, troubles, Counter(block.notes))
        if block.kind == "giant":
            return self._make_giant(block, fields, nothing, names_only)
        if not block.data:
            return nothing
        content = block_digest(self.settings.key(block, fields))
        content.update(block.data)

        def fill(writer: PieceWriter, found: Found) -> None:
            self._fill(writer, documents(block, fields, self.settings.utf8, found), found)

        return self._found_or_made(replace(nothing, name=content.hexdigest()), block, names_only, fill)

    def _fill(self, writer: PieceWriter, texts: Iterator[tuple[str, bytes]], found: Found) -> None:
        encoder = self._encoder()
        batch: list[tuple[str, bytes]] = []
        size = 0

        def flush() -> None:
            ids, lengths = encoder.batch([text for text, _ in batch])
            writer.add_tokens(ids, encoder.kinds)
            for (_, data), length in zip(batch, lengths.tolist(), strict=True):
                writer.add_document(keyed_hash(data).digest(), length, len(data))
            batch.clear()

        for text, data in texts:
            if encoder.is_long(text):
                if batch:
                    flush()
                    size = 0
                length = self._add_long(writer, iter([text]), found)
                writer.add_document(keyed_hash(data).digest(), length, len(data))
                continue
            batch.append((text, data))
            size += len(text)
            if size >= BATCH_CHARACTERS:
                flush()
                size = 0
        if batch:
            flush()

    def _add_long(self, writer: PieceWriter, texts: Iterator[str], found: Found) -> int:
        encoder = self._encoder()
        length = 0
        for ids, exact in encoder.long(texts):
            writer.add_tokens(ids, encoder.kinds)
            length += len(ids)
            found.left_out["inexact_cut"] += not exact
        return length

    def _make_giant(self, block: Block, fields: Fields, nothing: Made, names_only: bool) -> Made:
        """The piece of a text file that is too big for memory: read once for its name, once for its tokens."""
        path = Path(block.path)
        content = block_digest(self.settings.key(block, fields))
        try:
            looked = look_through(path, content.update)
        except (OSError, DamagedFileError) as error:
            nothing.troubles.add(unreadable(path, error))
            return nothing
        utf8 = self.settings.utf8
        if not looked.is_document(utf8):
            if not looked.blank and utf8 == "fail":
                nothing.troubles.add(Trouble("invalid_utf8", block.path, "not valid UTF-8"))
            else:
                nothing.left_out["empty" if looked.blank else "invalid_utf8_skipped"] += 1
            return nothing

        def fill(writer: PieceWriter, found: Found) -> None:
            found.left_out["invalid_utf8"] += not looked.valid
            text = _Decoded(path)
            length = self._add_long(writer, iter(text), found)
            writer.add_document(text.hash.digest(), length, text.size)

        return self._found_or_made(replace(nothing, name=content.hexdigest()), block, names_only, fill)

    def _found_or_made(
        self, made: Made, block: Block, names_only: bool, fill: Callable[[PieceWriter, Found], None]
    ) -> Made:
        """``made`` with its piece, which ``fill`` fills if it is not there."""
        if names_only:
            return made
        piece = find_piece(self.settings.pieces, made.name)
        if piece is not None:
            return _told(made, piece, block, was_there=True)
        found = Found()
        with new_piece(self.settings.pieces, made.name, self.settings.dtype) as writer:
            fill(writer, found)
            _finish(writer, found, block)
        piece = find_piece(self.settings.pieces, made.name)
        assert piece is not None
        return _told(made, piece, block)

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            settings = self.settings
            self.encoder = Encoder.load(settings.tokenizer, settings.end_id, settings.vocab_size)
        return self.encoder


class _Decoded:
    """A giant file as text, with the hash and the size of its UTF-8 once it has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hash = keyed_hash()
        self.size = 0

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for part in giant(self.path):
            yield from self._told(decoder.decode(part))
        yield from self._told(decoder.decode(b"", final=True))

    def _told(self, text: str) -> Iterator[str]:
        data = text.encode()
        self.hash.update(data)
        self.size += len(data)
        yield text


def _finish(writer: PieceWriter, found: Found, block: Block) -> None:
    named = [(trouble.reason, trouble.number - block.first, trouble.message) for trouble in found.troubles.named]
    writer.finish(+found.left_out, found.troubles.counts, named)


def _told(made: Made, piece: Piece, block: Block, *, was_there: bool = False) -> Made:
    """``made`` with what the piece says of its documents, at the places where this block has them."""
    made.left_out.update(piece.left_out)
    made.troubles.counts.update(piece.troubles)
    for reason, number, message in piece.named:
        made.troubles.named.append(Trouble(reason, block.path, message, block.word, number + block.first, block.offset))
    return replace(made, piece=piece, was_there=was_there)
