"""Losses of finished models of several sizes, read from a table or from the output of `drpruning eval loss --json`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import LossTableError, did_you_mean
from drpruning.formatting import amount_of
from drpruning.inputs import read_file, shown
from drpruning.loss_table.columns import Pattern, loss, params, role
from drpruning.loss_table.table import listed
from drpruning.loss_table.text import csv_records, find_layout, flattened, lines
from drpruning.scaling import SizeLaw, fit_size_law

NAMES = {"model", "name", "path", "family"}
"""Columns that say which model it is."""
DIGITS = 4
"""Of reference losses, after the point: standard errors of held-out losses are larger."""
LARGEST_FILE = 2**26
"""Bytes; a larger file is not a table of models."""

Cells = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class SizeTable:
    """Losses of ``n`` finished models in ``d`` domains.

    Attributes:
        source: Where it came from, for messages.
        domains: Names of the columns.
        params: Parameters of each model, float64 ``[n]``.
        losses: Nats per token, float64 ``[n, d]``; NaN where a model was not measured.
        errors: Their standard errors, float64 ``[n, d]``; NaN where they are not known.
    """

    source: str
    domains: tuple[str, ...]
    params: NDArray[np.float64]
    losses: NDArray[np.float64]
    errors: NDArray[np.float64]

    def laws(self) -> dict[str, SizeLaw]:
        """Fit the law over sizes of each domain.

        Raises:
            LossTableError: A domain has losses at fewer than two sizes.
        """
        laws = {}
        for domain, losses, errors in zip(self.domains, self.losses.T, self.errors.T, strict=True):
            law = fit_size_law(self.params, losses, errors=errors) if (losses > 0).any() else None
            sizes = 0 if law is None else law.sizes
            if law is None or sizes < 2:
                raise LossTableError(
                    f"{self.source}: losses of domain {domain!r} at {sizes} size{'s' if sizes != 1 else ''}; "
                    "expected at least 2 sizes",
                    "Add finished models of other sizes: `drpruning eval loss MODEL MODEL ... --corpus CORPUS --json`.",
                )
            laws[domain] = law
        return laws

    def reference_losses(self, params: float) -> dict[str, float]:
        """Return the predicted loss of a finished model with ``params`` parameters in each domain, to four digits.

        Raises:
            LossTableError: As :meth:`laws`, or the losses of a domain do not fall with the size.
        """
        laws = self.laws()
        if flat := [domain for domain, law in laws.items() if law.status == "not_identified"]:
            raise LossTableError(
                f"{self.source}: domain {flat[0]!r} has no law over sizes: {laws[flat[0]].reason}",
                "Add models, or give the reference losses as numbers.",
            )
        return {domain: round(law.predict(params)[0], DIGITS) for domain, law in laws.items()}


def read_size_losses(
    source: str | Path, *, domains: Sequence[str] | None = None, columns: str | None = None
) -> SizeTable:
    """Read the losses of finished models.

    Args:
        source: The JSON of ``drpruning eval loss MODEL... --json``; or CSV, JSON lines or a JSON array with a row
            for each model: ``params`` (``6738415616`` or ``7B``) and a column for each domain, or ``params``,
            ``domain`` and ``loss``. Columns ``model``, ``name``, ``path``, ``tokens`` are ignored.
        domains: Domains to read, in this order; all if None.
        columns: Pattern of the columns that hold losses, such as ``eval/<domain>``.

    Raises:
        LossTableError: The file cannot be read as described; the message names line and column.
        DiskError: The operating system cannot open it.
    """
    path = Path(source)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a long name
        raise LossTableError(f"{path} is a folder; expected a table of finished models", "See `drpruning fit --help`.")
    found = _Models(str(path))
    content = read_file(path, LossTableError, LARGEST_FILE)
    body = _json(content)
    if isinstance(body, dict) and isinstance(body.get("models"), list):
        _read_evaluation(body["models"], found)
    else:
        _read_rows(_records(path, content, body), found, None if columns is None else Pattern(columns))
    return found.table(domains)


@dataclass
class _Models:
    """What is read, model by model; rows of one size and one domain are different models."""

    source: str
    rows: list[tuple[float, dict[str, tuple[float, float]]]] = field(default_factory=list)

    def table(self, domains: Sequence[str] | None) -> SizeTable:
        known = dict.fromkeys(name for _, losses in self.rows for name in losses)
        if not known:
            raise LossTableError(f"{self.source} holds no loss; expected a row for each model")
        for domain in domains or ():
            if domain not in known:
                raise LossTableError(
                    f"{self.source} has no losses of domain {domain!r}; it has {listed(known)}",
                    did_you_mean(domain, known),
                )
        names = tuple(known if domains is None else dict.fromkeys(domains))
        cells = np.array(
            [[losses.get(name, (math.nan, math.nan)) for name in names] for _, losses in self.rows], dtype=np.float64
        )
        return SizeTable(
            source=self.source,
            domains=names,
            params=np.array([size for size, _ in self.rows], dtype=np.float64),
            losses=cells[:, :, 0],
            errors=cells[:, :, 1],
        )


def _json(content: bytes) -> Any:
    """Parse the content of a file as one JSON value; return None if it is none."""
    if content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _records(path: Path, content: bytes, body: Any) -> Iterator[tuple[str, Cells]]:
    """Yield the place of each row and its cells by name."""
    if body is not None:
        for number, item in enumerate(body if isinstance(body, list) else [body], start=1):
            yield _record(f"{path}, entry {number}", item)
        return
    with BytesIO(content) as stream:
        numbered = lines(stream, str(path))
        first = next(numbered, None)
        if first is None:
            raise LossTableError(f"{path} is empty; expected a row for each model")
        rows = chain([first], numbered)
        if not first[1].lstrip().startswith("{"):
            yield from csv_records(rows, str(path))[1]
            return
        for number, text in rows:
            where = f"{path}, line {number}"
            try:
                item = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise LossTableError(f"{where} is not JSON") from error
            yield _record(where, item)


def _record(where: str, item: Any) -> tuple[str, Cells]:
    if not isinstance(item, dict):
        raise LossTableError(f"{where} holds {type(item).__name__}; expected an object with params and losses")
    return where, dict(flattened(item, where))


def _read_rows(records: Iterator[tuple[str, Cells]], found: _Models, pattern: Pattern | None) -> None:
    for where, cells in records:
        roles = {name: role(name) for name in cells}
        if "step" in roles.values():
            raise LossTableError(
                f"{where} has a step, so it is an evaluation of a training run; expected finished models",
                "For a training run leave out --at-params; for models of several sizes leave out the column.",
            )
        columns = [name for name, kind in roles.items() if kind == "params"]
        if len(columns) != 1:
            raise LossTableError(
                f"{where} has {len(columns)} columns of parameters; expected one, called params",
                f"The columns are {listed(cells)}.",
            )
        size = _size(cells[columns[0]], f"{where}, column {columns[0]!r}")
        nested = next(
            (f"{key}/" for key in ("losses", "loss") if any(name.startswith(f"{key}/") for name in cells)), ""
        )
        names = [name for name in cells if name.startswith(nested) and role(name) is None and name.lower() not in NAMES]
        layout = find_layout(names, where, pattern)
        if layout.long:
            losses = {str(cells["domain"] or "").strip(): cells["loss"]}
            if "" in losses:
                raise LossTableError(f"{where}, column 'domain' is empty; expected the name of a domain")
        else:
            losses = {name.removeprefix(nested): cells[column] for column, name in layout.domains.items()}
        checked = {name: loss(value, f"{where}, loss of {name!r}") for name, value in losses.items()}
        found.rows.append((size, {name: (value, math.nan) for name, value in checked.items()}))


def _read_evaluation(models: Sequence[Any], found: _Models) -> None:
    """Add the models in the output of `drpruning eval loss --json`."""
    for number, model in enumerate(models, start=1):
        where = f"{found.source}, model {number}"
        if not isinstance(model, dict) or not isinstance(model.get("domains"), dict):
            raise LossTableError(
                f"{where} has no losses by domain; expected the output of `drpruning eval loss --json`"
            )
        if model.get("ids") == "own":
            raise LossTableError(
                f"{where}, {shown(model.get('model'))}, was measured with its own tokenizer; expected the corpus's",
                "Give models of one family, which share a tokenizer.",
            )
        losses = {}
        for domain, measured in model["domains"].items():
            body = measured if isinstance(measured, dict) else {}
            losses[str(domain)] = (
                loss(body.get("loss"), f"{where}, loss of {domain!r}"),
                loss(body.get("standard_error"), f"{where}, standard error of {domain!r}"),
            )
        found.rows.append((_size(model.get("parameters"), f"{where}, parameters"), losses))


def _size(value: Any, where: str) -> float:
    """Parse a number of parameters, also in the form 7B."""
    amount = amount_of(value) if isinstance(value, str) else None
    size = amount or params(value, where)
    if size is None:
        raise LossTableError(f"{where} is empty; expected a number of parameters, such as 6738415616 or 7B")
    return size
