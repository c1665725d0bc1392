"""Tasks of one worker: tokenize a read unit or a block, or write a shard from tokenized blocks."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from drpruning.prepare.output.holdout import group_digest, keyed_hash
from drpruning.prepare.output.shards import ShardTask, WrittenShard, write_shard
from drpruning.prepare.readers import read_blocks
from drpruning.prepare.readers.blocks import READ_ERRORS, Block, InputError, InputErrors, ReadUnit, unreadable_file
from drpruning.prepare.readers.documents import Document, ParseStats, parse_documents
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.text import inspect_giant, read_giant
from drpruning.prepare.tokenize.encoder import BATCH_CHARACTERS, Encoder
from drpruning.prepare.tokenize.tokenized_blocks import (
    TokenizedBlock,
    TokenizedBlockWriter,
    TokenizeSettings,
    find_tokenized_block,
    new_tokenized_block,
)


@dataclass(frozen=True)
class UnitTask:
    """Read a unit and tokenize its blocks; with ``names_only`` compute their names only."""

    unit: ReadUnit
    fields: FieldMapping
    names_only: bool = False


@dataclass(frozen=True)
class BlockTask:
    """Tokenize a block that the parent process has read; with ``names_only`` compute its name only."""

    block: Block
    fields: FieldMapping
    names_only: bool = False


@dataclass(frozen=True)
class TokenizeResult:
    """Result of tokenizing a block.

    Args:
        name: Name of the tokenized block; empty if there was nothing to tokenize.
        block: The tokenized block; None with ``names_only``.
        bytes_read: Bytes read from disk for it.
        errors: Entries and files that cannot be used.
        left_out: Documents and files dropped or repaired, by reason.
        cached: Whether the tokenized block existed before.
    """

    name: str
    block: TokenizedBlock | None
    bytes_read: int
    errors: InputErrors
    left_out: Counter[str]
    cached: bool = False


Task = UnitTask | BlockTask | ShardTask
Result = list[TokenizeResult] | WrittenShard


@dataclass
class TaskRunner:
    """Runs tasks. Keeps the tokenizer between tasks.

    Args:
        settings: Settings of the tokenization.
        encoder: The tokenizer; None: it is loaded for the first task.
    """

    settings: TokenizeSettings
    encoder: Encoder | None = None

    def run(self, task: Task) -> Result:
        """Run ``task`` and return its result."""
        match task:
            case UnitTask():
                blocks = read_blocks(task.unit, task.fields, self.settings.block_size)
                return [self.tokenize_block(block, task.fields, task.names_only) for block in blocks]
            case BlockTask():
                return [self.tokenize_block(task.block, task.fields, task.names_only)]
            case ShardTask():
                return write_shard(task, self.settings.blocks)

    def tokenize_block(self, block: Block, fields: FieldMapping, names_only: bool = False) -> TokenizeResult:
        """Tokenize a block, or find its tokenized block on disk."""
        errors = InputErrors(Counter(block.errors.counts), list(block.errors.examples))
        empty = TokenizeResult("", None, block.bytes_read, errors, Counter(block.left_out))
        if block.kind == "giant":
            return self._tokenize_giant(block, fields, empty, names_only)
        if not block.data:
            return empty
        content = self.settings.new_hash(block, fields)
        content.update(block.data)
        if block.groups is not None:
            content.update(repr(block.groups).encode(errors="surrogatepass"))

        def write(writer: TokenizedBlockWriter, stats: ParseStats) -> None:
            self._write_documents(writer, parse_documents(block, fields, self.settings.utf8, stats), stats)

        return self._find_or_write(replace(empty, name=content.hexdigest()), block, names_only, write)

    def _write_documents(self, writer: TokenizedBlockWriter, documents: Iterator[Document], stats: ParseStats) -> None:
        encoder = self._load_encoder()
        batch: list[Document] = []
        size = 0

        def add(document: Document, length: int) -> None:
            group = None if document.group is None else group_digest(document.group)
            writer.add_document(keyed_hash(document.data).digest(), length, len(document.data), group)

        def flush() -> None:
            ids, lengths = encoder.encode_batch([document.text for document in batch])
            writer.add_tokens(ids, encoder.token_kinds)
            for document, length in zip(batch, lengths.tolist(), strict=True):
                add(document, length)
            batch.clear()

        for document in documents:
            if encoder.is_long(document.text):
                if batch:
                    flush()
                    size = 0
                add(document, self._write_long_document(writer, iter([document.text]), stats))
                continue
            batch.append(document)
            size += len(document.text)
            if size >= BATCH_CHARACTERS:
                flush()
                size = 0
        if batch:
            flush()

    def _write_long_document(self, writer: TokenizedBlockWriter, texts: Iterator[str], stats: ParseStats) -> int:
        encoder = self._load_encoder()
        length = 0
        for ids, exact in encoder.encode_long(texts):
            writer.add_tokens(ids, encoder.token_kinds)
            length += len(ids)
            stats.left_out["inexact_cut"] += not exact
        return length

    def _tokenize_giant(
        self, block: Block, fields: FieldMapping, empty: TokenizeResult, names_only: bool
    ) -> TokenizeResult:
        """Tokenize a text file that is too large for memory: read it once for its name, once for its tokens."""
        path = Path(block.path)
        content = self.settings.new_hash(block, fields)
        try:
            info = inspect_giant(path, content.update)
        except READ_ERRORS as error:
            empty.errors.add(unreadable_file(path, error))
            return empty
        utf8 = self.settings.utf8
        if not info.is_document(utf8):
            if not info.blank and utf8 == "fail":
                empty.errors.add(InputError("invalid_utf8", block.path, "not valid UTF-8"))
            else:
                empty.left_out["empty" if info.blank else "invalid_utf8_skipped"] += 1
            return empty

        def write(writer: TokenizedBlockWriter, stats: ParseStats) -> None:
            stats.left_out["invalid_utf8"] += not info.valid
            text = _GiantText(path)
            length = self._write_long_document(writer, iter(text), stats)
            writer.add_document(text.hash.digest(), length, text.size)

        return self._find_or_write(replace(empty, name=content.hexdigest()), block, names_only, write)

    def _find_or_write(
        self,
        result: TokenizeResult,
        block: Block,
        names_only: bool,
        write: Callable[[TokenizedBlockWriter, ParseStats], None],
    ) -> TokenizeResult:
        """Return ``result`` with its tokenized block, which ``write`` fills if it does not exist."""
        if names_only:
            return result
        folder = self.settings.blocks
        tokenized = find_tokenized_block(folder, result.name)
        if tokenized is not None:
            return _add_block_stats(result, tokenized, block, cached=True)
        stats = ParseStats()
        with new_tokenized_block(folder, result.name, self.settings.dtype) as writer:
            write(writer, stats)
            examples = [
                (error.reason, error.number - block.first_number, error.message) for error in stats.errors.examples
            ]
            writer.finish(+stats.left_out, stats.errors.counts, examples)
        tokenized = find_tokenized_block(folder, result.name)
        assert tokenized is not None
        return _add_block_stats(result, tokenized, block)

    def _load_encoder(self) -> Encoder:
        if self.encoder is None:
            settings = self.settings
            self.encoder = Encoder.load(settings.tokenizer, settings.end_id, settings.vocab_size)
        return self.encoder


class _GiantText:
    """The text of a giant file; after iteration, ``hash`` and ``size`` of its UTF-8."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hash = keyed_hash()
        self.size = 0

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for part in read_giant(self.path):
            yield self._hash_text(decoder.decode(part))
        yield self._hash_text(decoder.decode(b"", final=True))

    def _hash_text(self, text: str) -> str:
        data = text.encode()
        self.hash.update(data)
        self.size += len(data)
        return text


def _add_block_stats(
    result: TokenizeResult, tokenized: TokenizedBlock, block: Block, *, cached: bool = False
) -> TokenizeResult:
    """Add the statistics of a tokenized block to ``result``, with the entry numbers of ``block``."""
    result.left_out.update(tokenized.left_out)
    result.errors.counts.update(tokenized.errors)
    for reason, number, message in tokenized.error_examples:
        error = InputError(reason, block.path, message, block.item, number + block.first_number, block.offset)
        result.errors.examples.append(error)
    return replace(result, block=tokenized, cached=cached)
