"""The option `--learning-rates` of `drpruning fit` and `weights`: how the learning rate goes, and how it went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from drpruning.loss_table import LossTable
    from drpruning.scaling import LearningRates


def learning_rates_option(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the option."""
    return click.option(
        "--learning-rates",
        metavar="RATES",
        help="The schedule of the whole training: constant, cosine:warmup=2%,final=10%, linear:warmup=1B, "
        "wsd:warmup=1%,decay=20%, or a CSV file of step or tokens and lr. A column lr of LOSSES then counts for the "
        "past.  [default: a run folder's own]",
    )(command)


def given_rates(text: str, table: LossTable, end: float | None, tokens_per_step: float | None) -> str | LearningRates:
    """A description as it is, once it is known to be one up to ``end``; a file's schedule.

    Raises:
        ConfigError: It is neither, or needs an end and there is none.
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


def with_rates(table: LossTable, text: str, end: float | None, tokens_per_step: float | None) -> LossTable:
    """The table with the schedule that ``text`` gives; it ends at ``end`` unless it says otherwise.

    Raises:
        ConfigError: As :func:`given_rates`, or the schedule needs an end.
        LossTableError: As :func:`given_rates`.
    """
    from dataclasses import replace

    from drpruning.scaling import parse_learning_rates

    told = given_rates(text, table, end, tokens_per_step)
    schedule = parse_learning_rates(told, end) if isinstance(told, str) else told
    if table.rates is not None:
        schedule = schedule.following(table.tokens, table.rates)
    return replace(table, learning_rates=schedule)
