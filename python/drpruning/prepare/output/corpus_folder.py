"""Corpus folder: created with an atomic rename, its ``corpus.json`` written last.

``corpus.json`` stores a fingerprint of all inputs of the corpus, so preparing the same corpus again is a no-op.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from drpruning.corpus.manifest import FILE_NAME, SPLITS, Domain, Manifest, Shard, Split, Tokenizer
from drpruning.errors import ConfigError, CorpusError, DiskError, DrpruningError
from drpruning.files import check_free, new_folder
from drpruning.inputs import NO_DESCRIPTORS, shown
from drpruning.prepare.output.layout import DomainLayout
from drpruning.prepare.output.shards import DIGESTS, ShardTask, WrittenShard
from drpruning.prepare.tokenize.tokenized_blocks import TokenizeSettings

TOO_MANY_FILES = "os error 24"
"""Text of the error of Rust libraries for a process with too many open files."""
DOMAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
"""File systems allow 255 bytes, and the files of a domain have up to 27 more."""

ShardKey = tuple[str, Split, int]
"""A domain, a split, and the number of a shard."""


def check_domain_names(names: Iterable[str]) -> None:
    """Check that domain names can be file names, also on case-insensitive file systems.

    Raises:
        ConfigError: A name has other characters, or differs from another in case only.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not DOMAIN_NAME.fullmatch(name):
            raise ConfigError(
                f"domain name {shown(name)}; expected letters, digits, '_', '-' and '.', with a letter or digit first, "
                "up to 200"
            )
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ConfigError(f"domain names {other!r} and {name!r} differ in case only")


def find_corpus(out: Path, sources: str) -> Manifest | None:
    """Return the corpus in ``out`` if it has these sources; None if ``out`` is free for a new one.

    Args:
        out: The corpus folder.
        sources: Fingerprint of the text, the tokenizer and the options.

    Raises:
        CorpusError: ``out`` contains a corpus of other sources, or is not empty.
    """
    if not (out / FILE_NAME).exists():
        check_out(out)
        return None
    manifest = Manifest.read(out)
    if manifest.prepared.get("sources") != sources:
        raise CorpusError(
            f"{out} contains a corpus of other text, options or versions", "Choose another folder, or remove it."
        )
    return manifest


def check_out(out: Path) -> None:
    """Check that a new corpus can be written to ``out``.

    Raises:
        CorpusError: ``out`` is a file, or a folder that is not empty.
    """
    try:
        check_free(out)
    except FileExistsError as error:
        raise CorpusError(f"{error}, or a corpus with its {FILE_NAME}", "Choose another folder.") from error


@contextmanager
def raise_disk_errors(out: Path) -> Iterator[None]:
    """Turn errors of the operating system in the block into a ``DiskError`` for the corpus ``out``.

    Raises:
        DiskError: The disk is full, fails, permission is missing, or the process has too many open files.
    """
    try:
        yield
    except Exception as error:
        # tokenizers raises Exception itself for the errors of the operating system.
        if isinstance(error, DrpruningError) or not (isinstance(error, OSError) or type(error) is Exception):
            raise
        next_step = "Free disk space or fix permissions, then run the same command again."
        if getattr(error, "errno", None) in NO_DESCRIPTORS or TOO_MANY_FILES in str(error):
            next_step = "Allow more open files, for example `ulimit -n 65536`, then run the same command again."
        raise DiskError(f"the corpus {out} cannot be written: {shown(error, 300)}", next_step) from error


@contextmanager
def new_corpus_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, and rename it to ``out`` after the block: :func:`drpruning.files.new_folder`.

    Raises:
        CorpusError: ``out`` is not free, or another process is writing it.
    """
    try:
        with new_folder(out) as folder:
            yield folder
    except FileExistsError as error:
        raise CorpusError(str(error), "Choose another folder.") from error
    except BlockingIOError as error:
        raise CorpusError(
            f"another process is preparing {out}", "Wait until it ends, or choose another folder."
        ) from error


def shard_tasks(layouts: Mapping[str, DomainLayout]) -> Iterator[tuple[ShardKey, ShardTask]]:
    """Yield the shards to write by domain, split and number, in the order of the corpus."""
    for name, layout in layouts.items():
        for split in SPLITS:
            for number, task in enumerate(layout.shards[split]):
                yield (name, split, number), task


def domain_entry(name: str, layout: DomainLayout, written: Mapping[ShardKey, WrittenShard]) -> Domain:
    """Return the entry of a domain in the manifest, from its written shards."""
    items = {split: [written[name, split, number] for number in range(len(layout.shards[split]))] for split in SPLITS}
    shards = {split: [item.shard for item in found] for split, found in items.items()}
    return Domain(
        train=shards["train"],
        validation=shards["validation"],
        test=shards["test"],
        text_bytes=layout.text_bytes,
        held_out_share=layout.fraction,
        left_out=layout.left_out,
        unknown_share=layout.unknown_share,
        byte_share=layout.byte_share,
        digests={
            item.shard.path.with_suffix(DIGESTS).name: item.digests_sha256 for found in items.values() for item in found
        },
    )


def write_manifest(
    folder: Path, settings: TokenizeSettings, domains: dict[str, Domain], prepared: dict[str, Any]
) -> Manifest:
    """Copy the tokenizer into ``folder/tokenizer`` and write ``corpus.json``, which completes the corpus.

    Args:
        folder: Folder of the shards.
        settings: Settings of the tokenization.
        domains: The domains.
        prepared: Notes.
    """
    tokenizer_json = folder / "tokenizer" / "tokenizer.json"
    shutil.copytree(settings.tokenizer, tokenizer_json.parent)
    tokenizer = Tokenizer(
        name=settings.tokenizer_name,
        file=tokenizer_json,
        vocab_size=settings.vocab_size,
        eos_id=settings.end_id,
        sha256=file_sha256(tokenizer_json),
    )
    manifest = Manifest(tokenizer=tokenizer, domains=domains, prepared=prepared)
    manifest.write(folder)
    return manifest


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move_domain(domain: Domain, folder: Path) -> Domain:
    """Return a domain whose shards are in ``folder``."""

    def moved(shards: list[Shard]) -> list[Shard]:
        return [replace(shard, path=folder / shard.path.name) for shard in shards]

    return replace(domain, train=moved(domain.train), validation=moved(domain.validation), test=moved(domain.test))


def append_domain(domain: Domain, addition: Domain) -> Domain:
    """Return a domain with the shards and statistics of an addition."""
    tokens = domain.tokens + domain.held_out_tokens, addition.tokens + addition.held_out_tokens

    def mean(old: float | None, new: float | None) -> float | None:
        if old is None or new is None or sum(tokens) == 0:
            return old
        return (old * tokens[0] + new * tokens[1]) / sum(tokens)

    left_out = Counter(domain.left_out) + Counter(addition.left_out)
    return replace(
        domain,
        train=[*domain.train, *addition.train],
        validation=[*domain.validation, *addition.validation],
        test=[*domain.test, *addition.test],
        text_bytes=None if domain.text_bytes is None else domain.text_bytes + (addition.text_bytes or 0),
        left_out=dict(sorted(left_out.items())),
        unknown_share=mean(domain.unknown_share, addition.unknown_share),
        byte_share=mean(domain.byte_share, addition.byte_share),
        digests=domain.digests | addition.digests,
    )
