"""`drpruning fit`: the scaling law of each domain, and where it says the losses will be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.loss_options import amount, console, end_of, fitted, losses_argument, said, to_amount, to_figure
from drpruning.cli.rates import learning_rates_option, with_rates
from drpruning.formatting import printable

if TYPE_CHECKING:
    from drpruning.loss_table import LossTable
    from drpruning.scaling import ScalingLaw


@click.command(
    epilog="""\b
Examples:
  drpruning fit losses.csv --at 20B --tokens-per-step 4M    # or --at-step 5000
  drpruning fit losses.csv --at 20B --learning-rates cosine:warmup=2%,final=10%
  drpruning fit tensorboard/ --columns 'eval/loss/<domain>' --tokens-per-step 4M --at 20B \\
      --plot laws.png
  drpruning fit runs/quickstart --json
  drpruning eval Qwen/Qwen2-0.5B Qwen/Qwen2-1.5B Qwen/Qwen2-7B --corpus corpus/ --json > sizes.json
  drpruning fit sizes.json --at-params 1.8B --yaml    # reference losses for a recipe""",
)
@losses_argument
@click.option("--domains", metavar="A,B", help="Those to fit.  [default: all]")
@click.option(
    "--at",
    metavar="N",
    callback=to_amount,
    help="Tokens at which to predict the losses.  [default: a run folder's end]",
)
@click.option("--at-step", metavar="N", callback=to_amount, help="The step instead, where LOSSES counts steps.")
@click.option(
    "--at-params",
    metavar="N",
    callback=to_amount,
    help="LOSSES are of finished models; print the loss each domain should reach at N parameters.",
)
@learning_rates_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--yaml", "as_yaml", is_flag=True, help="With --at-params: print the reference losses as a recipe has them."
)
@click.option(
    "--plot", metavar="PATH", callback=to_figure, help="Draw curves, laws, predictions and bands: .png, .svg or .pdf."
)
def command(
    *,
    losses: str,
    columns: str | None,
    domains: str | None,
    tokens_per_step: float | None,
    params: float | None,
    stage: str | None,
    at: float | None,
    at_step: float | None,
    at_params: float | None,
    learning_rates: str | None,
    as_json: bool,
    as_yaml: bool,
    plot: Path | None,
) -> None:
    """Fit loss = A P^-alpha T^-beta + E to each domain of LOSSES and print what it predicts, with a 90% band.

    LOSSES is a CSV or JSON lines file (- for standard input) with a column step or tokens, perhaps params, and a column
    per domain or columns domain and loss; a TensorBoard event file or a folder of them; or a run folder.

    Told the learning rates, the law predicts real losses about twice as well. They end at --at or
    --at-step, unless they say end=N.

    With --at-params, LOSSES has a row for each finished model of a family: a column params (6738415616, or 7B) and a
    column per domain, or the JSON that `drpruning eval MODEL... --json` prints. loss = A P^-alpha + E is fitted over
    the sizes, and the loss expected at N parameters is printed: the reference losses of Sheared LLaMA.
    """
    from drpruning.errors import ConfigError
    from drpruning.loss_table import read_losses, read_size_losses

    if at_params is not None:
        curve: dict[str, object] = {
            "--at": at,
            "--at-step": at_step,
            "--params": params,
            "--tokens-per-step": tokens_per_step,
        }
        curve |= {"--stage": stage, "--learning-rates": learning_rates, "--plot": plot}
        if odd := [option for option, value in curve.items() if value is not None]:
            raise ConfigError(f"{odd[0]} is for training runs, and --at-params for finished models", "Leave one out.")
        if as_json and as_yaml:
            raise ConfigError("--json and --yaml are both given", "Keep one of them.")
        from drpruning.cli.render.reference_losses import print_reference_losses

        models = read_size_losses(losses, domains=None if domains is None else said(domains), columns=columns)
        print_reference_losses(models, at_params, "json" if as_json else "yaml" if as_yaml else "table")
        return
    if as_yaml:
        raise ConfigError("--yaml prints reference losses, which need --at-params", "Give --at-params N, or --json.")
    table = read_losses(
        losses,
        columns=columns,
        domains=None if domains is None else said(domains),
        tokens_per_step=tokens_per_step,
        params=params,
        stage=stage,
        rates=learning_rates is not None,
    )
    asked = end_of(table, at, at_step, "--at", "--at-step")
    end = table.final_tokens if asked is None else asked
    if learning_rates is not None:
        table = with_rates(table, learning_rates, end, tokens_per_step)
    laws = fitted(table)
    if plot is not None:
        from drpruning.report.figures.law_curves import draw_laws

        draw_laws(plot, table, laws, end)
    rows = [_row(table, index, law, end) for index, law in enumerate(laws)]
    if as_json:
        unit = "tokens" if table.counts_tokens else "steps"
        click.echo(json.dumps({"source": table.source, "unit": unit, "at": end, "domains": rows}, indent=2))
        return
    _print(table, rows, end)


def _row(table: LossTable, index: int, law: ScalingLaw | None, end: float | None) -> dict[str, Any]:
    """What is known about a domain, as JSON-able data."""
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
    if end is not None:
        value, low, high = law.predict(float(table.params[-1]), end)
        row |= {"predicted_loss": value, "band_low": low, "band_high": high}
    return row


def _print(table: LossTable, rows: list[dict[str, Any]], end: float | None) -> None:
    from rich.text import Text

    from drpruning.formatting import number
    from drpruning.tables.terminal import new_table

    def cell(row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        return number(math.nan if value is None else value)

    with_alpha = any(row.get("alpha") is not None for row in rows)
    titles = ["domain", "points", "E", *(["alpha"] if with_alpha else []), "beta", "residual", "last\nloss"]
    if end is not None:
        titles += ["predicted\nloss", "90% band"]
    without = any(row["status"] != "identified" for row in rows)
    shown = new_table([*titles, *(["law"] if without else [])], text=["domain", "law"])
    for row in rows:
        residual = row.get("residual")
        cells = [f"{row['points']:,}", cell(row, "E"), *([cell(row, "alpha")] if with_alpha else [])]
        cells += [cell(row, "beta"), "–" if residual is None else f"{residual:.2%}", cell(row, "last_loss")]
        if end is not None:
            cells += [cell(row, "predicted_loss"), f"{cell(row, 'band_low')} to {cell(row, 'band_high')}"]
        shown.add_row(Text(printable(row["domain"])), *cells, *([row["status"].replace("_", " ")] if without else []))
    out = console()
    last = amount(float(table.tokens[-1]), table.counts_tokens)
    until = "" if end is None else f"; predicted for {amount(end, table.counts_tokens)}"
    number_of = f"{len(table.tokens)} evaluation{'' if len(table.tokens) == 1 else 's'}"
    told = "" if table.learning_rates is None else "; learning rates known"
    out.print(f"Held-out loss, nats per token: {number_of} up to {last}{until}{told}", style="bold")
    out.print(shown)
    if end is None:
        option = "--at" if table.counts_tokens else "--at-step"
        click.echo(f"Give {option} N to see where the laws lead.", err=True)
