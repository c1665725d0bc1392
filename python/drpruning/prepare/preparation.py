"""Preparation of a corpus: reads text files, tokenizes, deduplicates, and writes or extends a corpus folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from drpruning.corpus.manifest import FILE_NAME, SPLITS, Manifest
from drpruning.errors import ConfigError, CorpusError
from drpruning.files import create_own_folder, locked, move_files
from drpruning.prepare.dedup.exact import DocumentBitmap
from drpruning.prepare.dedup.minhash import find_near_duplicates
from drpruning.prepare.output.corpus_folder import (
    append_domain,
    check_domain_names,
    check_out,
    move_domain,
    new_corpus_folder,
    raise_disk_errors,
    write_manifest,
)
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.output.layout import SHARD_TOKENS, ExistingDomain, compute_layout
from drpruning.prepare.pipeline.process_pool import ProcessPool
from drpruning.prepare.pipeline.tasks import TaskRunner
from drpruning.prepare.pipeline.tokenize_all import ProgressCallback, reads_stdin, tokenize_all
from drpruning.prepare.pipeline.write import save_tokenizer, write_shards
from drpruning.prepare.readers import divide_files
from drpruning.prepare.readers.blocks import DomainSource
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.source_files import skipped_suffixes, source_files
from drpruning.prepare.readers.text import Utf8
from drpruning.prepare.tokenize.tokenized_blocks import SUFFIX, DomainBlocks, TokenizeSettings
from drpruning.prepare.tokenize.tokenizer import DocumentTokenizer, load_tokenizer

CONTENT_VERSION = 3
"""Increased when the same tokenized blocks and options yield another corpus than before."""


@dataclass(frozen=True, kw_only=True)
class DomainText:
    """The text of a domain: paths and a field mapping.

    Args:
        paths: Files, folders, patterns, ``-``, ``hf://datasets/OWNER/NAME``.
        fields: Mapping of entries to documents.
    """

    paths: Sequence[Path | str]
    fields: FieldMapping = field(default_factory=FieldMapping)


Domains = Mapping[str, "Path | str | Sequence[Path | str] | DomainText"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a preparation, the same for all domains.

    Args:
        holdout: Size of the holdout of each domain; None: that of the corpus to append to, else the default.
        utf8: Policy for invalid UTF-8: ``replace``, ``skip`` or ``fail``.
        max_errors: Input errors allowed in all domains together: broken JSON, entries without text, damaged files.
        workers: Number of processes. One: everything runs in this process.
        end_token: Token that ends a document; None: the tokenizer's.
        shard_tokens: A shard ends with the tokenized block that reaches this.
        near_duplicates: Drop documents that resemble an earlier one, found with datatrove's MinHash.
        text_suffixes: More suffixes of text files, such as ``.py``; a file is one document.
    """

    holdout: Holdout | None = None
    utf8: Utf8 = "replace"
    max_errors: int = 0
    workers: int = 1
    end_token: str | None = None
    shard_tokens: int = SHARD_TOKENS
    near_duplicates: bool = False
    text_suffixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; expected at least 1")
        if self.max_errors < 0:
            raise ConfigError(f"max_errors is {self.max_errors}; expected at least 0")
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens is {self.shard_tokens}; expected at least 1")
        if self.utf8 not in get_args(Utf8):
            raise ConfigError(f"utf8 is {self.utf8!r}; expected {', '.join(get_args(Utf8))}")


def prepare(
    out: Path | str,
    domains: Domains,
    tokenizer: Path | str | None,
    *,
    append: bool = False,
    holdout: Holdout | None = None,
    text_field: str = "text",
    utf8: Utf8 = "replace",
    max_errors: int = 0,
    workers: int = 1,
    end_token: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
    near_duplicates: bool = False,
    text_suffixes: Sequence[str] = (),
    on_progress: ProgressCallback | None = None,
) -> Manifest:
    """Write a corpus into ``out``, unless ``out`` has it already, or append to the corpus in ``out``.

    A work folder next to ``out`` keeps tokenized blocks until the corpus is complete. After an interruption the same
    call resumes from them. The corpus has the same bytes with and without interruptions, for any number of workers.

    Args:
        out: The corpus folder: absent, empty, or this corpus; with ``append`` any corpus that this package prepared.
        domains: For each domain files, folders or patterns, or a :class:`DomainText`.
        tokenizer: A folder or ``tokenizer.json``, or a name on the Hugging Face hub; None with ``append``: that of the
            corpus.
        append: Add these domains, or this text to existing domains.
        holdout: Size of the holdout of each domain.
        text_field: Field with the text of an entry, for domains without a :class:`DomainText`.
        utf8: Policy for invalid UTF-8: ``replace``, ``skip`` or ``fail``.
        max_errors: Input errors allowed in all domains together.
        workers: Number of processes. One: everything runs in this process.
        end_token: Token that ends a document; None: the tokenizer's.
        shard_tokens: A shard ends with the tokenized block that reaches this.
        near_duplicates: Drop documents that resemble an earlier one, found with datatrove's MinHash.
        text_suffixes: More suffixes of text files, such as ``.py``; a file is one document.
        on_progress: Called after each block.

    Raises:
        ConfigError: An argument is invalid: a missing file, no domain, a tokenizer without end token.
        CorpusError: ``out`` is not free, there are too many input errors, or a domain is empty or too small.
        DiskError: The corpus or the work folder cannot be written.
        MissingExtraError: A format needs a package that is not installed.
    """
    options = Options(
        holdout=holdout,
        utf8=utf8,
        max_errors=max_errors,
        workers=workers,
        end_token=end_token,
        shard_tokens=shard_tokens,
        near_duplicates=near_duplicates,
        text_suffixes=tuple(text_suffixes),
    )
    preparation = Preparation(Path(out), domain_texts(domains, text_field), options)
    name = None if tokenizer is None else str(tokenizer)
    return preparation.run(name, append=append, on_progress=on_progress)


def domain_texts(domains: Domains, text_field: str = "text") -> dict[str, DomainText]:
    """Convert domains to :class:`DomainText`, and check their names.

    Raises:
        ConfigError: There is no domain, or a name cannot be used.
    """
    if not domains:
        raise ConfigError("a corpus needs at least one domain")
    check_domain_names(domains)
    fields = FieldMapping(text=(text_field,))
    texts = {}
    for name, text in domains.items():
        if isinstance(text, DomainText):
            texts[name] = text
        else:
            texts[name] = DomainText(paths=[text] if isinstance(text, Path | str) else text, fields=fields)
    return texts


@dataclass(frozen=True)
class Preparation:
    """One preparation of a corpus.

    Args:
        out: The corpus folder.
        texts: The text by domain.
        options: Options for all domains.
    """

    out: Path
    texts: Mapping[str, DomainText]
    options: Options

    @property
    def work(self) -> Path:
        """The work folder, next to the corpus folder."""
        return self.out.absolute().parent / f".{self.out.absolute().name}.work"

    def create_work_folder(self) -> None:
        """Create the work folder; it may exist.

        Raises:
            CorpusError: It is a link, or belongs to another user.
        """
        try:
            create_own_folder(self.work)
        except FileExistsError as error:
            raise CorpusError(str(error), "Remove it, or choose another folder.") from error

    def sources(self) -> dict[str, DomainSource]:
        """Return the read units of each domain.

        Raises:
            ConfigError: A path does not exist or cannot be read.
        """
        return {
            name: DomainSource(
                units=tuple(divide_files(source_files(text.paths, self.options.text_suffixes))), fields=text.fields
            )
            for name, text in self.texts.items()
        }

    def skipped_files(self) -> dict[str, dict[str, int]]:
        """Return, for each domain with folders that hold files of other formats, their number by suffix."""
        counts = {name: skipped_suffixes(text.paths, self.options.text_suffixes) for name, text in self.texts.items()}
        return {name: suffixes for name, suffixes in counts.items() if suffixes}

    def run(
        self, tokenizer: str | None, *, append: bool = False, on_progress: ProgressCallback | None = None
    ) -> Manifest:
        """Run the preparation; see :func:`prepare`."""
        exists = (self.out / FILE_NAME).exists()
        if append and not exists:
            raise ConfigError(f"{self.out} contains no corpus to append to", "Omit --append to make a new corpus.")
        sources = self.sources()
        if self.options.near_duplicates and reads_stdin(sources):
            raise ConfigError("near duplicates need a second pass over the text, which stdin does not allow")
        if tokenizer is None:
            if not append:
                raise ConfigError("a new corpus needs a tokenizer")
            tokenizer = str(self.out / "tokenizer")
        existing = Manifest.read(self.out) if exists else None
        end_token = self.options.end_token
        if append and existing is not None and end_token is None:
            end_token = existing.prepared.get("end_token")
        loaded = load_tokenizer(tokenizer, end_token)
        if existing is None:
            check_out(self.out)
        elif append:
            self._check_can_append(existing, loaded)
        with raise_disk_errors(self.out), self._lock_work_folder() as work:
            if existing is not None:  # another process may have extended the corpus before this one had the lock
                existing = Manifest.read(self.out)
            settings = replace(save_tokenizer(loaded, work), utf8=self.options.utf8)
            with ProcessPool(TaskRunner(settings, loaded.encoder), self.options.workers) as pool:
                if existing is not None and not append:
                    tokenized = tokenize_all(pool, sources, on_progress=on_progress, names_only=True)
                    if existing.prepared.get("sources") != self._fingerprint(tokenized, settings):
                        raise CorpusError(
                            f"{self.out} contains a corpus of other text, options or versions",
                            "Choose another folder, remove it, or add to it with --append.",
                        )
                    return existing
                tokenized = tokenize_all(pool, sources, max_errors=self.options.max_errors, on_progress=on_progress)
                if existing is not None:
                    return self._append(existing, tokenized, pool, settings)
                return self._write(tokenized, pool, settings)

    def notes(self, tokenized: Mapping[str, DomainBlocks], settings: TokenizeSettings) -> dict[str, Any]:
        """Return the notes of the preparation for ``corpus.json``."""
        return {
            "sources": self._fingerprint(tokenized, settings),
            "end_token": settings.end_token,
            "tokenizer_sha256": settings.tokenizer_sha256,
            "held_out": (self.options.holdout or Holdout()).to_notes(),
        }

    def _write(self, tokenized: dict[str, DomainBlocks], pool: ProcessPool, settings: TokenizeSettings) -> Manifest:
        near_duplicates = self._find_near_duplicates(tokenized)
        with new_corpus_folder(self.out) as folder:
            layouts = compute_layout(
                tokenized,
                self.options.holdout or Holdout(),
                settings.blocks,
                self.work,
                folder,
                near_duplicates=near_duplicates,
                shard_tokens=self.options.shard_tokens,
            )
            write_manifest(folder, settings, write_shards(pool, layouts), self.notes(tokenized, settings))
        return Manifest.read(self.out)

    def _append(
        self, existing: Manifest, tokenized: dict[str, DomainBlocks], pool: ProcessPool, settings: TokenizeSettings
    ) -> Manifest:
        """Write new shards into the work folder, move them into the corpus, and finally replace ``corpus.json``."""
        holdout = self.options.holdout or Holdout.from_notes(existing.prepared["held_out"])
        fingerprint = self._fingerprint(tokenized, settings)
        additions = existing.prepared.get("added", [])
        if fingerprint in [existing.prepared["sources"], *additions]:
            return existing
        existing_domains = {
            name: ExistingDomain(
                fraction=domain.held_out_share or 0.0, shards={split: len(domain.shards(split)) for split in SPLITS}
            )
            for name, domain in existing.domains.items()
        }
        folder = self.work / "added"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        layouts = compute_layout(
            tokenized,
            holdout,
            settings.blocks,
            self.work,
            folder,
            existing=existing_domains,
            existing_digests=[self.out / name for domain in existing.domains.values() for name in domain.digests],
            near_duplicates=self._find_near_duplicates(tokenized),
            shard_tokens=self.options.shard_tokens,
        )
        written = {name: move_domain(domain, self.out) for name, domain in write_shards(pool, layouts).items()}
        domains = dict(existing.domains)
        for name, domain in written.items():
            domains[name] = append_domain(domains[name], domain) if name in domains else domain
        move_files(folder, self.out)
        prepared = existing.prepared | {"added": [*additions, fingerprint]}
        Manifest(tokenizer=existing.tokenizer, domains=domains, prepared=prepared).write(self.out)
        return Manifest.read(self.out)

    def _find_near_duplicates(self, tokenized: Mapping[str, DomainBlocks]) -> DocumentBitmap | None:
        if not self.options.near_duplicates:
            return None
        documents = sum(block.documents for domain in tokenized.values() for block in domain.blocks)
        options = self.options
        return find_near_duplicates(self.sources(), options.utf8, options.workers, self.work, expected=documents)

    def _check_can_append(self, existing: Manifest, loaded: DocumentTokenizer) -> None:
        """Check tokenizer and digests of the corpus to append to."""
        notes = existing.prepared
        if "tokenizer_sha256" not in notes:
            raise CorpusError(
                f"{self.out} was not made from files by this version of `drpruning prepare`, so it cannot be extended",
                "Prepare a new corpus from all of the text.",
            )
        if notes["tokenizer_sha256"] != loaded.sha256:
            raise CorpusError(
                f"{self.out} was made with another tokenizer than {loaded.name}",
                "Leave out --tokenizer to use the corpus's tokenizer.",
            )
        if notes["end_token"] != loaded.end_token:
            raise CorpusError(
                f"documents of {self.out} end with {notes['end_token']!r}, not with {loaded.end_token!r}",
                "Leave out --end-token to use the corpus's end token.",
            )
        for name, domain in existing.domains.items():
            for file in domain.digests:
                if not (self.out / file).exists():
                    raise CorpusError(f"{self.out / file} is missing: the digests of documents of domain {name!r}")

    def _fingerprint(self, tokenized: Mapping[str, DomainBlocks], settings: TokenizeSettings) -> str:
        """Return the SHA-256 of everything that decides the corpus."""
        inputs = {
            "content": CONTENT_VERSION,
            "tokenizer": [settings.tokenizer_sha256, settings.end_token],
            "held_out": (self.options.holdout or Holdout()).to_notes(),
            "shard_tokens": self.options.shard_tokens,
            "near_duplicates": self.options.near_duplicates,
            "text": {name: domain.names for name, domain in tokenized.items()},
        }
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()

    @contextmanager
    def _lock_work_folder(self) -> Iterator[Path]:
        """Create and lock the work folder; remove it on success, and on failure if it holds no tokenized block.

        Raises:
            CorpusError: Another process holds the lock; or as :meth:`create_work_folder`.
        """
        self.create_work_folder()
        try:
            with locked(self.work):
                try:
                    yield self.work
                except BaseException:
                    if not any((self.work / "blocks").rglob("*" + SUFFIX)):
                        shutil.rmtree(self.work, ignore_errors=True)
                    raise
                shutil.rmtree(self.work, ignore_errors=True)
        except BlockingIOError as error:
            raise CorpusError(
                f"another process is preparing {self.out}", "Wait until it ends, or choose another folder."
            ) from error
