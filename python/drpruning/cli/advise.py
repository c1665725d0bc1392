"""`drpruning weights`: what the mixture should be now, for a training loop that is not ours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.loss_options import end_of, fitted, losses_argument, to_amount, to_figure
from drpruning.cli.rates import given_rates, learning_rates_option

if TYPE_CHECKING:
    from drpruning.advice import Advice, Tally
    from drpruning.loss_table import LossTable


@click.command(
    epilog="""\b
Examples:
  drpruning weights losses.csv --ratio web=0.8,code=0.2 --final-tokens 20B
  drpruning weights losses.csv --ratio ratio.yaml --final-tokens 20B \\
      --reference-loss web=2.1,code=1.2 --set rho=0.2
  drpruning weights losses.csv --state mixture.json     # after the first call: the rest is in the state
  drpruning weights tensorboard/ --columns 'lm loss validation <domain>' --tokens-per-step 4M \\
      --ratio web=0.8,code=0.2 --final-tokens 20B --megatron 'data/<domain>_text_document'""",
)
@losses_argument
@click.option("--strategy", metavar="NAME", help="Who chooses the mixture.  [default: drpruning]")
@click.option(
    "--ratio",
    metavar="RATIO",
    help="Mixture that training started with: web=0.8,code=0.2, or a JSON or YAML file.  [default: a run folder's own]",
)
@click.option(
    "--reference-loss",
    metavar="LOSSES",
    help="Loss each domain should reach, nats per token, where known; written as RATIO is.",
)
@click.option(
    "--noise",
    metavar="NATS",
    help="Standard error of a loss, nats per token: one for all domains, or written as RATIO is. Differences within it "
    "move the mixture little.  [default: what a run folder has]",
)
@click.option(
    "--final-tokens",
    metavar="N",
    callback=to_amount,
    help="Tokens at the end of training.  [default: a run folder's own]",
)
@click.option("--final-step", metavar="N", callback=to_amount, help="The last step instead, where LOSSES counts steps.")
@learning_rates_option
@click.option("--set", "settings", metavar="A=B", multiple=True, help="A setting of the strategy; repeatable.")
@click.option(
    "--state",
    "state_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what was counted in this file; later calls need only it and LOSSES, all of them or the new rows.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--megatron", metavar="PATTERN", help="Print a --data-path for Megatron, <domain> put into PATTERN.")
@click.option(
    "--plot",
    metavar="PATH",
    callback=to_figure,
    help="Draw curves, laws, bands and weights over time: .png, .svg or .pdf.",
)
def command(
    *,
    losses: str,
    columns: str | None,
    tokens_per_step: float | None,
    params: float | None,
    stage: str | None,
    strategy: str | None,
    ratio: str | None,
    reference_loss: str | None,
    noise: str | None,
    final_tokens: float | None,
    final_step: float | None,
    learning_rates: str | None,
    settings: tuple[str, ...],
    state_path: Path | None,
    as_json: bool,
    megatron: str | None,
    plot: Path | None,
) -> None:
    """Give the evaluations in LOSSES to a strategy, in the order of training, and print the mixture it chooses.

    LOSSES is a CSV or JSON lines file (- for standard input) with a column step or tokens, perhaps params, and a column
    per domain or columns domain and loss; a TensorBoard event file or a folder of them; or a run folder.

    With --state, ask again after each evaluation: what was counted before is recognised by its tokens (or steps).
    """
    from rich.console import Console

    from drpruning.advice import Advice, as_data
    from drpruning.cli.options import by_domain
    from drpruning.cli.render.advice import described, megatron_blend, print_mixture, print_tally
    from drpruning.loss_table import read_losses

    if megatron is not None:
        _check_megatron(megatron, as_json)
    known = Advice.read(state_path) if state_path is not None and state_path.exists() else None
    reading: dict[str, Any] = {"columns": columns, "tokens_per_step": tokens_per_step, "params": params, "stage": stage}
    if known is not None:
        reading = {key: known.reading.get(key) if value is None else value for key, value in reading.items()}
    rates = learning_rates is not None or (known is not None and known.learning_rates is not None)
    started = None if ratio is None else by_domain("--ratio", ratio)
    wanted = None if reference_loss is None else by_domain("--reference-loss", reference_loss)
    if known is not None:
        errors_given = None if noise is None else _errors(noise, known.domains)
        _check_same(known, strategy, settings, started, wanted, reading, errors_given)
        started = known.reference_ratio
    table = read_losses(losses, domains=None if started is None else list(started), rates=rates, **reading)
    if started is None:
        started = _ratio_of(table)
        if list(started) != list(table.domains):
            table = read_losses(losses, domains=list(started), rates=rates, **reading)
    advice = known or _start(strategy, settings, started, wanted, reading)
    if known is None and noise is not None:
        advice.standard_errors = _errors(noise, advice.domains)
    ends = (
        end_of(table, final_tokens, final_step, "--final-tokens", "--final-step"),
        advice.final_tokens,
        table.final_tokens,
    )
    advice.final_tokens = next((end for end in ends if end is not None), None)
    if learning_rates is not None:
        told = given_rates(learning_rates, table, advice.final_tokens, reading["tokens_per_step"])
        advice.learning_rates = as_data(told)

    errors = Console(stderr=True, highlight=False)
    with errors.status("replaying the evaluations") if errors.is_terminal else nullcontext():
        tally = _take(advice, table)
    if state_path is not None:
        advice.write(state_path)
    if plot is not None:
        from drpruning.report.figures.law_curves import draw_mixture

        counted = advice.table()
        mixtures = [row.weights for row in advice.counted]
        draw_mixture(plot, counted, fitted(counted), advice.final_tokens, mixtures, title=advice.strategy)
    print_tally(tally, advice)
    if megatron is not None:
        click.echo(megatron_blend(advice, megatron))
    elif as_json:
        click.echo(json.dumps(described(advice, tally), indent=2, allow_nan=False))
    else:
        print_mixture(advice)


def _ratio_of(table: LossTable) -> dict[str, float]:
    """The mixture the source says it started from."""
    from drpruning.errors import ConfigError

    if table.reference_ratio is None:
        share = f"{1 / len(table.domains):.3g}"
        example = ",".join(f"{domain}={share}" for domain in table.domains[:3])
        raise ConfigError(
            "--ratio is missing: the mixture that training started with",
            f"For example --ratio {example}{',...' if len(table.domains) > 3 else ''}; the shares sum to 1.",
        )
    return dict(table.reference_ratio)


def _start(
    strategy: str | None,
    settings: tuple[str, ...],
    ratio: Mapping[str, float],
    reference_loss: Mapping[str, float] | None,
    reading: Mapping[str, Any],
) -> Advice:
    from drpruning.advice import Advice
    from drpruning.cli.options import by_name
    from drpruning.mixture import build

    made = build(strategy or "drpruning", by_name(settings))
    return Advice.new(made, ratio, reference_loss=reference_loss, reading=reading)


def _check_same(
    known: Advice,
    strategy: str | None,
    settings: tuple[str, ...],
    ratio: Mapping[str, float] | None,
    reference_loss: Mapping[str, float] | None,
    reading: Mapping[str, Any],
    standard_errors: Mapping[str, float] | None,
) -> None:
    """Makes sure that what was given on the command line is what ``known`` was begun with.

    Raises:
        StateError: It was begun with something else.
    """
    from drpruning.cli.options import by_name
    from drpruning.errors import StateError
    from drpruning.mixture import build, settings_of

    asked = settings_of(build(strategy or known.strategy, by_name(settings)))
    changes: list[tuple[str, object, object]] = []
    if strategy not in (None, known.strategy):
        changes.append(("--strategy", known.strategy, strategy))
    elif settings:
        names = by_name(settings)
        changes += [
            (f"--set {name}", known.settings.get(name), asked[name])
            for name in names
            if known.settings.get(name) != asked[name]
        ]
    if ratio is not None and ratio != known.reference_ratio:
        changes.append(("--ratio", known.reference_ratio, dict(ratio)))
    if reference_loss is not None and reference_loss != known.reference_loss:
        changes.append(("--reference-loss", known.reference_loss, dict(reference_loss)))
    if standard_errors is not None and standard_errors != known.standard_errors:
        changes.append(("--noise", known.standard_errors, dict(standard_errors)))
    tokens_per_step = known.reading.get("tokens_per_step")
    if reading["tokens_per_step"] != tokens_per_step:
        changes.append(("--tokens-per-step", tokens_per_step, reading["tokens_per_step"]))
    if changes:
        option, before, now = changes[0]
        raise StateError(
            f"the state was begun with {option} {before}, not {now}",
            "Leave the option out, or start anew: another --state and the whole table.",
        )


def _errors(noise: str, domains: Sequence[str]) -> dict[str, float]:
    """Standard errors by domain.

    Raises:
        ConfigError: One is not a finite number of at least zero, or is of a domain that the mixture has not.
    """
    from drpruning.cli.options import by_domain
    from drpruning.errors import ConfigError, did_you_mean

    try:
        errors = dict.fromkeys(domains, float(noise))
    except ValueError:
        errors = by_domain("--noise", noise)
    for domain, error in errors.items():
        if domain not in domains:
            raise ConfigError(f"--noise names domain {domain!r}", did_you_mean(domain, domains))
        if not 0 <= error < math.inf:
            raise ConfigError(f"--noise of domain {domain!r} is {error}; it must be finite and at least 0")
    return errors


def _take(advice: Advice, table: LossTable) -> Tally:
    from drpruning.errors import ConfigError

    try:
        return advice.take(table)
    except ConfigError as error:
        if advice.final_tokens is not None:
            raise
        option = "--final-tokens N" if table.counts_tokens else "--final-step N"
        raise ConfigError(error.message, f"Give {option}.") from error


def _check_megatron(pattern: str, as_json: bool) -> None:
    from drpruning.errors import ConfigError

    if "<domain>" not in pattern:
        raise ConfigError(
            f"--megatron {pattern!r} must hold <domain>", "For example --megatron 'data/<domain>_text_document'."
        )
    if as_json:
        raise ConfigError("--megatron and --json are both given", "Keep one of them.")
