"""`drpruning advise`: the mixture to train on next, for a training loop outside this package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.loss_options import (
    end_of_training,
    learning_rates_option,
    losses_argument,
    parse_rates,
    table_laws,
)
from drpruning.cli.options import (
    check_megatron,
    examples,
    figure_path,
    json_option,
    parse_numbers_by_domain,
    parse_settings,
    positive_amount,
)

if TYPE_CHECKING:
    from drpruning.advice import Advice, UpdateSummary
    from drpruning.loss_table import LossTable


@dataclass(frozen=True)
class AdviceRequest:
    """The options of `drpruning advise` that decide the mixture; None where an option is not given.

    Attributes:
        losses: Path of the losses; ``-`` is standard input.
        columns: Pattern of the columns with losses.
        tokens_per_step: Tokens in a step.
        params: Number of parameters of the model.
        stage: Stage of a run folder.
        strategy: Name of the strategy.
        ratio: Mixture that training started with, as text.
        corpus: Corpus whose sizes a static mixture needs; None: that of a run folder.
        reference_loss: Loss each domain should reach, as text.
        noise: Standard errors of the losses, as text.
        final_tokens: Tokens at the end of training.
        final_step: Last step of the training.
        learning_rates: Description or file of the learning-rate schedule.
        settings: ``A=B`` settings of the strategy.
        state: File that stores the evaluations counted so far.
    """

    losses: str
    columns: str | None
    tokens_per_step: float | None
    params: float | None
    stage: str | None
    strategy: str | None
    ratio: str | None
    corpus: Path | None
    reference_loss: str | None
    noise: str | None
    final_tokens: float | None
    final_step: float | None
    learning_rates: str | None
    settings: tuple[str, ...]
    state: Path | None


@click.command(
    short_help="Choose the next mixture from the losses of any training run.",
    epilog=examples("""
  drpruning advise losses.csv --ratio web=0.8,code=0.2 --final-tokens 20B
  drpruning advise losses.csv --ratio ratio.yaml --final-tokens 20B \\
      --reference-loss web=2.1,code=1.2 --set rho=0.2
  drpruning advise losses.csv --state mixture.json     # after the first call: the state has the other options
  drpruning advise tensorboard/ --columns 'lm loss validation <domain>' --tokens-per-step 4M \\
      --ratio web=0.8,code=0.2 --final-tokens 20B --megatron 'data/<domain>_text_document'"""),
)
@losses_argument
@click.option("--strategy", metavar="NAME", help="Strategy that chooses the mixture.  [default: drpruning]")
@click.option(
    "--ratio",
    metavar="RATIO",
    help="Mixture that training started with: web=0.8,code=0.2, a JSON or YAML file, or the name of a static mixture: "
    "natural, uniform, temperature:0.5, unimax:4, average:RUN.  [default: a run folder's ratio]",
)
@click.option(
    "--corpus",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Corpus whose domains a static mixture of --ratio is computed for.  [default: a run folder's]",
)
@click.option(
    "--reference-loss",
    metavar="LOSSES",
    help="Loss that each domain should reach, in nats per token, where known; same form as RATIO.",
)
@click.option(
    "--noise",
    metavar="NATS",
    help="Standard error of a loss, in nats per token: one number for all domains, or the same form as RATIO. "
    "Differences within the noise move the mixture little.  [default: the errors in a run folder]",
)
@click.option(
    "--final-tokens",
    metavar="N",
    callback=positive_amount,
    help="Tokens at the end of training.  [default: the end of a run folder]",
)
@click.option(
    "--final-step",
    metavar="N",
    callback=positive_amount,
    help="Last step of the training, instead of --final-tokens where LOSSES counts steps.",
)
@learning_rates_option
@click.option("--set", "settings", metavar="A=B", multiple=True, help="Change one setting of the strategy. Repeatable.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Store the counted evaluations in this file. Later calls need only this option and LOSSES, which may be the "
    "whole table or only the new rows.",
)
@json_option()
@click.option(
    "--megatron",
    metavar="PATTERN",
    help="Print a --data-path for Megatron; each domain's name replaces <domain> in PATTERN.",
)
@click.option(
    "--plot",
    metavar="PATH",
    callback=figure_path,
    help="Plot losses, fitted laws with bands, and the mixture over time to a .png, .svg or .pdf file.",
)
def advise(as_json: bool, megatron: str | None, plot: Path | None, **options: object) -> None:
    """Replay the evaluations in LOSSES, in the order of training, and print the mixture that a strategy chooses.

    LOSSES is a CSV or JSON lines file (- for standard input) with a column step or tokens, optionally a column params,
    and a column per domain or the columns domain and loss; a TensorBoard event file or a folder of such files; or a run
    folder.

    With --state, call the command after each evaluation: evaluations that were counted before are recognised by their
    tokens (or steps).
    """
    import json

    if megatron is not None:
        check_megatron(megatron, as_json)
    advice, tally = update_advice(AdviceRequest(**options))  # type: ignore[arg-type] # click passes these options
    if plot is not None:
        _plot(plot, advice)
    from drpruning.cli.render import advice as render

    render.print_tally(tally, advice)
    if megatron is not None:
        click.echo(render.megatron_blend(advice, megatron))
    elif as_json:
        click.echo(json.dumps(render.advice_to_dict(advice, tally), indent=2, allow_nan=False))
    else:
        render.print_mixture(advice)


def update_advice(request: AdviceRequest) -> tuple[Advice, UpdateSummary]:
    """Read the losses, resume or start the advice, replay the new evaluations, and write the state.

    Raises:
        ConfigError: An option is missing or wrong.
        LossTableError: The losses cannot be read.
        StateError: The state is of other options.
    """
    from rich.console import Console

    from drpruning.advice import Advice, as_data

    known = Advice.read(request.state) if request.state is not None and request.state.exists() else None
    ratio = None if request.ratio is None else _parse_ratio(request, request.ratio)
    reading = _reading(request, known)
    if ratio is not None:
        _check_sum(ratio, request, reading)
    if known is not None:
        _check_same(known, request, ratio, reading)
        ratio = known.reference_ratio
    table, ratio = _read_table(request, known, ratio, reading)
    advice = known or _start(request, ratio, reading)
    ends = (
        end_of_training(table, request.final_tokens, request.final_step, "--final-tokens", "--final-step"),
        advice.final_tokens,
        table.final_tokens,
    )
    advice.final_tokens = next((end for end in ends if end is not None), None)
    if request.learning_rates is not None:
        rates = parse_rates(request.learning_rates, table, advice.final_tokens, reading["tokens_per_step"])
        advice.learning_rates = as_data(rates)
    errors = Console(stderr=True, highlight=False)
    with errors.status("replaying the evaluations") if errors.is_terminal else nullcontext():
        tally = _replay(advice, table)
    if request.state is not None:
        advice.write(request.state)
    return advice, tally


def _parse_ratio(request: AdviceRequest, text: str) -> dict[str, float]:
    """Return the shares of ``--ratio``: numbers by domain, or a static mixture of the corpus.

    Raises:
        ConfigError: The text is neither, or the corpus or the length of the training is not known.
        WeightError: The static mixture cannot be computed.
    """
    from drpruning.errors import ConfigError
    from drpruning.mixture.static import RULES, check_name, static_mixture

    rule = text.partition(":")[0]
    if rule not in RULES or Path(text).is_file():
        return parse_numbers_by_domain("--ratio", text)
    check_name(text)
    if rule == "average":
        return static_mixture(text, {})
    tokens = request.final_tokens
    if tokens is None and request.final_step is not None and request.tokens_per_step is not None:
        tokens = request.final_step * request.tokens_per_step
    if rule == "unimax" and tokens is None:
        raise ConfigError(f"--ratio {text} needs the tokens of the training", "Give --final-tokens N.")
    return static_mixture(text, _domain_tokens(request, text), tokens)


def _check_sum(ratio: dict[str, float], request: AdviceRequest, reading: dict[str, Any]) -> None:
    """Check that the shares of ``--ratio`` sum to one.

    Raises:
        WeightError: They do not; the message names the domains of LOSSES that the ratio lacks.
    """
    from drpruning.errors import DrpruningError, WeightError
    from drpruning.loss_table import read_losses
    from drpruning.mixture.state_schema import SUM_TOLERANCE

    total = math.fsum(ratio.values())
    if not all(0 < share < math.inf for share in ratio.values()) or abs(total - 1) <= SUM_TOLERANCE:
        return
    if abs(total - 100) <= 100 * SUM_TOLERANCE:
        fractions = ",".join(f"{domain}={share / 100:.12g}" for domain, share in ratio.items())
        raise WeightError("--ratio sums to 100; expected 1", f"Divide by 100: --ratio {fractions}")
    missing: list[str] = []
    if request.losses != "-":
        try:
            missing = [name for name in read_losses(request.losses, **reading).domains if name not in ratio]
        except DrpruningError:  # which reading with the domains of the ratio explains
            return
    if not missing:
        raise WeightError(f"--ratio sums to {total:.6g}; expected 1", f"For example --ratio {_scaled(ratio, total)}")
    raise WeightError(
        f"--ratio sums to {total:.6g} without {', '.join(missing)}; expected 1 over all domains",
        f"Add {', '.join(f'{name}=SHARE' for name in missing)} to --ratio.",
    )


def _scaled(ratio: dict[str, float], total: float) -> str:
    """Return shares in the form of ``--ratio``, divided by their sum."""
    return ",".join(f"{domain}={share / total:.8g}" for domain, share in ratio.items())


def _domain_tokens(request: AdviceRequest, name: str) -> dict[str, int]:
    """Return the training tokens of each domain of the corpus that ``--corpus`` or a run folder names."""
    from drpruning.errors import ConfigError
    from drpruning.prepare.recipe_corpus import open_corpus, open_folder
    from drpruning.recipes import parse_recipe
    from drpruning.run_folder import RunFolder

    if request.corpus is not None:
        return open_folder(request.corpus).tokens()
    run = RunFolder(Path(request.losses))
    if not run.exists:
        raise ConfigError(
            f"--ratio {name} needs the sizes of the domains", "Give the corpus with --corpus FOLDER, or the shares."
        )
    return open_corpus(parse_recipe(run.read_recipe())).tokens()


def _reading(request: AdviceRequest, known: Advice | None) -> dict[str, Any]:
    """Return the options for reading LOSSES; options that are not given come from the state."""
    names = ("columns", "tokens_per_step", "params", "stage")
    reading: dict[str, Any] = {name: getattr(request, name) for name in names}
    if known is None:
        return reading
    return {name: known.reading.get(name) if value is None else value for name, value in reading.items()}


def _read_table(
    request: AdviceRequest, known: Advice | None, ratio: dict[str, float] | None, reading: dict[str, Any]
) -> tuple[LossTable, dict[str, float]]:
    """Read LOSSES with the domains of the ratio; without a ratio, use the ratio of the source."""
    from drpruning.errors import ConfigError
    from drpruning.loss_table import read_losses

    rates = request.learning_rates is not None or (known is not None and known.learning_rates is not None)
    table = read_losses(request.losses, domains=None if ratio is None else list(ratio), rates=rates, **reading)
    if ratio is not None:
        return table, ratio
    if table.reference_ratio is None:
        share = f"{1 / len(table.domains):.3g}"
        example = ",".join(f"{domain}={share}" for domain in table.domains[:3])
        raise ConfigError(
            "--ratio is missing: the mixture that training started with",
            f"For example --ratio {example}{',...' if len(table.domains) > 3 else ''}; the shares sum to 1.",
        )
    ratio = dict(table.reference_ratio)
    if list(ratio) != list(table.domains):
        table = read_losses(request.losses, domains=list(ratio), rates=rates, **reading)
    return table, ratio


def _start(request: AdviceRequest, ratio: dict[str, float], reading: dict[str, Any]) -> Advice:
    from drpruning.advice import Advice
    from drpruning.errors import ConfigError
    from drpruning.mixture import Schedule, build

    settings = parse_settings(request.settings)
    if request.strategy == Schedule.name and Schedule.name not in settings:
        raise ConfigError(
            "the strategy schedule replays mixtures and chooses none from losses; expected --set schedule=FILE",
            "Give a run folder or a YAML file of mixtures, or another strategy, such as --strategy drpruning.",
        )
    strategy = build(request.strategy or "drpruning", settings)
    reference_loss = None
    if request.reference_loss is not None:
        reference_loss = parse_numbers_by_domain("--reference-loss", request.reference_loss)
    advice = Advice.new(strategy, ratio, reference_loss=reference_loss, reading=reading)
    if request.noise is not None:
        advice.standard_errors = _parse_noise(request.noise, advice.domains)
    return advice


def _check_same(known: Advice, request: AdviceRequest, ratio: dict[str, float] | None, reading: dict[str, Any]) -> None:
    """Check that the options given are those of the state.

    Raises:
        StateError: An option differs.
    """
    from drpruning.errors import StateError
    from drpruning.mixture import Schedule, build, settings_of

    names = parse_settings(request.settings)
    settings = settings_of(build(request.strategy or known.strategy, names))
    changes: list[tuple[str, object, object]] = []
    if request.strategy not in (None, known.strategy):
        changes.append(("--strategy", known.strategy, request.strategy))
    else:
        file = names.pop(Schedule.name, None)  # the settings have its content
        if file is not None and any(known.settings[name] != settings[name] for name in ("stages", "unit")):
            changes.append(("--set schedule", "of other mixtures", file))
        changes += [
            (f"--set {name}", known.settings.get(name), settings[name])
            for name in names
            if known.settings.get(name) != settings[name]
        ]
    if ratio is not None and ratio != known.reference_ratio:
        changes.append(("--ratio", known.reference_ratio, ratio))
    if request.reference_loss is not None:
        losses = parse_numbers_by_domain("--reference-loss", request.reference_loss)
        if losses != known.reference_loss:
            changes.append(("--reference-loss", known.reference_loss, losses))
    if request.noise is not None:
        errors = _parse_noise(request.noise, known.domains)
        if errors != known.standard_errors:
            changes.append(("--noise", known.standard_errors, errors))
    tokens_per_step = known.reading.get("tokens_per_step")
    if reading["tokens_per_step"] != tokens_per_step:
        changes.append(("--tokens-per-step", tokens_per_step, reading["tokens_per_step"]))
    if changes:
        option, before, now = changes[0]
        raise StateError(
            f"the state was created with {option} {before}, not {now}",
            "Leave the option out, or start again with another --state and the whole table.",
        )


def _parse_noise(noise: str, domains: Sequence[str]) -> dict[str, float]:
    """Parse standard errors by domain.

    Raises:
        ConfigError: A value is not finite or below zero, or the mixture has no such domain.
    """
    from drpruning.errors import ConfigError, did_you_mean

    try:
        errors = dict.fromkeys(domains, float(noise))
    except ValueError:
        errors = parse_numbers_by_domain("--noise", noise)
    for domain, error in errors.items():
        if domain not in domains:
            raise ConfigError(f"--noise names domain {domain!r}", did_you_mean(domain, domains))
        if not 0 <= error < math.inf:
            raise ConfigError(f"--noise of domain {domain!r} is {error}; it must be finite and at least 0")
    return errors


def _replay(advice: Advice, table: LossTable) -> UpdateSummary:
    """Pass the evaluations that were not counted before to the strategy."""
    from drpruning.errors import ConfigError

    try:
        return advice.take(table)
    except ConfigError as error:
        if advice.final_tokens is not None:
            raise
        option = "--final-tokens N" if table.counts_tokens else "--final-step N"
        raise ConfigError(error.message, f"Give {option}.") from error


def _plot(path: Path, advice: Advice) -> None:
    from drpruning.report.figures.law_curves import draw_mixture

    table = advice.table()
    mixtures = [row.weights for row in advice.counted]
    draw_mixture(path, table, table_laws(table), advice.final_tokens, mixtures, title=advice.strategy)
