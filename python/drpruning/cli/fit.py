"""`drpruning fit`: fit the scaling law of each domain and predict losses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drpruning.cli.loss_options import (
    add_learning_rates,
    end_of_training,
    learning_rates_option,
    losses_argument,
    table_laws,
)
from drpruning.cli.options import examples, figure_path, json_option, parse_names, positive_amount

if TYPE_CHECKING:
    from drpruning.loss_table import LossTable


@dataclass(frozen=True)
class FitRequest:
    """The options of `drpruning fit` for one training run; None where an option is not given."""

    losses: str
    columns: str | None
    domains: str | None
    tokens_per_step: float | None
    params: float | None
    stage: str | None
    at: float | None
    at_step: float | None
    learning_rates: str | None


@click.command(
    short_help="Fit the scaling law of each domain and predict losses.",
    epilog=examples("""
  drpruning fit losses.csv --at 20B --tokens-per-step 4M    # or --at-step 5000
  drpruning fit losses.csv --at 20B --learning-rates cosine:warmup=2%,final=10%
  drpruning fit tensorboard/ --columns 'eval/loss/<domain>' --tokens-per-step 4M --at 20B \\
      --plot laws.png
  drpruning fit runs/quickstart --json
  drpruning eval loss Qwen/Qwen2-0.5B Qwen/Qwen2-1.5B Qwen/Qwen2-7B --corpus corpus/ --json > sizes.json
  drpruning fit sizes.json --at-params 1.8B --yaml    # reference losses for a recipe"""),
)
@losses_argument
@click.option("--domains", metavar="A,B", help="Fit only these domains.  [default: all]")
@click.option(
    "--at",
    metavar="N",
    callback=positive_amount,
    help="Number of tokens at which to predict the losses.  [default: the end of a run folder]",
)
@click.option(
    "--at-step",
    metavar="N",
    callback=positive_amount,
    help="Step at which to predict the losses, instead of --at where LOSSES counts steps.",
)
@click.option(
    "--at-params",
    metavar="N",
    callback=positive_amount,
    help="Read LOSSES as losses of finished models, and print the loss that each domain should reach at N parameters.",
)
@learning_rates_option
@json_option()
@click.option(
    "--yaml", "as_yaml", is_flag=True, help="With --at-params: print the reference losses in the form of a recipe."
)
@click.option(
    "--plot",
    metavar="PATH",
    callback=figure_path,
    help="Plot losses, laws, predictions and bands to a .png, .svg or .pdf file.",
)
def fit(as_json: bool, as_yaml: bool, plot: Path | None, at_params: float | None, **options: object) -> None:
    """Fit loss = A P^-alpha T^-beta + E to each domain of LOSSES and print what it predicts, with a 90% band.

    LOSSES is a CSV or JSON lines file (- for standard input) with a column step or tokens, optionally a column params,
    and a column per domain or the columns domain and loss; a TensorBoard event file or a folder of such files; or a run
    folder.

    With the learning rates, the law predicts real losses about twice as well. The schedule ends at --at or --at-step,
    unless it contains end=N.

    With --at-params, LOSSES has a row for each finished model of a family: a column params (6738415616, or 7B) and a
    column per domain, or the JSON of `drpruning eval loss MODEL... --json`. loss = A P^-alpha + E is fitted over the
    sizes, and the loss expected at N parameters is printed: the reference losses of Sheared LLaMA.
    """
    from drpruning.errors import ConfigError

    request = FitRequest(**options)  # type: ignore[arg-type] # click passes exactly these options
    if at_params is not None:
        if as_json and as_yaml:
            raise ConfigError("--json and --yaml are both given", "Keep one of them.")
        _print_reference_losses(request, at_params, plot, "json" if as_json else "yaml" if as_yaml else "table")
        return
    if as_yaml:
        raise ConfigError("--yaml prints reference losses, which need --at-params", "Give --at-params N, or --json.")
    table, end = read_table(request)
    laws = table_laws(table)
    if plot is not None:
        from drpruning.report.figures.law_curves import draw_laws

        draw_laws(plot, table, laws, end)
    from drpruning.cli.render.laws import print_laws

    print_laws(table, laws, end, as_json=as_json)


def read_table(request: FitRequest) -> tuple[LossTable, float | None]:
    """Read the losses with their learning rates; return also the tokens or steps to predict at, if any.

    Raises:
        ConfigError: An option is wrong.
        LossTableError: The losses cannot be read.
    """
    from drpruning.loss_table import read_losses

    table = read_losses(
        request.losses,
        columns=request.columns,
        domains=parse_names(request.domains),
        tokens_per_step=request.tokens_per_step,
        params=request.params,
        stage=request.stage,
        rates=request.learning_rates is not None,
    )
    given = end_of_training(table, request.at, request.at_step, "--at", "--at-step")
    end = table.final_tokens if given is None else given
    if request.learning_rates is not None:
        table = add_learning_rates(table, request.learning_rates, end, request.tokens_per_step)
    return table, end


def _print_reference_losses(request: FitRequest, at_params: float, plot: Path | None, form: str) -> None:
    """Fit the losses of finished models over their sizes, and print the reference losses."""
    from drpruning.cli.render.reference_losses import print_reference_losses
    from drpruning.errors import ConfigError
    from drpruning.loss_table import read_size_losses

    of_one_run = {
        "--at": request.at,
        "--at-step": request.at_step,
        "--params": request.params,
        "--tokens-per-step": request.tokens_per_step,
        "--stage": request.stage,
        "--learning-rates": request.learning_rates,
        "--plot": plot,
    }
    if wrong := [option for option, value in of_one_run.items() if value is not None]:
        raise ConfigError(f"{wrong[0]} is for training runs, and --at-params for finished models", "Leave one out.")
    models = read_size_losses(request.losses, domains=parse_names(request.domains), columns=request.columns)
    print_reference_losses(models, at_params, form)
