"""Output of `drpruning fit SIZES --at-params N`: the loss that each domain should reach at a size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.loss_options import results_console
from drpruning.formatting import count, number
from drpruning.tables import Row, Table
from drpruning.tables.terminal import print_table

if TYPE_CHECKING:
    from drpruning.loss_table import SizeTable


def print_reference_losses(table: SizeTable, params: float, form: str) -> None:
    """Print the reference losses at ``params`` parameters.

    Args:
        table: Losses of finished models.
        params: Number of parameters of the target.
        form: ``table``, ``json``, or ``yaml`` for the setting of a recipe.

    Raises:
        LossTableError: A domain has losses at fewer than two sizes; or ``form`` is ``yaml`` and a domain has no law.
    """
    if form == "yaml":
        import yaml

        section = {"mixture": {"reference_loss": table.reference_losses(params)}}
        click.echo(yaml.safe_dump(section, sort_keys=False, allow_unicode=True), nl=False)
        return
    rows = [_law_to_dict(domain, law, params) for domain, law in table.laws().items()]
    if form == "json":
        known = all(row["status"] != "not_identified" for row in rows)
        recipe = {"reference_loss": table.reference_losses(params)} if known else None
        body = {"source": table.source, "at_params": params, "domains": rows, "mixture": recipe}
        click.echo(json.dumps(body, indent=2, allow_nan=False))
        return
    console = results_console()
    smallest, largest = (count(float(size)) for size in (table.params.min(), table.params.max()))
    console.print(
        f"Expected loss of a finished model with {count(params)} parameters, nats per token; "
        f"from {len(table.params)} models, {smallest} to {largest}",
        style="bold",
    )
    print_table(console, _reference_table(rows))


def _law_to_dict(domain: str, law: Any, params: float) -> dict[str, Any]:
    """Return the law and the reference loss of a domain as JSON-able data."""
    value, low, high = law.predict(params)
    row = {"domain": domain, "status": law.status, "reason": law.reason, "sizes": law.sizes}
    if law.status != "not_identified":
        row |= {"A": law.A, "alpha": law.alpha, "E": law.E, "residual": law.residual}
    return row | {"reference_loss": value, "band_low": low, "band_high": high}


def _reference_table(rows: list[dict[str, Any]]) -> Table:
    from drpruning.loss_table.sizes import DIGITS

    with_reason = any(row["reason"] for row in rows)
    columns = ["domain", "sizes", "E", "alpha", "residual", "reference\nloss", "90% band"]
    table_rows = []
    for row in rows:
        known = row["status"] != "not_identified"
        cells = [number(row["E"]), number(row["alpha"]), f"{row['residual']:.2%}"] if known else ["–"] * 3
        cells += [f"{row['reference_loss']:.{DIGITS}f}", f"{number(row['band_low'])} to {number(row['band_high'])}"]
        reason = [row["reason"] or ""] if with_reason else []
        table_rows.append(Row.of(row["domain"], str(row["sizes"]), *cells, *reason))
    return Table([*columns, *(["law"] if with_reason else [])], table_rows, text_columns=("domain", "law"))
