"""What `drpruning fit SIZES --at-params N` prints: the loss that each domain should reach at a size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.loss_options import console
from drpruning.formatting import printable

if TYPE_CHECKING:
    from drpruning.loss_table import SizeTable


def print_reference_losses(table: SizeTable, params: float, form: str) -> None:
    """Prints the reference losses at ``params`` parameters.

    Args:
        table: Losses of finished models.
        params: Parameters of the target.
        form: ``table``, ``json`` or ``yaml``: the setting of a recipe.

    Raises:
        LossTableError: A domain has losses at fewer than two sizes; or there is no law, and a recipe is asked for.
    """
    if form == "yaml":
        import yaml

        section = {"mixture": {"reference_loss": table.reference_losses(params)}}
        click.echo(yaml.safe_dump(section, sort_keys=False, allow_unicode=True), nl=False)
        return
    rows = [_row(domain, law, params) for domain, law in table.laws().items()]
    if form == "json":
        known = all(row["status"] != "not_identified" for row in rows)
        recipe = {"reference_loss": table.reference_losses(params)} if known else None
        body = {"source": table.source, "at_params": params, "domains": rows, "mixture": recipe}
        click.echo(json.dumps(body, indent=2, allow_nan=False))
    else:
        _print(table, params, rows)


def _row(domain: str, law: Any, params: float) -> dict[str, Any]:
    """What is known about a domain, as JSON-able data."""
    value, low, high = law.predict(params)
    row = {"domain": domain, "status": law.status, "reason": law.reason, "sizes": law.sizes}
    if law.status != "not_identified":
        row |= {"A": law.A, "alpha": law.alpha, "E": law.E, "residual": law.residual}
    return row | {"reference_loss": value, "band_low": low, "band_high": high}


def _print(table: SizeTable, params: float, rows: list[dict[str, Any]]) -> None:
    from rich.text import Text

    from drpruning.formatting import count, number
    from drpruning.loss_table.sizes import DIGITS
    from drpruning.tables.terminal import new_table

    reasons = any(row["reason"] for row in rows)
    titles = ["domain", "sizes", "E", "alpha", "residual", "reference\nloss", "90% band", *(["law"] if reasons else [])]
    shown = new_table(titles, text=["domain", "law"])
    for row in rows:
        known = row["status"] != "not_identified"
        cells = [number(row["E"]), number(row["alpha"]), f"{row['residual']:.2%}"] if known else ["–"] * 3
        cells += [f"{row['reference_loss']:.{DIGITS}f}", f"{number(row['band_low'])} to {number(row['band_high'])}"]
        shown.add_row(Text(printable(row["domain"])), str(row["sizes"]), *cells, *([row["reason"]] if reasons else []))
    out = console()
    smallest, largest = (count(float(size)) for size in (table.params.min(), table.params.max()))
    out.print(
        f"Loss expected of a finished model with {count(params)} parameters, nats per token; "
        f"from {len(table.params)} models, {smallest} to {largest}",
        style="bold",
    )
    out.print(shown)
