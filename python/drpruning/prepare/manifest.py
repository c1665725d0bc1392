"""``corpus.json`` as the preparation writes and reads it: the corpus format plus notes on how the corpus came about.

The format is described in ``docs/corpus.md``. Readers ignore keys they do not know, so the notes (``prepared`` of the
corpus, ``text`` of each domain) ride along.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drpruning.errors import CorpusError
from drpruning.prepare.publish import MANIFEST

FORMAT = "drpruning-corpus"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One pair of token files."""

    file: str
    tokens: int
    documents: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A domain's shards, and what was read to make them.

    Args:
        train: Shards to train on.
        eval: Held-out shards.
        text_bytes: UTF-8 bytes of the documents kept, both sides together.
        held_out_fraction: Documents whose position lies below it are held out; see :mod:`drpruning.prepare.split`.
        left_out: How many documents were dropped or repaired, by reason: ``duplicate``, ``empty``, ``invalid_utf8``.
    """

    train: list[Shard]
    eval: list[Shard]
    text_bytes: int | None = None
    held_out_fraction: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens to train on."""
        return sum(shard.tokens for shard in self.train)

    @property
    def documents(self) -> int:
        """Documents to train on."""
        return sum(shard.documents for shard in self.train)

    @property
    def held_out_tokens(self) -> int:
        """Tokens held out."""
        return sum(shard.tokens for shard in self.eval)

    @property
    def held_out_documents(self) -> int:
        """Documents held out."""
        return sum(shard.documents for shard in self.eval)

    @property
    def bytes_per_token(self) -> float | None:
        """How much text a token stands for; None if the writer did not say."""
        tokens = self.tokens + self.held_out_tokens
        return None if self.text_bytes is None or tokens == 0 else self.text_bytes / tokens


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a ``corpus.json``.

    Args:
        tokenizer: Its ``name``, ``file``, ``vocab_size``, ``eos_id``, ``sha256``.
        domains: By name, in order.
        prepared: Notes of the preparation: ``sources`` is the fingerprint of all that decides the corpus.
    """

    tokenizer: dict[str, Any]
    domains: dict[str, Domain]
    prepared: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes ``corpus.json`` into ``folder``, aside and then renamed."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": self.tokenizer,
            "domains": {
                name: {
                    "train": [asdict(shard) for shard in domain.train],
                    "eval": [asdict(shard) for shard in domain.eval],
                    "text": {
                        "bytes": domain.text_bytes,
                        "held_out_fraction": domain.held_out_fraction,
                        "left_out": domain.left_out,
                    },
                }
                for name, domain in self.domains.items()
            },
            "prepared": self.prepared,
        }
        aside = folder / f"{MANIFEST}.partial"
        aside.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.rename(folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a corpus folder.

        Raises:
            CorpusError: There is none, or it is not one of this format and version.
        """
        path = folder / MANIFEST
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CorpusError(
                f"{folder} is not a corpus: no {MANIFEST}", "Make one with `drpruning prepare`."
            ) from None
        except ValueError as error:
            raise CorpusError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(body, dict) or (body.get("format"), body.get("version")) != (FORMAT, VERSION):
            found = f"{body.get('format')!r} {body.get('version')!r}" if isinstance(body, dict) else type(body).__name__
            raise CorpusError(f"{path}: got format {found}; wanted {FORMAT!r} {VERSION}")
        try:
            domains = {name: _domain(entry) for name, entry in body["domains"].items()}
            return cls(tokenizer=dict(body["tokenizer"]), domains=domains, prepared=dict(body.get("prepared", {})))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorpusError(f"{path} is incomplete or malformed: {error!r}") from error


def _domain(entry: dict[str, Any]) -> Domain:
    text = entry.get("text", {})
    return Domain(
        train=[_shard(shard) for shard in entry["train"]],
        eval=[_shard(shard) for shard in entry["eval"]],
        text_bytes=text.get("bytes"),
        held_out_fraction=text.get("held_out_fraction"),
        left_out=dict(text.get("left_out", {})),
    )


def _shard(entry: dict[str, Any]) -> Shard:
    return Shard(
        file=str(entry["file"]),
        tokens=int(entry["tokens"]),
        documents=int(entry["documents"]),
        bytes=int(entry["bytes"]),
        sha256=str(entry["sha256"]),
        index_sha256=str(entry["index_sha256"]),
    )
