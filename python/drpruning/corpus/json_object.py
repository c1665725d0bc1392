"""Validated access to the JSON files of a corpus: each value is checked when it is read; errors name file and key."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from drpruning.errors import CorpusError


def read_json_object(path: Path, next_step: str | None = None) -> JsonObject:
    """Read the JSON object in the file ``path``.

    Args:
        path: The file, UTF-8.
        next_step: Advice for the error if the file does not exist.

    Raises:
        CorpusError: The file is missing, not JSON, or not an object.
    """
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CorpusError(f"{path}: expected a file, found none", next_step=next_step) from None
    try:
        body = json.loads(text.decode("utf-8"), object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}: expected JSON, found something else: {error}") from None
    return JsonObject(path, "", body)


class JsonObject:
    """A JSON object at ``where`` inside ``file``. Methods return the value of a key or raise ``CorpusError``."""

    def __init__(self, file: Path, where: str, body: Any) -> None:
        self.file = file
        self.where = where
        if not isinstance(body, dict):
            raise CorpusError(
                f"{file}: expected {where.rstrip('.') or 'the file'} to be an object, found {_shorten(body)}"
            )
        self.body: dict[str, Any] = body

    def invalid_value(self, key: str, expected: str, found: object) -> CorpusError:
        """Return the error for a value of ``key`` that is not ``expected``."""
        return CorpusError(f"{self.file}: expected {self.where}{key} to be {expected}, found {_shorten(found)}")

    def get(self, key: str) -> Any:
        """Return the value of ``key``, of any type."""
        if key not in self.body:
            raise CorpusError(f"{self.file}: expected a key {self.where}{key}, found none")
        return self.body[key]

    def entries(self, key: str, plural: str) -> list[JsonObject]:
        """Return the objects in the list ``key``; ``plural`` names them in errors."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.invalid_value(key, f"a list of {plural}", value)
        return [JsonObject(self.file, f"{self.where}{key}[{number}].", entry) for number, entry in enumerate(value)]

    def child(self, key: str) -> JsonObject:
        """Return the object ``key``."""
        return JsonObject(self.file, f"{self.where}{key}.", self.get(key))

    def text(self, key: str) -> str:
        """Return the non-empty text ``key``."""
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.invalid_value(key, "a text", value)
        return value

    def integer(self, key: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """Return the integer ``key``, from ``low`` to ``high``."""
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.invalid_value(key, f"an integer from {low} to {high}", value)
        return value

    def sha256(self, key: str) -> str:
        """Return the SHA-256 ``key``, in hexadecimal digits."""
        value = self.text(key)
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise self.invalid_value(key, "64 hexadecimal digits, lower case", value)
        return value

    def path(self, key: str, folder: Path) -> Path:
        """Return the relative path ``key`` joined to ``folder``; it must stay inside ``folder``."""
        value = self.text(key)
        parts = PurePosixPath(value)
        if parts.is_absolute() or ".." in parts.parts or "\0" in value:
            raise self.invalid_value(key, "a path inside the folder", value)
        return folder / parts


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return body


def _shorten(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
