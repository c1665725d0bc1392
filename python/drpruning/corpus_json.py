"""``corpus.json``: what a corpus folder says about itself, checked key by key.

The format is described in ``docs/corpus.md``; ``drpruning.prepare`` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drpruning.errors import CorpusError
from drpruning.json_object import JsonObject, read_json

FILE_NAME = "corpus.json"
FORMAT = "drpruning-corpus"
VERSION = 1

MAX_VOCAB_SIZE = 2**31  # ids must fit Megatron's int32


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """The tokenizer that made the tokens; ``file`` is its ``tokenizer.json`` if the folder has it."""

    name: str
    file: Path | None
    vocab_size: int
    eos_id: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A file of tokens. ``dtype`` is NumPy's name; what is not known is None (or ``""`` until the file is opened)."""

    path: Path
    dtype: str
    tokens: int
    documents: int | None
    bytes: int
    sha256: str | None = None
    index_sha256: str | None = None


Shards = dict[str, list[Shard]]


def read_corpus_json(folder: Path) -> tuple[Tokenizer, Shards, Shards]:
    """Tokenizer, training shards and held-out shards of the corpus in ``folder``. Opens no other file.

    Raises:
        CorpusError: The file is missing or not as ``docs/corpus.md`` says, which is named.
    """
    path = folder / FILE_NAME
    top = read_json(path, 'For token files without a corpus.json, use Corpus({"domain": "file.bin"}).')
    if top.text("format") != FORMAT:
        raise top.wrong("format", f'"{FORMAT}"', top.body["format"])
    if top.integer("version") != VERSION:
        raise CorpusError(
            f"{path}: expected version {VERSION}, found {top.body['version']}",
            next_step="A newer drpruning wrote this corpus; use that version or prepare the corpus again.",
        )
    tokenizer = _tokenizer(folder, top.child("tokenizer"))
    domains = top.child("domains")
    if not domains.body:
        raise top.wrong("domains", "at least one domain", {})
    train = {name: _shards(folder, domains.child(name), "train") for name in domains.body}
    held_out = {name: _shards(folder, domains.child(name), "eval") for name in domains.body}
    for name, shards in train.items():
        if not shards:
            raise domains.child(name).wrong("train", "at least one shard", [])
    return tokenizer, train, held_out


def _tokenizer(folder: Path, item: JsonObject) -> Tokenizer:
    named = item.get("file") is not None
    vocab_size = item.integer("vocab_size", 1, MAX_VOCAB_SIZE)
    return Tokenizer(
        name=item.text("name"),
        file=item.path("file", folder) if named else None,
        vocab_size=vocab_size,
        eos_id=item.integer("eos_id", 0, vocab_size - 1),
        sha256=item.sha256("sha256") if named else None,
    )


def _shards(folder: Path, domain: JsonObject, split: str) -> list[Shard]:
    shards = []
    for item in domain.entries(split, "shards"):
        path = item.path("file", folder)
        if path.suffix != ".bin":
            raise item.wrong("file", "a name that ends with .bin", item.body["file"])
        shards.append(
            Shard(
                path=path,
                dtype="",
                tokens=item.integer("tokens"),
                documents=item.integer("documents"),
                bytes=item.integer("bytes"),
                sha256=item.sha256("sha256"),
                index_sha256=item.sha256("index_sha256"),
            )
        )
    return shards
