"""From documents to a corpus folder: remove duplicates, tokenise, hold out, write shards and ``corpus.json``."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from drpruning.corpus_json import Shard, Tokenizer
from drpruning.errors import ConfigError, CorpusError
from drpruning.prepare.manifest import Domain, Manifest
from drpruning.prepare.megatron import MegatronWriter, dtype_for
from drpruning.prepare.split import HeldOut, digest, fraction_for, positions
from drpruning.prepare.tokenise import DocumentTokenizer

BATCH_CHARACTERS = 4 << 20
"""Text tokenised at once: enough to keep every core busy, little enough to forget."""

DOMAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Watch = Callable[[str, int, int], None]
"""Told after each batch: the domain, and the documents and UTF-8 bytes read since the last call."""


class Documents(Protocol):
    """A domain's text, one document after the other."""

    @property
    def left_out(self) -> Counter[str]:
        """What the reader dropped or repaired while it was iterated, by reason."""

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
    """Fills ``folder`` with a corpus; ``corpus.json`` is written last.

    Documents with the same text are kept once in the whole corpus, in the domain that comes first, so that none is
    trained on in one domain and held out in another.

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
    tokenizer_json = folder / "tokenizer" / "tokenizer.json"
    tokenizer.save(tokenizer_json.parent)
    writer = _Writer(folder, tokenizer, held_out, watch)
    written = {name: writer.write(name, documents) for name, documents in domains.items()}
    manifest = Manifest(
        tokenizer=Tokenizer(
            name=tokenizer.name,
            file=tokenizer_json,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.end_id,
            sha256=file_sha256(tokenizer_json),
        ),
        domains=written,
        prepared=prepared,
    )
    manifest.write(folder)
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Writer:
    """Writes one domain after the other; ``seen`` remembers the documents of all."""

    folder: Path
    tokenizer: DocumentTokenizer
    held_out: HeldOut
    watch: Watch | None
    seen: set[bytes] = field(default_factory=set)

    @property
    def dtype(self) -> str:
        return dtype_for(self.tokenizer.vocab_size)

    def write(self, name: str, documents: Documents) -> Domain:
        """Tokenises into a spool, since the share to hold out is known only when all is counted; then deals it out."""
        left_out: Counter[str] = Counter()
        digests: list[bytes] = []
        lengths = array("q")
        text_bytes = 0
        spool = self.folder / f"{name}.spool"
        with spool.open("wb") as file:
            for batch in _batches(_new(documents, self.seen, left_out), BATCH_CHARACTERS):
                for tokens in self.tokenizer.encode([text for _, text in batch]):
                    tokens.astype(self.dtype).tofile(file)
                    lengths.append(len(tokens))
                digests.extend(found for found, _ in batch)
                size = sum(len(text.encode()) for _, text in batch)
                text_bytes += size
                if self.watch is not None:
                    self.watch(name, len(batch), size)
        left_out.update(documents.left_out)
        if not digests:
            raise CorpusError(f"domain {name!r} has no text", _reasons(left_out))

        where = positions(digests)
        fraction = fraction_for(where, np.frombuffer(lengths, dtype=np.int64), self.held_out)
        is_held_out = where < fraction
        if is_held_out.all() or (fraction > 0 and not is_held_out.any()):
            side = "training" if is_held_out.all() else "held-out"
            raise CorpusError(
                f"domain {name!r}: with {fraction:g} held out, {len(digests)} documents leave no {side} text",
                "Give more or smaller documents: a .jsonl with one document a line, or one file for each.",
            )
        train, evaluation = self._deal(name, spool, zip(lengths, is_held_out.tolist(), strict=True))
        spool.unlink()
        return Domain(
            train=[train],
            eval=[evaluation],
            text_bytes=text_bytes,
            held_out_share=fraction,
            left_out=dict(sorted(left_out.items())),
        )

    def _deal(self, name: str, spool: Path, documents: Iterable[tuple[int, bool]]) -> tuple[Shard, Shard]:
        """Copies each document, given its length and whether it is held out, from the spool to its side, in order."""
        with (
            MegatronWriter(self.folder / f"{name}-train-00000", self.dtype) as train,
            MegatronWriter(self.folder / f"{name}-eval-00000", self.dtype) as evaluation,
            spool.open("rb") as file,
        ):
            for length, held in documents:
                tokens = np.fromfile(file, dtype=self.dtype, count=length)
                (evaluation if held else train).add(tokens)
        return _shard(train), _shard(evaluation)


def _new(documents: Documents, seen: set[bytes], left_out: Counter[str]) -> Iterator[tuple[bytes, str]]:
    """Digest and text of each document that is not empty and not seen before."""
    for text in documents:
        if not text.strip():
            left_out["empty"] += 1
            continue
        found = digest(text)
        if found in seen:
            left_out["duplicate"] += 1
            continue
        seen.add(found)
        yield found, text


def _batches(items: Iterable[tuple[bytes, str]], characters: int) -> Iterator[list[tuple[bytes, str]]]:
    batch: list[tuple[bytes, str]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[1])
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _shard(writer: MegatronWriter) -> Shard:
    return Shard(
        path=writer.path(".bin"),
        dtype=writer.dtype.name,
        tokens=writer.tokens,
        documents=len(writer.lengths),
        bytes=writer.tokens * writer.dtype.itemsize,
        sha256=writer.sha256[".bin"],
        index_sha256=writer.sha256[".idx"],
    )


def _reasons(left_out: Counter[str]) -> str | None:
    return None if not left_out else "Left out: " + ", ".join(f"{count} {why}" for why, count in left_out.items()) + "."
