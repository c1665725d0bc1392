"""The argument LOSSES of `drpruning fit` and `advise`, the options for reading it, and `--learning-rates`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from drpruning.cli.options import positive_amount

if TYPE_CHECKING:
    from rich.console import Console

    from drpruning.loss_table import LossTable
    from drpruning.scaling import LearningRates, ScalingLaw


def losses_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add LOSSES and the options for reading it."""
    for add in (
        click.option(
            "--stage", help="Which stage of a run folder to read.  [default: the last one that was evaluated]"
        ),
        click.option(
            "--params",
            metavar="N",
            callback=positive_amount,
            help="Number of parameters of the model, where LOSSES has no such column.",
        ),
        click.option(
            "--tokens-per-step",
            metavar="N",
            callback=positive_amount,
            help="Tokens per step, where LOSSES counts steps.",
        ),
        click.option(
            "--columns",
            metavar="PATTERN",
            help="Columns, keys or tags with the losses, such as 'eval/loss/<domain>'; * matches any text.",
        ),
        click.argument("losses"),
    ):
        command = add(command)
    return command


def learning_rates_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option ``--learning-rates``."""
    return click.option(
        "--learning-rates",
        metavar="RATES",
        help="The learning-rate schedule of the whole training: constant, cosine:warmup=2%,final=10%, "
        "linear:warmup=1B, wsd:warmup=1%,decay=20%, or a CSV file with the columns step or tokens, and lr. A column lr "
        "of LOSSES replaces it for the past.  [default: the schedule of a run folder]",
    )(command)


def results_console() -> Console:
    """Return the console for results; in a file or a pipe tables have their full width."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 400)


def table_laws(table: LossTable) -> list[ScalingLaw | None]:
    """Fit the law of each domain with the table's learning rates; None for a domain that was never measured."""
    import numpy as np

    from drpruning.scaling import fit_scaling_law

    return [
        fit_scaling_law(table.params, table.tokens, column, learning_rates=table.learning_rates)
        if np.isfinite(column).any()
        else None
        for column in table.losses.T
    ]


def end_of_training(table: LossTable, tokens: float | None, step: float | None, *options: str) -> int | None:
    """Return the end of training in the table's unit, from one of two options; None if neither is given.

    Args:
        table: Its unit is tokens, or steps if only steps are known.
        tokens: The end in tokens.
        step: The end in steps, converted with the tokens per step of the table's last evaluation.
        options: Names of the two options, for error messages.

    Raises:
        ConfigError: Both options are given, or the table has the other unit.
    """
    from drpruning.errors import ConfigError

    in_tokens, in_steps = options
    if tokens is not None and step is not None:
        raise ConfigError(f"{in_tokens} and {in_steps} are both given", "Keep one of them.")
    if tokens is not None and not table.counts_tokens:
        raise ConfigError(
            f"{in_tokens} counts tokens, and {table.source} counts steps",
            f"Give {in_steps} N instead, or --tokens-per-step N as well.",
        )
    if step is not None and table.counts_tokens:
        last_step, last_tokens = int(table.steps[-1]), int(table.tokens[-1])
        if last_step in {last_tokens, 0}:
            raise ConfigError(f"{in_steps} counts steps, and {table.source} counts tokens", f"Give {in_tokens} N.")
        return round(step * last_tokens / last_step)
    end = tokens if step is None else step
    return None if end is None else round(end)


def parse_rates(text: str, table: LossTable, end: float | None, tokens_per_step: float | None) -> str | LearningRates:
    """Return the schedule of a file, or ``text`` itself once it is known to describe a schedule up to ``end``.

    Raises:
        ConfigError: ``text`` is neither, or needs an end and there is none.
        LossTableError: The file cannot be read as a schedule.
    """
    from drpruning.errors import ConfigError
    from drpruning.loss_table import read_learning_rates
    from drpruning.scaling import parse_learning_rates

    path = Path(text)
    if path.is_file():
        return read_learning_rates(path, counts_tokens=table.counts_tokens, tokens_per_step=tokens_per_step)
    if path.suffix:
        raise ConfigError(f"--learning-rates: there is no file {text!r}", "Or describe it: cosine:warmup=2%,final=10%.")
    parse_learning_rates(text, end)
    return text


def add_learning_rates(table: LossTable, text: str, end: float | None, tokens_per_step: float | None) -> LossTable:
    """Return the table with the schedule of ``text``; without an end in ``text`` the schedule ends at ``end``.

    Raises:
        ConfigError: As :func:`parse_rates`, or the schedule needs an end.
        LossTableError: As :func:`parse_rates`.
    """
    from dataclasses import replace

    from drpruning.scaling import parse_learning_rates

    parsed = parse_rates(text, table, end, tokens_per_step)
    schedule = parse_learning_rates(parsed, end) if isinstance(parsed, str) else parsed
    if table.rates is not None:
        schedule = schedule.following(table.tokens, table.rates)
    return replace(table, learning_rates=schedule)


def format_amount(value: float, counts_tokens: bool, end: float | None = None) -> str:
    """Format tokens or steps with their unit, and the share of ``end``.

    >>> format_amount(2.5e9, True), format_amount(24000, False)
    ('2.5B tokens', 'step 24,000')
    >>> format_amount(2.5e9, True, 1e10), format_amount(24000, False, 32000)
    ('2.5B of 10B tokens (25%)', 'step 24,000 of 32,000 (75%)')
    """
    from drpruning.formatting import count

    share = "" if end is None else f" ({value / end:.0%})"
    if counts_tokens:
        return f"{count(value)}{'' if end is None else f' of {count(end)}'} tokens{share}"
    return f"step {value:,.0f}{'' if end is None else f' of {end:,.0f}'}{share}"
