"""Output of `drpruning fit`: the law of each domain and its prediction."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.loss_options import format_amount, results_console
from drpruning.formatting import number, printable
from drpruning.tables import Row, Table
from drpruning.tables.terminal import print_table

if TYPE_CHECKING:
    from drpruning.loss_table import LossTable
    from drpruning.scaling import ScalingLaw


def print_laws(table: LossTable, laws: Sequence[ScalingLaw | None], end: float | None, *, as_json: bool) -> None:
    """Print laws and predictions.

    Args:
        table: The losses.
        laws: The law of each domain; None for a domain without losses.
        end: Tokens or steps to predict at, if any.
        as_json: Print JSON.
    """
    rows = [_law_to_dict(table, index, law, end) for index, law in enumerate(laws)]
    if as_json:
        unit = "tokens" if table.counts_tokens else "steps"
        click.echo(json.dumps({"source": table.source, "unit": unit, "at": end, "domains": rows}, indent=2))
        return
    console = results_console()
    last = format_amount(float(table.tokens[-1]), table.counts_tokens)
    until = "" if end is None else f"; predicted for {format_amount(end, table.counts_tokens)}"
    evaluations = f"{len(table.tokens)} evaluation{'' if len(table.tokens) == 1 else 's'}"
    rates = "" if table.learning_rates is None else "; with learning rates"
    console.print(f"Held-out loss, nats per token: {evaluations} up to {last}{until}{rates}", style="bold")
    print_table(console, _law_table(rows, with_prediction=end is not None))
    for reason, domains in _reasons(rows).items():
        console.print(printable(f"not identified, {', '.join(domains)}: {reason}"), markup=False, soft_wrap=True)
    if end is None:
        option = "--at" if table.counts_tokens else "--at-step"
        click.echo(f"Give {option} N to predict the losses.", err=True)


def _law_to_dict(table: LossTable, index: int, law: ScalingLaw | None, end: float | None) -> dict[str, Any]:
    """Return the law of a domain as JSON-able data."""
    measured = [
        (int(tokens), float(loss))
        for tokens, loss in zip(table.tokens, table.losses[:, index], strict=True)
        if math.isfinite(loss)
    ]
    row: dict[str, Any] = {"domain": table.domains[index], "status": "no_losses", "points": 0}
    if law is None:
        return row
    row |= {"status": law.status, "points": law.points, "last_tokens": measured[-1][0], "last_loss": measured[-1][1]}
    if law.status == "identified":
        alpha = law.alpha if law.alpha_identified else None
        row |= {"A": law.A, "alpha": alpha, "beta": law.beta, "E": law.E, "residual": law.residual}
    else:
        row["reason"] = law.reason
    if end is not None:
        value, low, high = law.predict(float(table.params[-1]), end)
        row |= {"predicted_loss": value, "band_low": low, "band_high": high}
    return row


def _reasons(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the reasons of laws that are not identified, each with its domains."""
    domains: dict[str, list[str]] = {}
    for row in rows:
        if row.get("reason"):
            domains.setdefault(row["reason"], []).append(row["domain"])
    return domains


def _law_table(rows: Sequence[dict[str, Any]], *, with_prediction: bool) -> Table:
    """Tabulate the laws; columns without any value are omitted."""

    def cell(row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        return number(math.nan if value is None else value)

    with_alpha = any(row.get("alpha") is not None for row in rows)
    with_status = any(row["status"] != "identified" for row in rows)
    columns = ["domain", "points", "E", *(["alpha"] if with_alpha else []), "beta", "residual", "last\nloss"]
    columns += ["predicted\nloss", "90% band"] if with_prediction else []
    table_rows = []
    for row in rows:
        residual = row.get("residual")
        cells = [f"{row['points']:,}", cell(row, "E"), *([cell(row, "alpha")] if with_alpha else [])]
        cells += [cell(row, "beta"), "–" if residual is None else f"{residual:.2%}", cell(row, "last_loss")]
        if with_prediction:
            band = f"{cell(row, 'band_low')} to {cell(row, 'band_high')}"
            cells += [cell(row, "predicted_loss"), band] if row["status"] == "identified" else ["–", "–"]
        table_rows.append(Row.of(row["domain"], *cells, *([row["status"].replace("_", " ")] if with_status else [])))
    return Table([*columns, *(["law"] if with_status else [])], table_rows, text_columns=("domain", "law"))
