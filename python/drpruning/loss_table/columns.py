"""The role of a column, key or tag: step, tokens, parameters, learning rate, or the loss of a domain."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from drpruning.errors import ConfigError, LossTableError
from drpruning.inputs import shown
from drpruning.loss_table.table import LARGEST_COUNT

Role = Literal["step", "tokens", "params", "rate", "ignored"]

ROLES: dict[str, Role] = {
    **dict.fromkeys(("step", "steps", "global_step", "iteration", "iterations", "iter"), "step"),
    **dict.fromkeys(("tokens", "num_tokens", "n_tokens", "tokens_seen", "n_tokens_seen", "consumed_tokens"), "tokens"),
    **dict.fromkeys(("params", "parameters", "num_params", "n_params"), "params"),
    **dict.fromkeys(("lr", "learning_rate"), "rate"),
    **dict.fromkeys(("sparsity", "epoch", "seed", "time", "wall_time", "timestamp"), "ignored"),
    **dict.fromkeys(("runtime", "date"), "ignored"),
}
"""Names that are not domains, compared without case, leading underscores and the part before a slash."""

EXPORT_RANGE = re.compile(r".*__(MIN|MAX)")
"""Columns that Weights & Biases adds to each metric when a chart is exported."""

MISSING = {"", "-", "nan", "na", "n/a", "null", "none"}


@dataclass(frozen=True)
class Pattern:
    """Pattern of the columns, keys or tags with losses: ``eval/loss/<domain>``.

    ``<domain>`` matches the name of the domain, ``*`` the shortest possible text.

    >>> Pattern("*/loss/<domain>").domain("eval/loss/web"), Pattern("eval/loss/<domain>").domain("train/loss")
    ('web', None)
    """

    text: str

    def __post_init__(self) -> None:
        if self.text.count("<domain>") != 1:
            raise ConfigError(
                f"pattern {self.text!r} of the loss columns must hold <domain> once",
                "For example eval/loss/<domain>, where the columns are eval/loss/web, eval/loss/code.",
            )

    def domain(self, name: str) -> str | None:
        """Return the domain of a column, key or tag; None if ``name`` does not match."""
        parts = (re.escape(part).replace(r"\*", ".*?") for part in self.text.split("<domain>"))
        match = re.fullmatch("(.+)".join(parts), name, re.DOTALL)
        return match[1].strip() or None if match else None


def role(name: str) -> Role | None:
    """Return the role of a column of that name; None for a domain.

    >>> role("Step"), role("trainer/global_step"), role("_runtime"), role("web")
    ('step', 'step', 'ignored', None)
    """
    last = name.rpartition("/")[2].strip().lower().lstrip("_")
    return ROLES.get(re.sub(r"[\s-]+", "_", last), "ignored" if EXPORT_RANGE.fullmatch(name) else None)


def loss(value: Any, where: str) -> float:
    """Parse the loss in a cell; return NaN if it is empty or not finite.

    Raises:
        LossTableError: The cell has something else.
    """
    number = _number(value)
    if number is None:
        raise LossTableError(
            f"{where} holds {shown(value, 40)}; expected a loss",
            "If that column is not a loss, name those that are: --columns 'eval/loss/<domain>' or --domains web,code.",
        )
    return number if math.isfinite(number) else math.nan


def count(value: Any, where: str) -> int | None:
    """Parse the step or the tokens in a cell; return None if it is empty.

    Raises:
        LossTableError: It is not a whole number from 0 to 2**62.
    """
    number = _number(value)
    if number is not None and math.isnan(number):
        return None
    if number is None or not 0 <= number <= LARGEST_COUNT or number != int(number):
        raise LossTableError(
            f"{where} holds {shown(value, 40)}; expected a whole number",
            "Steps and tokens are counted in ones: 1500000000, not 1.5 billion.",
        )
    return int(value) if isinstance(value, int) else int(number)


def params(value: Any, where: str) -> float | None:
    """Parse the number of parameters in a cell; return None if it is empty.

    Raises:
        LossTableError: It is not a positive number.
    """
    number = _number(value)
    if number is not None and math.isnan(number):
        return None
    if number is None or not 0 < number <= LARGEST_COUNT:
        raise LossTableError(f"{where} holds {shown(value, 40)}; expected a positive number of parameters")
    return number


def rate(value: Any, where: str) -> float | None:
    """Parse the learning rate in a cell; return None if it is empty.

    Raises:
        LossTableError: It is not a number >= 0.
    """
    number = _number(value)
    if number is not None and math.isnan(number):
        return None
    if number is None or not 0 <= number < math.inf:
        raise LossTableError(f"{where} holds {shown(value, 40)}; expected a learning rate")
    return number


def _number(value: Any) -> float | None:
    """Parse a number; return NaN for an empty cell, None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in MISSING:
            return math.nan
        try:
            return None if "_" in text else float(text)
        except ValueError:
            return None
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
