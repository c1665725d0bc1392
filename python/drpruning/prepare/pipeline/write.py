"""From pieces to a corpus folder: shards written by all workers, then ``corpus.json``."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from drpruning.corpus_json import Shard, Tokenizer
from drpruning.errors import ConfigError
from drpruning.prepare.gather import DomainSource, Watch, gather
from drpruning.prepare.manifest import Domain, Manifest
from drpruning.prepare.megatron import dtype_for
from drpruning.prepare.plan import DomainPlan, plan_corpus
from drpruning.prepare.shards import DIGESTS, ShardJob, WrittenShard
from drpruning.prepare.split import HeldOut
from drpruning.prepare.tokenise import DocumentTokenizer
from drpruning.prepare.units import BLOCK_SIZE, Block, packed
from drpruning.prepare.work import Settings, Station
from drpruning.prepare.workers import Pool

DOMAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
WORK = ".work"

ShardKey = tuple[str, str, int]
"""A domain, ``train`` or ``eval``, and a number."""


class Documents(Protocol):
    """A domain's text in memory, one document after the other."""

    def __iter__(self) -> Iterator[str]:
        """The documents in an order that depends on the sources alone."""


def check_domain_names(names: Iterable[str]) -> None:
    """Domain names are file names too, on file systems that do not tell ``A`` from ``a``.

    Raises:
        ConfigError: A name has other characters, or differs from another in case only.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not DOMAIN_NAME.fullmatch(name):
            raise ConfigError(f"domain name {name!r}; wanted letters, digits, '_', '-', '.', not starting with a sign")
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise ConfigError(f"domain names {other!r} and {name!r} differ in case only")


def write_corpus(
    folder: Path,
    domains: Mapping[str, Documents],
    tokenizer: DocumentTokenizer,
    *,
    held_out: HeldOut,
    prepared: dict[str, Any],
    watch: Watch | None = None,
) -> Manifest:
    """Fills ``folder`` with a corpus of texts that are in memory, in this process; ``corpus.json`` is written last.

    Args:
        folder: An empty folder.
        domains: Documents by domain name.
        tokenizer: Turns them into tokens, saved into ``folder/tokenizer``.
        held_out: How much is held out of each domain.
        prepared: Notes for ``corpus.json``.
        watch: Called as the work goes on.

    Raises:
        ConfigError: A domain name cannot be used.
        CorpusError: A domain has no text, or too few documents to have some on both sides.
    """
    check_domain_names(domains)
    work = folder / WORK
    settings = settings_for(tokenizer, work)
    sources = {name: DomainSource(blocks=_InMemory(name, texts)) for name, texts in domains.items()}
    with Pool(Station(settings, tokenizer.encoder)) as pool:
        gathered = gather(pool, sources, watch=watch)
        plans = plan_corpus(gathered, held_out, settings.pieces, work, folder)
        manifest = write_manifest(folder, settings, write_shards(pool, plans), prepared)
    shutil.rmtree(work)
    return manifest


def settings_for(tokenizer: DocumentTokenizer, work: Path) -> Settings:
    """What the workers are to know; makes the folder of pieces and saves the tokenizer into ``work``."""
    (work / "pieces").mkdir(parents=True, exist_ok=True)
    tokenizer.save(work / "tokenizer")
    return Settings(
        pieces=work / "pieces",
        tokenizer=work / "tokenizer",
        tokenizer_name=tokenizer.name,
        end_token=tokenizer.end_token,
        tokenizer_sha256=tokenizer.sha256,
        end_id=tokenizer.end_id,
        vocab_size=tokenizer.vocab_size,
        dtype=dtype_for(tokenizer.vocab_size),
    )


def write_shards(pool: Pool, plans: Mapping[str, DomainPlan]) -> dict[str, Domain]:
    """Writes what was planned.

    Args:
        pool: The workers.
        plans: By domain.
    """
    written = {}
    for key, result in pool.run(jobs_of(plans)):
        assert isinstance(result, WrittenShard)
        written[key] = result
    return {name: domain_of(name, plan, written) for name, plan in plans.items()}


def jobs_of(plans: Mapping[str, DomainPlan]) -> Iterator[tuple[ShardKey, ShardJob]]:
    """The shards to write, by domain, side and number, in the order of the corpus."""
    for name, plan in plans.items():
        for side, jobs in (("train", plan.train), ("eval", plan.eval)):
            for number, job in enumerate(jobs):
                yield (name, side, number), job


def write_manifest(folder: Path, settings: Settings, domains: dict[str, Domain], prepared: dict[str, Any]) -> Manifest:
    """Copies the tokenizer into ``folder/tokenizer`` and writes ``corpus.json``, which makes the folder a corpus.

    Args:
        folder: Where the shards are.
        settings: What made the tokens.
        domains: What is there.
        prepared: Notes.
    """
    tokenizer_json = folder / "tokenizer" / "tokenizer.json"
    shutil.copytree(settings.tokenizer, tokenizer_json.parent)
    described = Tokenizer(
        name=settings.tokenizer_name,
        file=tokenizer_json,
        vocab_size=settings.vocab_size,
        eos_id=settings.end_id,
        sha256=file_sha256(tokenizer_json),
    )
    manifest = Manifest(tokenizer=described, domains=domains, prepared=prepared)
    manifest.write(folder)
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def domain_of(name: str, plan: DomainPlan, written: Mapping[ShardKey, WrittenShard]) -> Domain:
    """A domain as its shards were written, by name, side and number."""
    train = [written[name, "train", number] for number in range(len(plan.train))]
    held_out = [written[name, "eval", number] for number in range(len(plan.eval))]
    return Domain(
        train=[item.shard for item in train],
        eval=[item.shard for item in held_out],
        text_bytes=plan.text_bytes,
        held_out_share=plan.share,
        left_out=plan.left_out,
        unknown_share=plan.unknown_share,
        byte_share=plan.byte_share,
        digests={item.shard.path.with_suffix(DIGESTS).name: item.digests_sha256 for item in (*train, *held_out)},
    )


class _InMemory:
    """Texts as blocks."""

    def __init__(self, name: str, texts: Documents) -> None:
        self.name = name
        self.texts = texts

    def __call__(self) -> Iterator[Block]:
        batch: list[bytes] = []
        size, first = 0, 1
        for text in self.texts:
            batch.append(text.encode(errors="replace"))
            size += len(batch[-1])
            if size >= BLOCK_SIZE:
                yield Block("documents", packed(batch), self.name, first, word="document", read=size)
                first += len(batch)
                batch, size = [], 0
        if batch:
            yield Block("documents", packed(batch), self.name, first, word="document", read=size)


def in_folder(domain: Domain, folder: Path) -> Domain:
    """A domain whose shards have been moved into ``folder``."""

    def moved(shards: list[Shard]) -> list[Shard]:
        return [replace(shard, path=folder / shard.path.name) for shard in shards]

    return replace(domain, train=moved(domain.train), eval=moved(domain.eval))


def added(before: Domain, new: Domain) -> Domain:
    """A domain with more data: what it had, then what is new."""
    tokens = before.tokens + before.held_out_tokens, new.tokens + new.held_out_tokens

    def mean(old: float | None, fresh: float | None) -> float | None:
        if old is None or fresh is None or sum(tokens) == 0:
            return old
        return (old * tokens[0] + fresh * tokens[1]) / sum(tokens)

    left_out = Counter(before.left_out) + Counter(new.left_out)
    return replace(
        before,
        train=[*before.train, *new.train],
        eval=[*before.eval, *new.eval],
        text_bytes=None if before.text_bytes is None else before.text_bytes + (new.text_bytes or 0),
        left_out=dict(sorted(left_out.items())),
        unknown_share=mean(before.unknown_share, new.unknown_share),
        byte_share=mean(before.byte_share, new.byte_share),
        digests=before.digests | new.digests,
    )
