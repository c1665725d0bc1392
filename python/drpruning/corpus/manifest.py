"""``corpus.json`` as the preparation writes it: the corpus format plus notes on how the corpus came about.

The format is described in ``docs/corpus.md`` and checked by :mod:`drpruning.corpus_json`. Readers ignore keys they do
not know, so the notes (``prepared`` of the corpus, ``text`` of each domain) ride along.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drpruning.corpus_json import FILE_NAME, FORMAT, VERSION, Shard, Tokenizer, read_corpus_json
from drpruning.files import write_text


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A domain's shards, and what was read to make them.

    Args:
        train: Shards to train on.
        eval: Held-out shards.
        text_bytes: UTF-8 bytes of the documents kept, both sides together; None if the writer did not say.
        held_out_share: Documents whose position lies below it are held out; see :mod:`drpruning.prepare.split`.
        left_out: How many documents were dropped or repaired, by reason: ``duplicate``, ``empty``, ``invalid_utf8`` and
            others; ``docs/prepare.md`` has the list.
        unknown_share: Tokens that stand for text the tokenizer does not know, in all; None if the writer did not say.
        byte_share: Tokens that stand for a part of a character.
        digests: SHA-256 of the files with the digests of the documents, by name; one for each shard.
    """

    train: list[Shard]
    eval: list[Shard]
    text_bytes: int | None = None
    held_out_share: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    unknown_share: float | None = None
    byte_share: float | None = None
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens to train on."""
        return sum(shard.tokens for shard in self.train)

    @property
    def documents(self) -> int:
        """Documents to train on."""
        return sum(shard.documents or 0 for shard in self.train)

    @property
    def held_out_tokens(self) -> int:
        """Tokens held out."""
        return sum(shard.tokens for shard in self.eval)

    @property
    def held_out_documents(self) -> int:
        """Documents held out."""
        return sum(shard.documents or 0 for shard in self.eval)

    @property
    def bytes_per_token(self) -> float | None:
        """How much text a token stands for; None if the writer did not say."""
        tokens = self.tokens + self.held_out_tokens
        return None if self.text_bytes is None or tokens == 0 else self.text_bytes / tokens


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a ``corpus.json``.

    Args:
        tokenizer: What made the tokens.
        domains: By name, in order.
        prepared: Notes of the preparation: ``sources`` is the fingerprint of all that decides the corpus.
    """

    tokenizer: Tokenizer
    domains: dict[str, Domain]
    prepared: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes ``corpus.json`` into ``folder``, where the shards are, aside and then renamed."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": {
                "name": self.tokenizer.name,
                "file": None if self.tokenizer.file is None else self.tokenizer.file.relative_to(folder).as_posix(),
                "vocab_size": self.tokenizer.vocab_size,
                "eos_id": self.tokenizer.eos_id,
                "sha256": self.tokenizer.sha256,
            },
            "domains": {
                name: {
                    "train": [_shard(shard, folder) for shard in domain.train],
                    "eval": [_shard(shard, folder) for shard in domain.eval],
                    "text": {
                        "bytes": domain.text_bytes,
                        "held_out_share": domain.held_out_share,
                        "left_out": domain.left_out,
                        "unknown_share": domain.unknown_share,
                        "byte_share": domain.byte_share,
                        "digests": domain.digests,
                    },
                }
                for name, domain in self.domains.items()
            },
            "prepared": self.prepared,
        }
        write_text(folder / FILE_NAME, json.dumps(body, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a corpus folder; notes that are absent are left empty.

        Raises:
            CorpusError: There is none, or it is not as ``docs/corpus.md`` says.
        """
        tokenizer, train, held_out = read_corpus_json(folder)
        body = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        domains = {}
        for name in train:
            text = body["domains"][name].get("text", {})
            domains[name] = Domain(
                train=train[name],
                eval=held_out[name],
                text_bytes=text.get("bytes"),
                held_out_share=text.get("held_out_share"),
                left_out=dict(text.get("left_out", {})),
                unknown_share=text.get("unknown_share"),
                byte_share=text.get("byte_share"),
                digests=dict(text.get("digests", {})),
            )
        return cls(tokenizer=tokenizer, domains=domains, prepared=dict(body.get("prepared", {})))


def _shard(shard: Shard, folder: Path) -> dict[str, Any]:
    return {
        "file": shard.path.relative_to(folder).as_posix(),
        "tokens": shard.tokens,
        "documents": shard.documents,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "index_sha256": shard.index_sha256,
    }
