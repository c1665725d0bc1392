"""What `drpruning fit` and `weights` share: the argument LOSSES, how it is read, and how amounts are written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from drpruning.loss_table import LossTable
    from drpruning.scaling import ScalingLaw

FIGURES = ("png", "svg", "pdf")


def to_amount(_: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A number of tokens, steps or parameters, written 20000000000, 2e10 or 20B; a callback of click.

    Raises:
        ConfigError: It is none, or not positive.
    """
    from drpruning.errors import ConfigError
    from drpruning.formatting import amount_of

    if value is None:
        return None
    number = amount_of(value)
    if not number:
        raise ConfigError(f"{option.opts[0]} {value!r} is not a positive number", "For example 20B, or 2e10.")
    return number


def to_figure(_: click.Context, option: click.Parameter, value: str | None) -> Path | None:
    """A file to draw into, whose suffix says the format; a callback of click.

    Raises:
        ConfigError: Its suffix is not one of a format that can be drawn.
    """
    from drpruning.errors import ConfigError

    if value is None:
        return None
    path = Path(value)
    if path.suffix[1:].lower() not in FIGURES:
        raise ConfigError(f"{option.opts[0]} {value!r} must end in .{', .'.join(FIGURES)}")
    return path


def losses_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Adds LOSSES and the options that say how to read it."""
    for add in (
        click.option("--stage", help="Stage of a run folder.  [default: the last that was evaluated]"),
        click.option(
            "--params",
            metavar="N",
            callback=to_amount,
            help="Parameters of the model, where LOSSES does not tell them.",
        ),
        click.option(
            "--tokens-per-step", metavar="N", callback=to_amount, help="Tokens in a step, where LOSSES counts steps."
        ),
        click.option(
            "--columns",
            metavar="PATTERN",
            help="Columns, keys or tags that hold losses, such as 'eval/loss/<domain>'; * stands for anything.",
        ),
        click.argument("losses"),
    ):
        command = add(command)
    return command


def console() -> Console:
    """Where results go. Into a file or a pipe, tables are as wide as they need to be."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 400)


def fitted(table: LossTable) -> list[ScalingLaw | None]:
    """The law of each domain, told the table's learning rates; None for a domain that was never measured."""
    import numpy as np

    from drpruning.scaling import fit_scaling_law

    return [
        fit_scaling_law(table.params, table.tokens, column, learning_rates=table.learning_rates)
        if np.isfinite(column).any()
        else None
        for column in table.losses.T
    ]


def end_of(table: LossTable, tokens: float | None, step: float | None, *options: str) -> int | None:
    """The end of training in the table's unit, from one of two options; None if neither is given.

    Args:
        table: Its unit is tokens, or steps where only those are known.
        tokens: The end in tokens.
        step: The end in steps, converted at the tokens per step of the table's last evaluation.
        options: Names of the two options, for messages.

    Raises:
        ConfigError: Both are given, or the table cannot be compared with the one that is.
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


def said(names: str) -> list[str]:
    """``web,code`` as a list."""
    return [name.strip() for name in names.split(",") if name.strip()]


def amount(value: float, counts_tokens: bool, end: float | None = None) -> str:
    """Tokens or steps with their unit, and how far that is.

    >>> amount(2.5e9, True), amount(24000, False)
    ('2.5B tokens', 'step 24,000')
    >>> amount(2.5e9, True, 1e10), amount(24000, False, 32000)
    ('2.5B of 10B tokens (25%)', 'step 24,000 of 32,000 (75%)')
    """
    from drpruning.formatting import count

    share = "" if end is None else f" ({value / end:.0%})"
    if counts_tokens:
        return f"{count(value)}{'' if end is None else f' of {count(end)}'} tokens{share}"
    return f"step {value:,.0f}{'' if end is None else f' of {end:,.0f}'}{share}"
