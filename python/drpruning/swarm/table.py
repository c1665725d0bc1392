"""A swarm: many small runs, each trained on another static mixture, with the losses they end with.

Two text forms are read, both CSV with a header and a row per run:

- one file with the shares in columns ``mixture/<domain>`` and the losses in columns ``loss/<target>``;
- a file of shares and a file of losses, as RegMix and Olmix write them. Rows are matched by the columns ``run``,
  ``name`` and ``index`` that both files have. The part that all other names of a file begin or end with, up to a
  separator, is removed where names of the two files then agree: ``train_the_pile_arxiv`` becomes ``arxiv``.

A column ``tokens`` holds the tokens of each run, where runs differ in length; if both files have one, that of the
shares counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drpruning.errors import LossTableError, WeightError
from drpruning.loss_table.text import csv_records, lines, open_table

ID_COLUMNS = ("run", "name", "index")
"""Columns that name a run; they hold neither shares nor losses."""

MIXTURE, LOSS, TOKENS = "mixture/", "loss/", "tokens"

ROUNDING = 0.02
"""How far the shares of a run may sum from 1: shares written with three digits do; they are then divided by the sum."""

LARGEST_LOSS = 1e12
"""In any unit; the fit of a law raises losses to high powers."""

_SEPARATORS = "/_-.: "


@dataclass(frozen=True, slots=True, eq=False)
class Swarm:
    """Mixtures and final losses of ``n`` runs.

    Attributes:
        domains: Names of the domains that are mixed, ``[d]``.
        mixtures: Float64 ``[n, d]``, rows sum to 1.
        targets: Names of the losses, ``[t]``; they may be those of the domains or others.
        losses: Float64 ``[n, t]``, nats per token or any unit in which less is better; NaN where not measured.
        runs: A name for each run, for messages, ``[n]``.
        tokens: Tokens that each run trained on, float64 ``[n]``; all 1 where the runs are equally long.
    """

    domains: tuple[str, ...]
    mixtures: NDArray[np.float64]
    targets: tuple[str, ...]
    losses: NDArray[np.float64]
    runs: tuple[str, ...]
    tokens: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        domains: Sequence[str],
        mixtures: ArrayLike,
        targets: Sequence[str],
        losses: ArrayLike,
        runs: Sequence[str] | None = None,
        tokens: ArrayLike | None = None,
    ) -> Swarm:
        """Return a swarm of checked arrays.

        Raises:
            WeightError: Shapes or names do not agree, a share is negative or not finite, the shares of a run do not
                sum to 1 within :data:`ROUNDING`, a loss is infinite or larger than :data:`LARGEST_LOSS`, a run has no
                loss at all, or a number of tokens is not positive.
        """
        shares, values = np.array(mixtures, np.float64, ndmin=2), np.array(losses, np.float64, ndmin=2)
        names = tuple(runs) if runs is not None else tuple(str(row) for row in range(len(shares)))
        lengths = np.ones(len(names)) if tokens is None else np.array(tokens, np.float64)
        for what, got in (("domains", domains), ("targets", targets)):
            if not got or len(set(got)) < len(got):
                raise WeightError(f"{what} are {list(got)}; expected at least one name, each once")
        expected = ((len(names), len(domains)), (len(names), len(targets)))
        if (shares.shape, values.shape) != expected:
            raise WeightError(
                f"mixtures have shape {shares.shape}, losses {values.shape}; expected {expected[0]} and {expected[1]}"
            )
        if lengths.shape != (len(names),) or not (np.isfinite(lengths) & (lengths > 0)).all():
            raise WeightError(
                f"tokens are {lengths.tolist()}; expected a positive number for each of {len(names)} runs"
            )
        for row, (mixture, loss) in enumerate(zip(shares, values, strict=True)):
            if not np.isfinite(mixture).all() or (mixture < 0).any():
                bad = int(np.argmax(~(np.isfinite(mixture) & (mixture >= 0))))
                raise WeightError(
                    f"run {names[row]}: the share of {domains[bad]!r} is {mixture[bad]:g}; shares are finite and >= 0"
                )
            if abs(mixture.sum() - 1) > ROUNDING:
                raise WeightError(
                    f"run {names[row]}: the shares sum to {mixture.sum():.6g}; expected 1",
                    "If the columns hold tokens, divide each row by its sum first.",
                )
            if np.isinf(loss).any() or np.isnan(loss).all():
                raise WeightError(
                    f"run {names[row]} has {'an infinite loss' if np.isinf(loss).any() else 'no loss'}; "
                    "expected finite losses, or empty cells where some are not measured"
                )
            if (huge := np.nan_to_num(np.abs(loss))).max() > LARGEST_LOSS:
                bad = int(huge.argmax())
                raise WeightError(
                    f"run {names[row]}: the loss of {targets[bad]!r} is {loss[bad]:g}; "
                    f"expected at most {LARGEST_LOSS:g} in size",
                    "Remove the row of a run that diverged.",
                )
        return cls(tuple(domains), shares / shares.sum(axis=1, keepdims=True), tuple(targets), values, names, lengths)

    @property
    def amounts(self) -> NDArray[np.float64]:
        """Tokens of each domain, in parts of the longest run's tokens, float64 ``[n, d]``."""
        return np.asarray(self.mixtures * (self.tokens / self.tokens.max())[:, None])

    @property
    def mixture_numbers(self) -> NDArray[np.intp]:
        """The number of each run's mixture, ``[n]``; runs of one mixture, and the points of one run, have the same.

        Numbers count from 0 in the order of the first run of each mixture.
        """
        _, first, numbers = np.unique(self.mixtures.round(9), axis=0, return_index=True, return_inverse=True)
        return np.asarray(np.argsort(np.argsort(first))[numbers.ravel()])

    def __len__(self) -> int:
        return len(self.runs)

    def select(self, targets: Iterable[str]) -> Swarm:
        """Return the swarm with these targets only, in this order.

        Raises:
            WeightError: A target is not in the swarm, or no run has a loss of it.
        """
        chosen = list(targets)
        for name in chosen:
            if name not in self.targets:
                raise WeightError(f"the swarm has no target {name!r}; it has {', '.join(self.targets)}")
        columns = [self.targets.index(name) for name in chosen]
        for name, column in zip(chosen, columns, strict=True):
            if not np.isfinite(self.losses[:, column]).any():
                raise WeightError(f"no run has a loss of {name}", "Leave the target out, or measure it.")
        measured = np.asarray(np.isfinite(self.losses[:, columns]).any(axis=1))
        runs = [name for name, has in zip(self.runs, measured, strict=True) if has]
        losses = self.losses[measured][:, columns]
        return Swarm.of(self.domains, self.mixtures[measured], chosen, losses, runs, self.tokens[measured])


def read_swarm(mixtures: str | os.PathLike[str], losses: str | os.PathLike[str] | None = None) -> Swarm:
    """Read a swarm from one or two CSV files.

    The columns of shares are those that begin with ``mixture/``, and of losses with ``loss/``; the rest is the name. In
    a file of shares alone or of losses alone, without such columns, all are; what all names begin and end with is then
    left out.

    Args:
        mixtures: The file of both, or of the shares.
        losses: The file of the losses, if it is another.

    Raises:
        LossTableError: There is no such file, a file is not a table as described, or a cell is not a number.
        WeightError: The numbers are not usable: see :meth:`Swarm.of`.
        DiskError: A file cannot be read.
    """
    table = _read_table(Path(mixtures))
    if losses is None:
        shares = {name.removeprefix(MIXTURE): name for name in table.columns if name.startswith(MIXTURE)}
        values = {name.removeprefix(LOSS): name for name in table.columns if name.startswith(LOSS)}
        if not shares or not values:
            raise LossTableError(
                f"{table.source} has {len(shares)} columns {MIXTURE}<domain> and {len(values)} columns {LOSS}<target>; "
                "expected at least one of each",
                "Rename the columns, or pass a separate file of losses with --losses.",
            )
        return Swarm.of(
            list(shares),
            table.numbers(shares.values()),
            list(values),
            table.numbers(values.values()),
            table.runs,
            table.tokens,
        )
    other = _read_table(Path(losses))
    order = _match(table, other)
    whole = (_columns(table, MIXTURE, "shares"), _columns(other, LOSS, "losses"))
    short = tuple(_short_names(each) for each in whole)
    keeps_whole = len(set(whole[0]) & set(whole[1])) >= len(set(short[0]) & set(short[1]))
    shares, values = whole if keeps_whole else short
    tokens = table.tokens if other.tokens is None or table.tokens is not None else other.tokens[order]
    return Swarm.of(
        list(shares), table.numbers(shares.values()), list(values), other.numbers(values.values())[order], table.runs,
        tokens,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _CsvTable:
    source: str
    columns: tuple[str, ...]
    ids: dict[str, list[str]]
    cells: list[dict[str, str]]
    places: list[str]

    @property
    def runs(self) -> list[str]:
        for name in ("name", "run", "index"):
            if name in self.ids:
                return self.ids[name]
        return [str(number) for number in range(1, len(self.cells) + 1)]

    @property
    def tokens(self) -> NDArray[np.float64] | None:
        return self.numbers([TOKENS])[:, 0] if TOKENS in self.cells[0] else None

    def numbers(self, columns: Iterable[str]) -> NDArray[np.float64]:
        chosen = list(columns)
        rows = [
            [_number(cells[name], f"{place}, column {name!r}") for name in chosen]
            for place, cells in zip(self.places, self.cells, strict=True)
        ]
        return np.array(rows, np.float64).reshape(len(rows), len(chosen))


def _read_table(path: Path) -> _CsvTable:
    with open_table(path) as stream:
        rows = lines(stream, str(path))
        try:
            names, records = csv_records(rows, str(path))
        except StopIteration:
            raise LossTableError(f"{path} is empty; expected a CSV file with a header and a row per run") from None
        found = list(records)
    if not found:
        raise LossTableError(f"{path} has a header and no rows; expected a row per run")
    ids = {name: [cells[name] for _, cells in found] for name in ID_COLUMNS if name in names}
    columns = tuple(name for name in names if name and name not in (*ID_COLUMNS, TOKENS))
    return _CsvTable(str(path), columns, ids, [cells for _, cells in found], [place for place, _ in found])


def _number(cell: str, place: str) -> float:
    if not cell.strip():
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        raise LossTableError(f"{place} holds {cell[:40]!r}; expected a number or an empty cell") from None


def _match(mixtures: _CsvTable, losses: _CsvTable) -> list[int]:
    """Return, for each row of ``mixtures``, the row of ``losses`` of the same run."""
    keys = [name for name in ID_COLUMNS if name in mixtures.ids and name in losses.ids]
    if not keys:
        raise LossTableError(
            f"{mixtures.source} and {losses.source} share none of the columns {', '.join(ID_COLUMNS)}",
            "Add a column `run` with the same name for the same run to both files.",
        )
    found: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(zip(*(losses.ids[name] for name in keys), strict=True)):
        if key in found:
            raise LossTableError(f"{losses.places[row]} repeats the run {'/'.join(key)}; expected each run once")
        found[key] = row
    order: list[int] = []
    seen: set[tuple[str, ...]] = set()
    for row, key in enumerate(zip(*(mixtures.ids[name] for name in keys), strict=True)):
        if key in seen:
            raise LossTableError(f"{mixtures.places[row]} repeats the run {'/'.join(key)}; expected each run once")
        if key not in found:
            raise LossTableError(
                f"{mixtures.places[row]}: the run {'/'.join(key)} is not in {losses.source}",
                "Remove its row, or add its losses.",
            )
        seen.add(key)
        order.append(found[key])
    return order


def _columns(table: _CsvTable, prefix: str, what: str) -> dict[str, str]:
    """Return the columns with the prefix, by the rest of their names; if there is none, those without any prefix."""
    marked = {name.removeprefix(prefix): name for name in table.columns if name.startswith(prefix)}
    columns = marked or {name: name for name in table.columns if not name.startswith((MIXTURE, LOSS))}
    if not columns:
        raise LossTableError(f"{table.source} has no column of {what}", f"Call the columns {prefix}NAME, or NAME.")
    return columns


def _short_names(names: Mapping[str, str]) -> dict[str, str]:
    """Return the columns by their names without what all names begin and end with, up to a separator.

    Names in columns with a prefix are what the writer of the file calls domains or targets; they stay.
    """
    columns = list(names)
    if len(columns) < 2 or list(names.values()) != columns:
        return dict(names)
    prefix = os.path.commonprefix(list(columns))  # noqa: RUF071 - of names, character by character
    prefix = prefix[: max(prefix.rfind(mark) for mark in _SEPARATORS) + 1]
    suffix = os.path.commonprefix([name[::-1] for name in columns])  # noqa: RUF071
    suffix = suffix[: max(suffix.rfind(mark) for mark in _SEPARATORS) + 1][::-1]
    short = {name[len(prefix) : len(name) - len(suffix)]: name for name in columns}
    return short if len(short) == len(columns) and "" not in short else dict(names)
