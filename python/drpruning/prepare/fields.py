"""Which fields of an entry make its text, and which entries count: the mapping of a domain's data to documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class MissingTextError(ValueError):
    """An entry has no text where the mapping says."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """How an entry (a JSON object, a row of a table) becomes a document.

    Args:
        text: Fields whose texts are joined, in order; inner fields are named with a dot: ``meta.text``. An entry must
            have the first; others may be missing, null or empty.
        join: What stands between them.
        where: Values that other fields must have; entries with other values are of other domains and passed over.
    """

    text: tuple[str, ...] = ("text",)
    join: str = "\n\n"
    where: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def document(self, entry: Mapping[str, Any]) -> str | None:
        r"""The text of ``entry``; None if it is of another domain.

        Raises:
            MissingTextError: It has no text.

        >>> Fields(text=("title", "body.text")).document({"title": "Why?", "body": {"text": "So."}})
        'Why?\n\nSo.'
        """
        if any(_value(entry, name) != wanted for name, wanted in self.where.items()):
            return None
        first = _value(entry, self.text[0])
        if not isinstance(first, str):
            raise MissingTextError(f"expected text under {self.text[0]!r}, found {_found(entry, self.text[0])}")
        if len(self.text) == 1:
            return first
        others = (_value(entry, name) for name in self.text[1:])
        return self.join.join([first, *(text for text in others if isinstance(text, str) and text)])

    def columns(self) -> tuple[str, ...]:
        """The top-level fields this needs."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in (*self.text, *self.where)))

    def described(self) -> dict[str, Any]:
        """What decides the documents, for fingerprints."""
        return {"text": list(self.text), "join": self.join, "where": dict(sorted(self.where.items()))}


def _value(entry: Mapping[str, Any], name: str) -> Any:
    if name in entry:
        return entry[name]
    found: Any = entry
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _found(entry: Mapping[str, Any], name: str) -> str:
    value = _value(entry, name)
    if value is not None:
        return f"{type(value).__name__} in it"
    if name in entry:
        return "NoneType in it"
    return f"only {', '.join(map(repr, entry))}" if entry else "an empty object"
