"""Your own text to a corpus: domains given as files, a tokenizer given by path or name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from drpruning.corpus_json import FILE_NAME
from drpruning.errors import ConfigError, CorpusError
from drpruning.files import locked, move_files
from drpruning.prepare.documents import Utf8
from drpruning.prepare.duplicates import Marks
from drpruning.prepare.fields import Fields
from drpruning.prepare.gather import DomainSource, Gathered, Watch, gather, reads_stdin
from drpruning.prepare.manifest import Manifest
from drpruning.prepare.plan import SHARD_TOKENS, Existing, plan_corpus
from drpruning.prepare.publish import free_for, on_disk, published
from drpruning.prepare.sources import source_files
from drpruning.prepare.split import HeldOut
from drpruning.prepare.tokenise import DocumentTokenizer, load_tokenizer
from drpruning.prepare.units import units_of
from drpruning.prepare.work import Settings, Station
from drpruning.prepare.workers import Pool
from drpruning.prepare.write import (
    added,
    check_domain_names,
    in_folder,
    settings_for,
    write_manifest,
    write_shards,
)

CONTENT = 2
"""Raised when the same pieces and options yield another corpus than before."""


@dataclass(frozen=True, kw_only=True)
class DomainText:
    """The text of a domain, if it takes more than paths to say.

    Args:
        paths: Files, folders, patterns, ``-``, ``hf:owner/name``.
        fields: How entries become documents.
    """

    paths: Sequence[Path | str]
    fields: Fields = field(default_factory=Fields)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What holds for all domains.

    Args:
        held_out: How much of each domain is held out; None: as the corpus says that is added to, else the defaults.
        utf8: What becomes of text that is not UTF-8.
        max_bad: How many entries and files, all together, may be unusable: broken JSON, no text, damaged, unreadable.
        workers: Processes. One works in this process.
        end_token: Ends a document; None: the tokenizer's own.
        shard_tokens: A shard ends with the piece of text that reaches it.
        near_duplicates: Whether documents that resemble an earlier one are left out; datatrove's MinHash finds them.
    """

    held_out: HeldOut | None = None
    utf8: Utf8 = "replace"
    max_bad: int = 0
    workers: int = 1
    end_token: str | None = None
    shard_tokens: int = SHARD_TOKENS
    near_duplicates: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; at least one has to do the work")
        if self.max_bad < 0:
            raise ConfigError(f"max_bad is {self.max_bad}; it counts entries")


Domains = Mapping[str, "Path | str | Sequence[Path | str] | DomainText"]


def prepare(
    out: Path | str,
    domains: Domains,
    tokenizer: str | None,
    *,
    append: bool = False,
    held_out: HeldOut | None = None,
    text_field: str = "text",
    utf8: Utf8 = "replace",
    max_bad: int = 0,
    workers: int = 1,
    end_token: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
    near_duplicates: bool = False,
    watch: Watch | None = None,
) -> Manifest:
    """Writes a corpus into ``out``, unless the same one is there already, or adds to the one that is there.

    What is tokenised is kept beside ``out`` until the corpus is whole. After an interruption the same call goes on from
    there, and the corpus has the same bytes as without one, for any number of workers.

    Args:
        out: The corpus folder; absent or empty, or this very corpus; with ``append`` any corpus prepared here.
        domains: For each domain files, folders or patterns, or a :class:`DomainText`.
        tokenizer: A folder or ``tokenizer.json``, or a name on the Hugging Face hub; None with ``append``: its own.
        append: Whether to add these domains, or this text to its domains.
        held_out: How much of each domain is held out.
        text_field: Where the text is in an entry, unless a domain says it by itself.
        utf8: What becomes of text that is not UTF-8.
        max_bad: How many entries and files, all together, may be unusable.
        workers: Processes. One works in this process.
        end_token: Ends a document; None: the tokenizer's own.
        shard_tokens: A shard ends with the piece of text that reaches it.
        near_duplicates: Whether documents that resemble an earlier one are left out; datatrove's MinHash finds them.
        watch: Called as the work goes on.

    Raises:
        ConfigError: An argument cannot work: a missing file, no domain, a tokenizer without end token.
        CorpusError: ``out`` is taken or holds another corpus, too much text is unusable, or a domain is empty or too
            small.
        DiskError: The corpus or what is kept beside it cannot be written.
        MissingExtraError: A format needs a package that is not installed.
    """
    options = Options(
        held_out=held_out,
        utf8=utf8,
        max_bad=max_bad,
        workers=workers,
        end_token=end_token,
        shard_tokens=shard_tokens,
        near_duplicates=near_duplicates,
    )
    return Preparation(Path(out), named_texts(domains, text_field), options).run(tokenizer, append=append, watch=watch)


def named_texts(domains: Domains, text_field: str = "text") -> dict[str, DomainText]:
    """Domains, however they are given.

    Raises:
        ConfigError: There is none, or a name cannot be used.
    """
    if not domains:
        raise ConfigError("a corpus needs at least one domain")
    check_domain_names(domains)
    fields = Fields(text=(text_field,))
    texts = {}
    for name, given in domains.items():
        if isinstance(given, DomainText):
            texts[name] = given
        else:
            texts[name] = DomainText(paths=[given] if isinstance(given, Path | str) else given, fields=fields)
    return texts


@dataclass(frozen=True)
class Preparation:
    """One preparation: what is to be done, and where.

    Args:
        out: The corpus folder.
        texts: By domain.
        options: What holds for all.
    """

    out: Path
    texts: Mapping[str, DomainText]
    options: Options

    @property
    def work(self) -> Path:
        """Where pieces are kept until the corpus is whole: beside it."""
        return self.out.absolute().parent / f".{self.out.absolute().name}.work"

    def sources(self) -> dict[str, DomainSource]:
        """What to read, by domain.

        Raises:
            ConfigError: A path does not exist or cannot be read.
        """
        return {
            name: DomainSource(units=tuple(units_of(source_files(text.paths))), fields=text.fields)
            for name, text in self.texts.items()
        }

    def run(self, tokenizer: str | None, *, append: bool = False, watch: Watch | None = None) -> Manifest:
        """Does it; see :func:`prepare`."""
        exists = (self.out / FILE_NAME).exists()
        if append and not exists:
            raise ConfigError(f"{self.out} holds no corpus to add to", "Leave out --append to make a new one.")
        sources = self.sources()
        if self.options.near_duplicates and reads_stdin(sources):
            raise ConfigError("near duplicates are found by reading the text twice, which stdin does not allow")
        if tokenizer is None:
            if not append:
                raise ConfigError("a new corpus needs a tokenizer")
            tokenizer = str(self.out / "tokenizer")
        before = Manifest.read(self.out) if exists else None
        end_token = self.options.end_token
        if append and before is not None and end_token is None:
            end_token = before.prepared.get("end_token")
        loaded = load_tokenizer(tokenizer, end_token)
        if before is None:
            free_for(self.out)
        elif append:
            self._check_same(before, loaded)
        with on_disk(self.out), self._working() as work:
            settings = replace(settings_for(loaded, work), utf8=self.options.utf8)
            with Pool(Station(settings, loaded.encoder), self.options.workers) as pool:
                if before is not None and not append:
                    gathered = gather(pool, sources, watch=watch, names_only=True)
                    if before.prepared.get("sources") != self._fingerprint(gathered, settings):
                        raise CorpusError(
                            f"{self.out} holds a corpus made from other text, options or versions",
                            "Choose another folder, remove it, or add to it with --append.",
                        )
                    return before
                gathered = gather(pool, sources, max_bad=self.options.max_bad, watch=watch)
                if before is not None:
                    return self._append(before, gathered, pool, settings)
                return self._publish(gathered, pool, settings)

    def notes(self, gathered: Mapping[str, Gathered], settings: Settings) -> dict[str, Any]:
        """What ``corpus.json`` is to remember of the preparation."""
        return {
            "sources": self._fingerprint(gathered, settings),
            "end_token": settings.end_token,
            "tokenizer_sha256": settings.tokenizer_sha256,
            "held_out": asdict(self.options.held_out or HeldOut()),
        }

    def _publish(self, gathered: dict[str, Gathered], pool: Pool, settings: Settings) -> Manifest:
        rule = self.options.held_out or HeldOut()
        near = self._near(gathered)
        with published(self.out) as folder:
            plans = plan_corpus(
                gathered,
                rule,
                settings.pieces,
                self.work,
                folder,
                near=near,
                shard_tokens=self.options.shard_tokens,
            )
            write_manifest(folder, settings, write_shards(pool, plans), self.notes(gathered, settings))
        return Manifest.read(self.out)

    def _append(
        self,
        before: Manifest,
        gathered: dict[str, Gathered],
        pool: Pool,
        settings: Settings,
    ) -> Manifest:
        """Writes the new shards aside, moves them into the corpus, and last of all replaces its ``corpus.json``."""
        rule = self.options.held_out or HeldOut(**before.prepared["held_out"])
        fingerprint = self._fingerprint(gathered, settings)
        was_added = before.prepared.get("added", [])
        if fingerprint in [before.prepared["sources"], *was_added]:
            return before
        existing = {
            name: Existing(share=domain.held_out_share or 0.0, train=len(domain.train), eval=len(domain.eval))
            for name, domain in before.domains.items()
        }
        seen = [self.out / name for domain in before.domains.values() for name in domain.digests]
        aside = self.work / "added"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        plans = plan_corpus(
            gathered,
            rule,
            settings.pieces,
            self.work,
            aside,
            existing=existing,
            seen=seen,
            near=self._near(gathered),
            shard_tokens=self.options.shard_tokens,
        )
        written = {name: in_folder(domain, self.out) for name, domain in write_shards(pool, plans).items()}
        domains = dict(before.domains)
        for name, domain in written.items():
            domains[name] = added(domains[name], domain) if name in domains else domain
        move_files(aside, self.out)
        prepared = before.prepared | {"added": [*was_added, fingerprint]}
        Manifest(tokenizer=before.tokenizer, domains=domains, prepared=prepared).write(self.out)
        return Manifest.read(self.out)

    def _near(self, gathered: Mapping[str, Gathered]) -> Marks | None:
        if not self.options.near_duplicates:
            return None
        from drpruning.prepare.near_duplicates import near_duplicates  # noqa: PLC0415 -- needs an extra

        expected = sum(piece.documents for found in gathered.values() for piece in found.pieces)
        options = self.options
        return near_duplicates(self.sources(), options.utf8, options.workers, self.work, expected=expected)

    def _check_same(self, before: Manifest, loaded: DocumentTokenizer) -> None:
        if "tokenizer_sha256" not in before.prepared:
            raise CorpusError(
                f"{self.out} was not made from files by this version of `drpruning prepare`, so nothing can be added",
                "Prepare a new corpus from all of the text.",
            )
        if before.prepared["tokenizer_sha256"] != loaded.sha256 or before.prepared["end_token"] != loaded.end_token:
            raise CorpusError(
                f"{self.out} was made with another tokenizer than {loaded.name}",
                "Leave out --tokenizer to use its own.",
            )
        for name, domain in before.domains.items():
            for file in domain.digests:
                if not (self.out / file).exists():
                    raise CorpusError(f"{self.out / file} is missing: the digests of documents of domain {name!r}")

    def _fingerprint(self, gathered: Mapping[str, Gathered], settings: Settings) -> str:
        decides = {
            "content": CONTENT,
            "tokenizer": [settings.tokenizer_sha256, settings.end_token],
            "held_out": asdict(self.options.held_out or HeldOut()),
            "shard_tokens": self.options.shard_tokens,
            "near_duplicates": self.options.near_duplicates,
            "text": {name: found.names for name, found in gathered.items()},
        }
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    @contextmanager
    def _working(self) -> Iterator[Path]:
        """The work folder, which is ours alone; removed when all is done, kept when not, unless nothing is in it.

        Raises:
            CorpusError: Another process has it.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.work):
                try:
                    yield self.work
                except BaseException:
                    if not any((self.work / "pieces").rglob("*" + ".piece")):
                        shutil.rmtree(self.work, ignore_errors=True)
                    raise
                shutil.rmtree(self.work, ignore_errors=True)
        except BlockingIOError as error:
            raise CorpusError(
                f"another process is preparing {self.out}", "Wait until it is done, or choose another folder."
            ) from error
