"""``corpus.json``: what a corpus folder says about itself, checked key by key.

The format is described in ``docs/corpus.md``; ``drpruning.prepare`` writes it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from drpruning.errors import CorpusError

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


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of tokens. ``dtype`` is NumPy's name; what is not known is None (or ``""`` until the index is read)."""

    path: Path
    dtype: str
    tokens: int
    documents: int | None
    bytes: int
    sha256: str | None = None
    index_sha256: str | None = None

    @property
    def indexed(self) -> bool:
        """Whether an ``.idx`` belongs to the file."""
        return self.documents is not None

    def with_dtype(self, dtype: str) -> Shard:
        """The same shard, its dtype known."""
        return replace(self, dtype=dtype)


def read_corpus_json(folder: Path) -> tuple[Tokenizer, dict[str, list[Shard]], dict[str, list[Shard]]]:
    """Tokenizer, training shards and held-out shards of the corpus in ``folder``. Opens no other file.

    Raises:
        CorpusError: The file is missing or not as ``docs/corpus.md`` says, which is named.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise CorpusError(
            f"{path}: expected a file, found none",
            next_step='For token files without a corpus.json, use Corpus({"domain": "file.bin"}).',
        ) from None
    try:
        body = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: expected JSON, found something else: {error}") from None
    top = _Object(path, "", body)
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


def _tokenizer(folder: Path, item: _Object) -> Tokenizer:
    named = item.get("file") is not None
    vocab_size = item.integer("vocab_size", 1, MAX_VOCAB_SIZE)
    return Tokenizer(
        name=item.text("name"),
        file=item.path("file", folder) if named else None,
        vocab_size=vocab_size,
        eos_id=item.integer("eos_id", 0, vocab_size - 1),
        sha256=item.sha256("sha256") if named else None,
    )


def _shards(folder: Path, domain: _Object, split: str) -> list[Shard]:
    entries = domain.get(split)
    if not isinstance(entries, list):
        raise domain.wrong(split, "a list of shards", entries)
    shards = []
    for number, entry in enumerate(entries):
        item = _Object(domain.file, f"{domain.where}{split}[{number}].", entry)
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


class _Object:
    """A JSON object inside ``file``, at ``where``; each method returns the value of a key or says what is wrong."""

    def __init__(self, file: Path, where: str, body: Any) -> None:
        self.file = file
        self.where = where
        if not isinstance(body, dict):
            raise CorpusError(
                f"{file}: expected {where.rstrip('.') or 'the file'} to be an object, found {_brief(body)}"
            )
        self.body: dict[str, Any] = body

    def wrong(self, key: str, expected: str, found: object) -> CorpusError:
        return CorpusError(f"{self.file}: expected {self.where}{key} to be {expected}, found {_brief(found)}")

    def get(self, key: str) -> Any:
        if key not in self.body:
            raise CorpusError(f"{self.file}: expected a key {self.where}{key}, found none")
        return self.body[key]

    def child(self, key: str) -> _Object:
        return _Object(self.file, f"{self.where}{key}.", self.get(key))

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text", value)
        return value

    def integer(self, key: str, low: int = 0, high: int = 2**63 - 1) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}", value)
        return value

    def sha256(self, key: str) -> str:
        value = self.text(key)
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise self.wrong(key, "64 hexadecimal digits, lower case", value)
        return value

    def path(self, key: str, folder: Path) -> Path:
        value = self.text(key)
        parts = PurePosixPath(value)
        if parts.is_absolute() or ".." in parts.parts or "\0" in value:
            raise self.wrong(key, "a path inside the folder", value)
        return folder / parts


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return body


def _brief(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
