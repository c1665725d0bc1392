"""Tokenizes the text of all domains on a process pool; counts input errors and raises when there are too many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from drpruning.errors import CorpusError
from drpruning.prepare.pipeline.process_pool import ProcessPool
from drpruning.prepare.pipeline.tasks import BlockTask, Task, TokenizeResult, UnitTask
from drpruning.prepare.readers import read_blocks
from drpruning.prepare.readers.blocks import ERROR_EXAMPLES, DomainSource, InputError, ReadUnit
from drpruning.prepare.readers.compressed import STDIN
from drpruning.prepare.tokenize.tokenized_blocks import DomainBlocks

STREAM_SIZE = 64 << 20
"""Compressed files from this size on are decompressed in the parent process, which sends their blocks to the workers;
a smaller file is read by one worker. Decompression is some 50 times as fast as tokenization."""


@dataclass(frozen=True)
class TokenizeProgress:
    """Progress since the previous call.

    Args:
        domain: The domain.
        bytes_read: Bytes on disk.
        documents: Documents tokenized.
        text_bytes: Their bytes of UTF-8.
        tokens: Their tokens.
        cached: Whether an earlier, interrupted preparation had tokenized them.
        errors: The first few input errors.
        began: Start of the tokenization, by ``time.monotonic``.
    """

    domain: str
    bytes_read: int
    documents: int
    text_bytes: int
    tokens: int
    cached: bool = False
    errors: tuple[InputError, ...] = ()
    began: float = 0.0


ProgressCallback = Callable[[TokenizeProgress], None]


def tokenize_all(
    pool: ProcessPool,
    domains: Mapping[str, DomainSource],
    *,
    max_errors: int = 0,
    on_progress: ProgressCallback | None = None,
    names_only: bool = False,
) -> dict[str, DomainBlocks]:
    """Tokenize the text of all domains, or compute the names of their tokenized blocks.

    Args:
        pool: The workers.
        domains: By name.
        max_errors: Input errors allowed, in all domains together.
        on_progress: Called after each block.
        names_only: Read and hash the text without tokenizing it.

    Raises:
        CorpusError: There were more than ``max_errors`` input errors; the message has the first one.
    """
    results: dict[str, dict[tuple[int, int], list[TokenizeResult]]] = {name: {} for name in domains}
    began = time.monotonic()
    num_errors = 0
    for (name, unit, block), unit_results in pool.run(_tokenize_tasks(domains, names_only)):
        assert isinstance(unit_results, list)
        results[name][unit, block] = unit_results
        for result in unit_results:
            num_errors += result.errors.counts.total()
            if num_errors > max_errors and not names_only:
                raise too_many_errors(num_errors, max_errors, result.errors.examples[0])
            if on_progress is not None:
                on_progress(_progress(name, result, began))
    tokenized = {}
    for name, by_place in results.items():
        domain = tokenized[name] = DomainBlocks()
        for place in sorted(by_place):
            for result in by_place[place]:
                if result.name:
                    domain.names.append(result.name)
                if result.block is not None:
                    domain.blocks.append(result.block)
                domain.left_out += result.left_out + result.errors.counts
                domain.error_examples += result.errors.examples[: ERROR_EXAMPLES - len(domain.error_examples)]
    return tokenized


def reads_stdin(domains: Mapping[str, DomainSource]) -> bool:
    """Return whether a domain reads the standard input, which only one process can read, and only once."""
    return any(STDIN in unit.files for source in domains.values() for unit in source.units)


def too_many_errors(num_errors: int, max_errors: int, first: InputError) -> CorpusError:
    """Return the exception for more input errors than allowed."""
    next_step = "Fix it, or skip up to N such entries with --max-errors N; the report counts them."
    if first.reason == "missing_text":
        next_step = "Name the key with --text-field, or skip up to N such entries with --max-errors N."
    message = str(first)
    if max_errors:
        message = f"{num_errors} input errors, more than --max-errors {max_errors}; for example {message}"
    return CorpusError(message, next_step)


def _tokenize_tasks(
    domains: Mapping[str, DomainSource], names_only: bool
) -> Iterator[tuple[tuple[str, int, int], Task]]:
    for name, source in domains.items():
        if source.blocks is not None:
            for number, block in enumerate(source.blocks()):
                yield (name, 0, number), BlockTask(block, source.fields, names_only)
        for place, unit in enumerate(source.units):
            if _is_stream(unit):
                for number, block in enumerate(read_blocks(unit, source.fields)):
                    yield (name, place, number), BlockTask(block, source.fields, names_only)
            else:
                yield (name, place, 0), UnitTask(unit, source.fields, names_only)


def _is_stream(unit: ReadUnit) -> bool:
    whole_file = unit.end is None and unit.format in {"lines", "json", "arrow"}
    return STDIN in unit.files or (whole_file and unit.size >= STREAM_SIZE)


def _progress(name: str, result: TokenizeResult, began: float) -> TokenizeProgress:
    block = result.block
    documents, text_bytes, tokens = (block.documents, block.text_bytes, block.tokens) if block else (0, 0, 0)
    errors = tuple(result.errors.examples)
    return TokenizeProgress(name, result.bytes_read, documents, text_bytes, tokens, result.cached, errors, began)
