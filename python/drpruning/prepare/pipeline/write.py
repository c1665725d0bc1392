"""Writes the shards of a layout on a process pool, and whole corpora of texts in memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from drpruning.corpus.manifest import Domain, Manifest
from drpruning.prepare.output.corpus_folder import check_domain_names, domain_entry, shard_tasks, write_manifest
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.output.layout import DomainLayout, compute_layout
from drpruning.prepare.output.megatron import dtype_for
from drpruning.prepare.output.shards import WrittenShard
from drpruning.prepare.pipeline.process_pool import ProcessPool
from drpruning.prepare.pipeline.tasks import TaskRunner
from drpruning.prepare.pipeline.tokenize_all import ProgressCallback, tokenize_all
from drpruning.prepare.readers.blocks import BLOCK_SIZE, Block, DomainSource, pack_texts
from drpruning.prepare.tokenize.tokenized_blocks import TokenizeSettings
from drpruning.prepare.tokenize.tokenizer import DocumentTokenizer

WORK_FOLDER = ".work"


def write_corpus(
    folder: Path,
    domains: Mapping[str, Sequence[str]],
    tokenizer: DocumentTokenizer,
    *,
    holdout: Holdout,
    prepared: dict[str, Any],
    groups: Mapping[str, Sequence[str]] | None = None,
    max_overlap: float | None = None,
    on_progress: ProgressCallback | None = None,
) -> Manifest:
    """Write a corpus of texts in memory, in this process; ``corpus.json`` is written last.

    Args:
        folder: An empty folder.
        domains: Documents by domain name.
        tokenizer: The tokenizer; it is saved into ``folder/tokenizer``.
        holdout: Size of the holdout of each domain.
        prepared: Notes for ``corpus.json``.
        groups: Group of each document by domain name; None: each document is its own group.
        max_overlap: See :func:`~drpruning.prepare.output.layout.compute_layout`.
        on_progress: Called after each block.

    Raises:
        ConfigError: A domain name cannot be used.
        CorpusError: A domain has no text, or too few documents for training and held-out text.
    """
    check_domain_names(domains)
    work = folder / WORK_FOLDER
    settings = save_tokenizer(tokenizer, work)
    sources = {
        name: DomainSource(blocks=_TextBlocks(name, texts, None if groups is None else groups[name]))
        for name, texts in domains.items()
    }
    with ProcessPool(TaskRunner(settings, tokenizer.encoder)) as pool:
        tokenized = tokenize_all(pool, sources, on_progress=on_progress)
        layouts = compute_layout(tokenized, holdout, settings.blocks, work, folder, max_overlap=max_overlap)
        manifest = write_manifest(folder, settings, write_shards(pool, layouts), prepared)
    shutil.rmtree(work)
    return manifest


def save_tokenizer(tokenizer: DocumentTokenizer, work: Path) -> TokenizeSettings:
    """Save the tokenizer into ``work`` for the workers, create the folder of tokenized blocks; return the settings."""
    (work / "blocks").mkdir(parents=True, exist_ok=True)
    tokenizer.save(work / "tokenizer")
    return TokenizeSettings(
        blocks=work / "blocks",
        tokenizer=work / "tokenizer",
        tokenizer_name=tokenizer.name,
        end_token=tokenizer.end_token,
        tokenizer_sha256=tokenizer.sha256,
        end_id=tokenizer.end_id,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype_for(tokenizer.vocab_size),
    )


def write_shards(pool: ProcessPool, layouts: Mapping[str, DomainLayout]) -> dict[str, Domain]:
    """Write the shards of all domains and return the domains' manifest entries.

    Args:
        pool: The workers.
        layouts: Layouts by domain.
    """
    written = {}
    for key, result in pool.run(shard_tasks(layouts)):
        assert isinstance(result, WrittenShard)
        written[key] = result
    return {name: domain_entry(name, layout, written) for name, layout in layouts.items()}


class _TextBlocks:
    """Makes the blocks of texts in memory."""

    def __init__(self, name: str, texts: Sequence[str], groups: Sequence[str] | None) -> None:
        self.name = name
        self.texts = texts
        self.groups = groups

    def __call__(self) -> Iterator[Block]:
        batch: list[bytes] = []
        size, first = 0, 1
        for number, text in enumerate(self.texts, start=1):
            batch.append(text.encode(errors="replace"))
            size += len(batch[-1])
            if size >= BLOCK_SIZE or number == len(self.texts):
                groups = None if self.groups is None else tuple(self.groups[first - 1 : number])
                packed = pack_texts(batch)
                yield Block("documents", packed, self.name, first, item="document", bytes_read=size, groups=groups)
                first += len(batch)
                batch, size = [], 0
