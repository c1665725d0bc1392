"""Losses from text: CSV with a column per domain or a row per domain, and JSON lines."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, TypeVar

from drpruning.errors import LossTableError
from drpruning.inputs import repeated, shown, unreadable
from drpruning.loss_table.columns import EXPORT_RANGE, Pattern, count, loss, params, rate, role
from drpruning.loss_table.table import Evaluations, listed

LONGEST_LINE = 2**20
"""Bytes; a longer line is not a line of a table."""
LONGEST_NAME = 255
"""Characters of a key, those of the objects around it included; as in the names of files."""

Line = tuple[int, str]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Layout:
    """The columns of a row that have losses.

    Attributes:
        domains: Column to domain.
        long: The row has one loss, in column ``loss``, of the domain named in column ``domain``.
    """

    domains: Mapping[str, str]
    long: bool = False

    def losses(self, cells: Mapping[str, Any], found: Evaluations, where: str) -> dict[str, float]:
        """Return the losses of a row for the domains to collect."""
        if self.long:
            name = str(cells["domain"] or "").strip()
            if not name:
                raise LossTableError(f"{where}, column 'domain' is empty; expected the name of a domain")
            return {name: loss(cells["loss"], f"{where}, column 'loss'")}
        return {
            domain: loss(cells[column], f"{where}, column {column!r}")
            for column, domain in self.domains.items()
            if found.selects(domain)
        }


def open_table(path: Path) -> BufferedReader:
    """Open a table; a pipe is one too, as in ``<(zcat losses.csv.gz)``.

    Raises:
        LossTableError: There is no such file.
        DiskError: The operating system cannot open it.
    """
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise unreadable(path, error, LossTableError) from None


def lines(stream: IO[bytes], source: str) -> Iterator[Line]:
    """Yield the decoded lines that are not blank, with their ends, numbered from 1.

    Raises:
        LossTableError: A line is not UTF-8, or too long to be one of a table.
    """
    number = 0
    while raw := stream.readline(LONGEST_LINE):
        number += 1
        if len(raw) == LONGEST_LINE:
            raise LossTableError(f"{source}, line {number} is longer than 1 MiB; expected a table of losses")
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise LossTableError(
                f"{source}, line {number} is not UTF-8: byte {raw[error.start]:#04x} at place {error.start + 1}",
                "Expected CSV or JSON lines as UTF-8 text, a TensorBoard event file (its name holds tfevents), "
                "or a folder of one.",
            ) from error
        if text.strip():
            yield number, text


def read_csv(rows: Iterator[Line], found: Evaluations, pattern: Pattern | None) -> None:
    """Add the rows of a CSV file, separated by the most frequent of comma, semicolon and tab in the header.

    A last row with too few cells and no line end is ignored: the run may be writing it.

    Raises:
        LossTableError: A row does not fit the header, or a cell does not hold what its column does.
    """
    names, records = csv_records(rows, found.source, grows=True)
    layout = _header(names, found.source, pattern)
    found.note_columns(list(layout.domains.values()))
    for where, cells in records:
        _add(found, where, cells, layout)


def csv_records(
    rows: Iterator[Line], source: str, *, grows: bool = False
) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """Return the names in the header, and for each row its place (for messages) and its cells by name.

    Args:
        rows: The lines.
        source: Name of the file.
        grows: Whether a program may be writing the file: an incomplete last row is then left out.

    Raises:
        LossTableError: The text is not CSV, or a row does not fit the header; also while iterating.
    """
    number, header = next(rows)
    text = header

    def texts() -> Iterator[str]:
        nonlocal number, text
        yield header
        for number, text in rows:  # noqa: B007 - the messages below use it
            yield text

    def records() -> Iterator[tuple[str, dict[str, str]]]:
        try:
            for cells in reader:
                where = f"{source}, line {number}"
                if grows and len(cells) < len(names) and not text.endswith("\n"):
                    return
                if len(cells) != len(names):
                    raise LossTableError(f"{where} has {len(cells)} cells; the header has {len(names)}")
                yield where, dict(zip(names, cells, strict=True))
        except csv.Error as error:
            if grows and not text.endswith("\n"):  # within quotes
                return
            raise LossTableError(f"{source}, line {number} is not CSV: {error}") from error

    separator = max(",;\t", key=header.count)
    reader = csv.reader(texts(), delimiter=separator, strict=True, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise LossTableError(f"{source}, line {number} is not CSV: {error}") from error
    if (twice := repeated(names)) is not None:
        raise LossTableError(f"{source} has two columns called {shown(twice)}")
    return names, records()


def read_json(rows: Iterator[Line], found: Evaluations, pattern: Pattern | None) -> None:
    """Add JSON lines, one object each. An incomplete last line is ignored.

    Without a pattern the losses are the mapping called ``losses`` or ``loss``, if there is one, or ``domain`` and
    ``loss``, or else every key that is not one of the names in ``columns.py``.

    Raises:
        LossTableError: A line is not a JSON object, or a key does not hold what it should.
    """
    for number, text in rows:
        where = f"{found.source}, line {number}"
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            if not text.endswith("\n"):
                break
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise LossTableError(f"{where} is not JSON: {reason}") from error
        if not isinstance(body, dict):
            raise LossTableError(f"{where} holds {type(body).__name__}; expected one JSON object on each line")
        cells = dict(flattened(body, where))
        nested = next((key for key in ("losses", "loss") if isinstance(body.get(key), dict)), None)
        if pattern is None and nested is not None:
            inside = f"{nested}/"
            layout = Layout({name: name.removeprefix(inside) for name in cells if name.startswith(inside)})
        else:
            layout = find_layout(list(cells), where, pattern)
        found.note_columns(list(layout.domains.values()))
        _add(found, where, cells, layout)


def flattened(body: Mapping[str, Any], where: str, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested objects, joined by slashes as in TensorBoard.

    Raises:
        LossTableError: A joined key is longer than :data:`LONGEST_NAME`: each of a thousand values would repeat it.
    """
    for key, value in body.items():
        if len(before) + len(key) > LONGEST_NAME:
            raise LossTableError(f"{where} has a key of more than {LONGEST_NAME} characters: {shown(before + key)}")
        if isinstance(value, dict):
            yield from flattened(value, where, f"{before}{key}/")
        else:
            yield before + key, value


def _header(names: Sequence[str], source: str, pattern: Pattern | None) -> Layout:
    """Return the layout of a CSV file; it must have losses, and steps or tokens."""
    layout = find_layout(names, source, pattern)
    if not (layout.domains or layout.long):
        reason = "is a domain" if pattern is None else f"matches {pattern.text!r}"
        raise LossTableError(f"{source}: no column {reason}; the columns are {listed(names)}")
    if not any(role(name) in {"step", "tokens"} for name in names if name not in layout.domains):
        raise LossTableError(
            f"{source} has no column of steps or tokens; the columns are {listed(names)}",
            "Call it step or tokens: without it the order and the distances of the evaluations are unknown.",
        )
    return layout


def find_layout(names: Sequence[str], where: str, pattern: Pattern | None) -> Layout:
    """Return the columns with losses: those that match the pattern, or without one all without another role.

    Raises:
        LossTableError: Two columns hold the same domain.
    """
    if pattern is None:
        if {"domain", "loss"} <= set(names):
            return Layout({}, long=True)
        return Layout({name: name for name in names if role(name) is None})
    columns: dict[str, str] = {}  # domain to column
    for name in names:
        domain = pattern.domain(name)
        if domain is None or EXPORT_RANGE.fullmatch(name):
            continue
        if domain in columns:
            raise LossTableError(
                f"{where}: columns {columns[domain]!r} and {name!r} both hold domain {domain!r}", "Narrow the pattern."
            )
        columns[domain] = name
    return Layout({column: domain for domain, column in columns.items()})


def _add(found: Evaluations, where: str, cells: Mapping[str, Any], layout: Layout) -> None:
    losses = layout.losses(cells, found, where)
    if all(math.isnan(value) for value in losses.values()):
        return  # nothing was measured: such a row may lack the rest too
    others = {name: value for name, value in cells.items() if name not in layout.domains}
    found.add(
        where,
        losses,
        step=_cell_of_role("step", others, count, where),
        tokens=_cell_of_role("tokens", others, count, where),
        params=_cell_of_role("params", others, params, where),
        rate=_cell_of_role("rate", others, rate, where) if found.reads_rates else None,
    )


def _cell_of_role(
    name: str, cells: Mapping[str, Any], read: Callable[[Any, str], Number | None], where: str
) -> Number | None:
    """Parse the number in the column with the role ``name``; return None without such a column or if it is empty."""
    names = [column for column in cells if role(column) == name]
    if len(names) > 1:
        raise LossTableError(f"{where}: columns {names[0]!r} and {names[1]!r} both hold {name}", "Keep one of them.")
    return read(cells[names[0]], f"{where}, column {names[0]!r}") if names else None
