"""Validated access to the JSON files of a corpus: each value is checked when it is read; errors name file and key."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from drpruning.errors import CorpusError
from drpruning.inputs import LARGEST_JSON, parse_json, read_file, shown

T = TypeVar("T", int, float, str)
NAMES: dict[type, str] = {int: "an integer", float: "a number", str: "a text"}
"""Names of types in errors."""


def read_json_object(path: Path, next_step: str | None = None) -> JsonObject:
    """Read the JSON object in the file ``path``.

    Args:
        path: The file, UTF-8.
        next_step: Advice for the error if the file does not exist.

    Raises:
        CorpusError: The file is missing, no regular file, not JSON, or not an object.
        DiskError: The operating system cannot read it.
    """
    try:
        content = read_file(path, CorpusError, LARGEST_JSON)
    except CorpusError as error:
        raise CorpusError(error.message, next_step) from None
    return JsonObject(path, "", parse_json(content, path, CorpusError))


class JsonObject:
    """A JSON object at ``where`` inside ``file``. Methods return the value of a key or raise ``CorpusError``."""

    def __init__(self, file: Path, where: str, body: Any) -> None:
        self.file = file
        self.where = where
        if not isinstance(body, dict):
            raise CorpusError(
                f"{file}: expected {where.rstrip('.') or 'the file'} to be an object, found {_json(body)}"
            )
        self.body: dict[str, Any] = body

    def invalid_value(self, key: str, expected: str, found: object) -> CorpusError:
        """Return the error for a value of ``key`` that is not ``expected``."""
        return CorpusError(f"{self.file}: expected {self.where}{key} to be {expected}, found {_json(found)}")

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

    def notes(self, key: str, kind: type[T] | None = None) -> JsonObject:
        """Return the object ``key``, empty if it is absent; its values are of type ``kind``."""
        notes = JsonObject(self.file, f"{self.where}{key}.", self.body.get(key, {}))
        if kind is not None:
            for name in notes.body:
                if notes.note(name, kind) is None:
                    raise notes.invalid_value(name, NAMES[kind], None)
        return notes

    def note(self, key: str, kind: type[T]) -> T | None:
        """Return the value ``key`` of type ``kind``; None if it is absent or null."""
        value: Any = self.body.get(key)
        kinds = (int, float) if kind is float else kind
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise self.invalid_value(key, NAMES[kind], value)
        found: T | None = value
        return found

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


def _json(value: object) -> str:
    """Format a value of JSON for a message, in its notation."""
    if isinstance(value, str):
        return f'"{shown(value)[1:-1]}"'
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else shown(value)
