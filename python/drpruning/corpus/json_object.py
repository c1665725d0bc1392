"""A JSON file of a corpus, read key by key: each value is checked as it is asked for, and what is wrong is named."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from drpruning.errors import CorpusError


def read_json(path: Path, next_step: str | None = None) -> JsonObject:
    """The object in the file ``path``.

    Args:
        path: The file, UTF-8.
        next_step: What to do if there is no such file.

    Raises:
        CorpusError: The file is missing, not JSON, or not an object.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CorpusError(f"{path}: expected a file, found none", next_step=next_step) from None
    try:
        body = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: expected JSON, found something else: {error}") from None
    return JsonObject(path, "", body)


class JsonObject:
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
        """The error that ``key`` is not what was expected."""
        return CorpusError(f"{self.file}: expected {self.where}{key} to be {expected}, found {_brief(found)}")

    def get(self, key: str) -> Any:
        """The value of ``key``, whatever it is."""
        if key not in self.body:
            raise CorpusError(f"{self.file}: expected a key {self.where}{key}, found none")
        return self.body[key]

    def entries(self, key: str, of: str) -> list[JsonObject]:
        """The objects in the list ``key``, which is a list of ``of``."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, f"a list of {of}", value)
        return [JsonObject(self.file, f"{self.where}{key}[{number}].", entry) for number, entry in enumerate(value)]

    def child(self, key: str) -> JsonObject:
        """The object ``key``."""
        return JsonObject(self.file, f"{self.where}{key}.", self.get(key))

    def text(self, key: str) -> str:
        """The text ``key``, which is not empty."""
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text", value)
        return value

    def integer(self, key: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """The integer ``key``, from ``low`` to ``high``."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}", value)
        return value

    def sha256(self, key: str) -> str:
        """The SHA-256 ``key``, in hexadecimal digits."""
        value = self.text(key)
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise self.wrong(key, "64 hexadecimal digits, lower case", value)
        return value

    def path(self, key: str, folder: Path) -> Path:
        """The path ``key``, which is relative and stays inside ``folder``."""
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
