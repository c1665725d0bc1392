"""Field mapping: the fields of an entry that form its text, and the entries that belong to a domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drpruning.errors import ConfigError


class MissingTextError(ValueError):
    """An entry has no text in the fields of the mapping."""


@dataclass(frozen=True, kw_only=True)
class FieldMapping:
    """Mapping of an entry (a JSON object or a table row) to a document.

    Args:
        text: Fields whose texts are joined, in order. A dot names a nested field: ``meta.text``. The first field is
            required; the others may be missing, null or empty.
        join: Separator between the texts.
        where: Values that other fields must have. Entries with other values belong to other domains and are skipped.
        group: Field with the source of a document, such as a repository or a site; documents with the same value are
            on one side of the holdout. None: each document is its own group.
    """

    text: tuple[str, ...] = ("text",)
    join: str = "\n\n"
    where: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    group: str | None = None

    def __post_init__(self) -> None:
        text: object = self.text
        if isinstance(text, str) or not text:
            raise ConfigError(f"text is {text!r}; expected one or more fields", 'For example text=("text",).')

    def document(self, entry: Mapping[str, Any]) -> str | None:
        r"""Return the text of ``entry``; None if it belongs to another domain.

        Raises:
            MissingTextError: The entry has no text.

        >>> FieldMapping(text=("title", "body.text")).document({"title": "Why?", "body": {"text": "So."}})
        'Why?\n\nSo.'
        """
        if any(_get_field(entry, name) != value for name, value in self.where.items()):
            return None
        first = _get_field(entry, self.text[0])
        if not isinstance(first, str):
            raise MissingTextError(
                f"expected text under {self.text[0]!r}, found {_describe_value(entry, self.text[0])}"
            )
        if len(self.text) == 1:
            return first
        others = (_get_field(entry, name) for name in self.text[1:])
        return self.join.join([first, *(text for text in others if isinstance(text, str) and text)])

    def group_of(self, entry: Mapping[str, Any]) -> str | None:
        """Return the group of ``entry``; None if it has none.

        >>> FieldMapping(group="meta.repo").group_of({"text": "", "meta": {"repo": "numpy"}})
        'numpy'
        """
        value = None if self.group is None else _get_field(entry, self.group)
        return None if value is None else str(value)

    def columns(self) -> tuple[str, ...]:
        """Return the top-level fields that the mapping reads."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in self.names()))

    def names(self) -> tuple[str, ...]:
        """Return all fields that the mapping reads; a dot names a nested field."""
        return (*self.text, *self.where, *([] if self.group is None else [self.group]))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for fingerprints."""
        where = dict(sorted(self.where.items()))
        return {"text": list(self.text), "join": self.join, "where": where, "group": self.group}


def _get_field(entry: Mapping[str, Any], name: str) -> Any:
    if name in entry:
        return entry[name]
    value: Any = entry
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _describe_value(entry: Mapping[str, Any], name: str) -> str:
    """Describe the value of a field that is not a text."""
    value = _get_field(entry, name)
    if value is not None:
        return f"{type(value).__name__} in it"
    if name in entry:
        return "NoneType in it"
    return f"only {', '.join(map(repr, entry))}" if entry else "an empty object"
