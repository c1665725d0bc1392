"""Reading documents: ``.txt`` (a file is a document) and ``.jsonl`` (a line is a document), plain or ``.gz``.

A folder stands for all such files in it, a pattern (``shards/*.jsonl.gz``) for what it matches. What cannot be read is
an error that names file and line; invalid UTF-8 is replaced by U+FFFD, as Unicode advises, and counted.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from drpruning.errors import ConfigError, CorpusError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
BYTE_ORDER_MARK = "\ufeff"


class FileDocuments:
    """The documents of one domain, read from files as they are iterated.

    Args:
        paths: Files, folders and patterns, in order; a folder's files are taken in the order of their paths.
        text_field: The key of a ``.jsonl`` object that holds the text.

    Raises:
        ConfigError: A path does not exist, or nothing under it can be read.
    """

    def __init__(self, paths: Iterable[Path | str], text_field: str = "text") -> None:
        self.text_field = text_field
        self.left_out: Counter[str] = Counter()
        self.files = [file for path in paths for file in _expand(Path(path))]

    def __iter__(self) -> Iterator[str]:
        self.left_out.clear()
        for path in self.files:
            yield from self._lines(path) if ".jsonl" in path.suffixes else [self._whole(path)]

    def fingerprint(self) -> str:
        """SHA-256 over the names and the content of the files, in order."""
        whole = hashlib.sha256(self.text_field.encode())
        for path in self.files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"\n{path.name} {content}".encode(errors="surrogateescape"))
        return whole.hexdigest()

    def _whole(self, path: Path) -> str:
        with _opened(path) as file:
            return self._decoded(_read(path, file)).removeprefix(BYTE_ORDER_MARK)

    def _lines(self, path: Path) -> Iterator[str]:
        with _opened(path) as file:
            for number, line in _numbered(path, file):
                text = self._decoded(line).removeprefix(BYTE_ORDER_MARK)
                if text.strip():
                    yield self._text(text, f"{path}, line {number}")

    def _text(self, line: str, where: str) -> str:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where}: expected a JSON object, found something else: {error}") from None
        if not isinstance(entry, dict):
            raise CorpusError(f"{where}: expected a JSON object, found {type(entry).__name__}")
        text = entry.get(self.text_field)
        if not isinstance(text, str):
            found = (
                f"{type(text).__name__} in it" if self.text_field in entry else f"only {', '.join(map(repr, entry))}"
            )
            raise CorpusError(
                f"{where}: expected text under {self.text_field!r}, found {found}", "Name the key with --text-field."
            )
        return self._without_surrogates(text)

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.left_out["invalid_utf8"] += 1
            return data.decode("utf-8", errors="replace")

    def _without_surrogates(self, text: str) -> str:
        r"""A lone surrogate (``"\ud800"`` in JSON) is not text either."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            self.left_out["invalid_utf8"] += 1
            return text.encode("utf-8", errors="replace").decode("utf-8")
        return text


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        inside = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
        found = sorted(file for file in inside if file.name.endswith(SUFFIXES))
    elif path.exists():
        found = [path]
    elif glob.has_magic(str(path)):
        found = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 -- absolute patterns
    else:
        raise ConfigError(f"{path} does not exist")
    for file in found:
        if not file.name.endswith(SUFFIXES):
            raise ConfigError(f"{file}: cannot read this kind of file; wanted {', '.join(SUFFIXES)}")
    if not found:
        raise ConfigError(f"{path} holds no file to read; wanted {', '.join(SUFFIXES)}")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _read(path: Path, file: BinaryIO) -> bytes:
    try:
        return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from None


def _numbered(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    try:
        yield from enumerate(file, start=1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CorpusError:
    return CorpusError(f"{path}: truncated or damaged gzip file: {error}")
