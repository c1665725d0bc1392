"""``corpus.json``: tokenizer, domains and shards of a corpus folder, and notes on the preparation.

``docs/corpus.md`` describes the format. :func:`read_corpus_json` reads and checks what every corpus has.
:class:`Manifest` adds the notes of ``drpruning prepare``: ``prepared`` for the corpus and ``text`` for each domain.
Other readers ignore these keys.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from drpruning.corpus.json_object import JsonObject, read_json_object
from drpruning.errors import CorpusError
from drpruning.files import write_text

FILE_NAME = "corpus.json"
NO_CORPUS = (
    "Text: `drpruning prepare` makes a corpus of it. Token files: `drpruning sample NAME=PATH`; in Python, "
    'Corpus({"NAME": "PATH"}).'
)
"""Advice where a folder has no ``corpus.json``."""
FORMAT = "drpruning-corpus"
VERSION = 2

Split = Literal["train", "validation", "test"]
"""Training text, the held-out text that strategies and curves see, and that of final measurements."""
SPLITS: tuple[Split, ...] = get_args(Split)

VALIDATION_SHARE = 1 / 3
"""Share of the held-out text that strategies and curves see; the rest is for final measurements, the test.

The test gets more because its documents decide the width of a table's intervals, while a strategy averages the noise of
its evaluations over a run, and reads fewer tokens at each.
"""

MAX_VOCAB_SIZE = 2**31  # ids must fit Megatron's int32


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The tokenizer of a corpus; ``file`` is its ``tokenizer.json`` if the folder has it."""

    name: str
    file: Path | None
    vocab_size: int
    eos_id: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A token file. ``dtype`` is NumPy's name, ``""`` until the file is opened; unknown counts are None.

    ``groups_sha256`` is the checksum of the file with the groups of the documents; None if there is none.
    """

    path: Path
    dtype: str
    tokens: int
    documents: int | None
    bytes: int
    sha256: str | None = None
    index_sha256: str | None = None
    groups_sha256: str | None = None


Shards = dict[str, list[Shard]]
"""Shards by domain."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The shards of a domain and statistics of its text.

    Args:
        train: Training shards.
        validation: Held-out shards that strategies and curves see.
        test: Held-out shards of final measurements.
        text_bytes: UTF-8 bytes of the documents kept, training and held-out; None if not recorded.
        held_out_share: Groups whose hash position is below this are held out; see
            :mod:`drpruning.prepare.output.holdout`.
        left_out: Number of documents dropped or repaired, by reason: ``duplicate``, ``empty``, ``invalid_utf8`` and
            others; ``docs/prepare.md`` has the list.
        unknown_share: Share of tokens that are the tokenizer's unknown token; None if not recorded.
        byte_share: Share of tokens that are a part of a character; None if not recorded.
        digests: SHA-256 of the files of document digests by file name, one file for each shard.
    """

    train: list[Shard]
    validation: list[Shard]
    test: list[Shard]
    text_bytes: int | None = None
    held_out_share: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    unknown_share: float | None = None
    byte_share: float | None = None
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Number of training tokens."""
        return self.tokens_of("train")

    @property
    def documents(self) -> int:
        """Number of training documents."""
        return self.documents_of("train")

    @property
    def held_out_tokens(self) -> int:
        """Number of held-out tokens, validation and test."""
        return self.tokens_of("validation") + self.tokens_of("test")

    @property
    def held_out_documents(self) -> int:
        """Number of held-out documents, validation and test."""
        return self.documents_of("validation") + self.documents_of("test")

    @property
    def divides_held_out(self) -> bool:
        """Whether only one of validation and test has tokens, so that both read its rows."""
        return (self.tokens_of("validation") == 0) != (self.tokens_of("test") == 0)

    def tokens_of(self, split: Split) -> int:
        """Return the number of tokens of a split."""
        return sum(shard.tokens for shard in self.shards(split))

    def documents_of(self, split: Split) -> int:
        """Return the number of documents of a split."""
        return sum(shard.documents or 0 for shard in self.shards(split))

    def shards(self, split: Split) -> list[Shard]:
        """Return the shards of a split."""
        shards: list[Shard] = getattr(self, split)
        return shards

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes per token; None if not recorded."""
        tokens = self.tokens + self.held_out_tokens
        return None if self.text_bytes is None or tokens == 0 else self.text_bytes / tokens


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a ``corpus.json``, notes included.

    Args:
        tokenizer: The tokenizer of all domains.
        domains: By name, in order.
        prepared: Notes of the preparation. ``sources`` is the fingerprint of the text, tokenizer and options.
    """

    tokenizer: Tokenizer
    domains: dict[str, Domain]
    prepared: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``corpus.json`` into ``folder``, which holds the shards, with an atomic rename."""
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
                    **{split: [_shard_to_dict(shard, folder) for shard in domain.shards(split)] for split in SPLITS},
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
        """Read the manifest of a corpus folder. Absent notes stay empty.

        Raises:
            CorpusError: ``corpus.json`` is missing or does not follow ``docs/corpus.md``.
        """
        tokenizer, splits = read_corpus_json(folder)
        top = read_json_object(folder / FILE_NAME)
        domains = {}
        for name in splits["train"]:
            text = top.child("domains").child(name).notes("text")
            domains[name] = Domain(
                train=splits["train"][name],
                validation=splits["validation"][name],
                test=splits["test"][name],
                text_bytes=text.note("bytes", int),
                held_out_share=text.note("held_out_share", float),
                left_out=text.notes("left_out", int).body,
                unknown_share=text.note("unknown_share", float),
                byte_share=text.note("byte_share", float),
                digests=text.notes("digests", str).body,
            )
        return cls(tokenizer=tokenizer, domains=domains, prepared=top.notes("prepared").body)


def read_corpus_json(folder: Path) -> tuple[Tokenizer, dict[Split, Shards]]:
    """Read the tokenizer and the shards of each split of the corpus in ``folder``. Opens no other file.

    A domain without the key ``test`` has no test shards.

    Raises:
        CorpusError: The file is missing, or a key does not follow ``docs/corpus.md``; the message names the key.
    """
    path = folder / FILE_NAME
    top = read_json_object(path, NO_CORPUS)
    if top.text("format") != FORMAT:
        raise top.invalid_value("format", f'"{FORMAT}"', top.body["format"])
    if top.integer("version") != VERSION:
        raise CorpusError(
            f"{path}: expected version {VERSION}, found {top.body['version']}",
            next_step="Another version of drpruning wrote this corpus; use that version or prepare the corpus again.",
        )
    tokenizer = _read_tokenizer(folder, top.child("tokenizer"))
    domains = top.child("domains")
    if not domains.body:
        raise top.invalid_value("domains", "at least one domain", {})
    for name in domains.body:
        if not name or not name.isprintable():
            raise top.invalid_value("domains", "named with printable characters", name)
    splits: dict[Split, Shards] = {
        split: {name: _read_shards(folder, domains.child(name), split) for name in domains.body} for split in SPLITS
    }
    for name, shards in splits["train"].items():
        if not shards:
            raise domains.child(name).invalid_value("train", "at least one shard", [])
    trained = {shard.path for shards in splits["train"].values() for shard in shards}
    for split in ("validation", "test"):
        for name, shards in splits[split].items():
            if both := [shard.path.name for shard in shards if shard.path in trained]:
                raise domains.child(name).invalid_value(split, "shards that no domain trains on", both[0])
    return tokenizer, splits


def _read_tokenizer(folder: Path, item: JsonObject) -> Tokenizer:
    has_file = item.get("file") is not None
    vocab_size = item.integer("vocab_size", 1, MAX_VOCAB_SIZE)
    return Tokenizer(
        name=item.text("name"),
        file=item.path("file", folder) if has_file else None,
        vocab_size=vocab_size,
        eos_id=item.integer("eos_id", 0, vocab_size - 1),
        sha256=item.sha256("sha256") if has_file else None,
    )


def _read_shards(folder: Path, domain: JsonObject, split: Split) -> list[Shard]:
    shards: list[Shard] = []
    if split == "test" and "test" not in domain.body:
        return shards
    for item in domain.entries(split, "shards"):
        path = item.path("file", folder)
        if path.suffix != ".bin":
            raise item.invalid_value("file", "a name that ends with .bin", item.body["file"])
        shards.append(
            Shard(
                path=path,
                dtype="",
                tokens=item.integer("tokens"),
                documents=item.integer("documents"),
                bytes=item.integer("bytes"),
                sha256=item.sha256("sha256"),
                index_sha256=item.sha256("index_sha256"),
                groups_sha256=item.sha256("groups_sha256") if item.body.get("groups_sha256") is not None else None,
            )
        )
    return shards


def _shard_to_dict(shard: Shard, folder: Path) -> dict[str, Any]:
    body = {
        "file": shard.path.relative_to(folder).as_posix(),
        "tokens": shard.tokens,
        "documents": shard.documents,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
        "index_sha256": shard.index_sha256,
    }
    return body if shard.groups_sha256 is None else body | {"groups_sha256": shard.groups_sha256}
