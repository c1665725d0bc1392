"""The mixture for another training loop: a strategy that reads tables of losses, with its state in a small file.

The strategy reads each evaluation once, in the order of training; evaluations that it has read are recognised by their
tokens. So each table can have all evaluations or only the new ones, and the mixture is the same as with one table.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from drpruning.errors import ConfigError, DrpruningError, StateError
from drpruning.files import write_text
from drpruning.inputs import expected_value
from drpruning.loss_table import LossTable
from drpruning.mixture import ODM, Aioli, State, Strategy, Update, UpdateStatus, build, settings_of
from drpruning.mixture.state_schema import MIXTURE, is_losses, is_number
from drpruning.scaling import LearningRates, parse_learning_rates

FORMAT, VERSION = "drpruning-advice", 1


@dataclass(frozen=True, kw_only=True)
class CountedEvaluation:
    """An evaluation that the strategy has read, and the mixture that it chose; lists are in the order of the domains.

    Attributes:
        step: Optimizer steps taken.
        tokens: Tokens trained on.
        params: Parameters in use.
        losses: Nats per token; None where a domain was not measured.
        weights: The mixture from this evaluation on.
        status: The reason for the mixture, an :class:`UpdateStatus`.
        rate: Learning rate at this evaluation, if the table has it.
    """

    step: int
    tokens: int
    params: float
    losses: list[float | None]
    weights: list[float]
    status: str
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class UpdateSummary:
    """Numbers of rows of a table.

    Attributes:
        new: Rows that were read now.
        known: Rows that were read before.
        changed: Known rows with other losses than before; the earlier losses count.
        late: Rows that were ignored, because the strategy had read later evaluations.
    """

    new: int = 0
    known: int = 0
    changed: int = 0
    late: int = 0


@dataclass(kw_only=True)
class Advice:
    """A strategy with its state, for the evaluations of one training run.

    Attributes:
        strategy: Name of the strategy.
        settings: All its settings.
        domains: Domains of the mixture.
        reference_ratio: Mixture at the start of the run.
        reference_loss: Reference loss of each domain, nats per token, if known.
        counts_tokens: Whether ``tokens`` are tokens; if not, steps.
        final_tokens: Tokens at the end of training, in the same unit; None if unknown.
        reading: Arguments of :func:`read_losses` for the next tables.
        state: The strategy's state.
        counted: The evaluations so far.
        update: The last update; None before the first evaluation.
        standard_errors: Standard error of each domain's excess loss at every evaluation, nats per token; None for those
            of the tables.
        learning_rates: Schedule of the whole training: a description for :func:`parse_learning_rates`, or the tokens
            and rates of :class:`LearningRates`; None if unknown. A rate in a table has precedence.
    """

    strategy: str
    settings: dict[str, Any]
    domains: list[str]
    reference_ratio: dict[str, float]
    reference_loss: dict[str, float] | None
    counts_tokens: bool
    final_tokens: int | None
    reading: dict[str, Any]
    state: State
    counted: list[CountedEvaluation] = field(default_factory=list)
    update: Update | None = None
    learning_rates: str | dict[str, list[float]] | None = None
    standard_errors: dict[str, float] | None = None

    @classmethod
    def new(
        cls,
        strategy: Strategy,
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
        final_tokens: int | None = None,
        reading: Mapping[str, Any] | None = None,
        learning_rates: str | LearningRates | None = None,
        standard_errors: Mapping[str, float] | None = None,
    ) -> Advice:
        """Build the state before the first evaluation.

        Raises:
            WeightError: The ratio or the reference losses are not as :meth:`Strategy.init` requires.
            ConfigError: The strategy needs more than the losses of evaluations.
        """
        if isinstance(strategy, ODM | Aioli):
            needed = "training losses of each step" if isinstance(strategy, ODM) else "evaluations at the end of probes"
            raise ConfigError(
                f"{strategy.name} needs {needed}; a table has held-out losses of evaluations",
                f"Choose another strategy, or call drpruning.mixture.{type(strategy).__name__} in the training loop.",
            )
        if strategy.bounds.max_epochs is not None:
            raise ConfigError(
                "max_epochs needs the tokens that training took from each domain; a table has losses alone",
                "Bound the shares with max_share, or call the strategy in the training loop, where they are known.",
            )
        return cls(
            strategy=strategy.name,
            settings=settings_of(strategy),
            domains=list(reference_ratio),
            reference_ratio=dict(reference_ratio),
            reference_loss=None if reference_loss is None else dict(reference_loss),
            counts_tokens=True,
            final_tokens=final_tokens,
            reading=dict(reading or {}),
            state=strategy.init(list(reference_ratio), reference_ratio, reference_loss=reference_loss),
            learning_rates=as_data(learning_rates),
            standard_errors=None if standard_errors is None else dict(standard_errors),
        )

    def schedule(self) -> LearningRates | None:
        """Return the learning rates of the whole training: those of the evaluations so far, then the schedule.

        Raises:
            ConfigError: They are given as parts of the training, and ``final_tokens`` is unknown.
        """
        return _schedule(self.learning_rates, self.final_tokens, self._rates())

    def _rates(self) -> list[tuple[int, float]]:
        """Return tokens and learning rate of the evaluations that have one."""
        return [(row.tokens, row.rate) for row in self.counted if row.rate is not None]

    def take(self, table: LossTable) -> UpdateSummary:
        """Update the strategy with the evaluations of ``table`` that come after those of earlier tables.

        Raises:
            StateError: The table counts tokens where the earlier ones counted steps, or vice versa.
            ConfigError: As :meth:`schedule`.
            DrpruningError: An error of the strategy; the state is then unchanged.
        """
        if self.counted and table.counts_tokens != self.counts_tokens:
            units = ("tokens", "steps") if table.counts_tokens else ("steps", "tokens")
            raise StateError(
                f"{table.source} counts {units[0]}; the evaluations so far have {units[1]}",
                "Give the same kind of table each time, with the same tokens per step.",
            )
        strategy = build(self.strategy, self.settings)
        before = {row.tokens: row.losses for row in self.counted}
        last = self.counted[-1].tokens if self.counted else -1
        state, update, counted = self.state, self.update, []
        learning_rates = as_data(table.learning_rates) if self.learning_rates is None else self.learning_rates
        column = [math.nan] * len(table.tokens) if table.rates is None else table.rates.tolist()
        rates = self._rates()
        known = changed = late = 0
        for seen, rate in zip(table.observations(final_tokens=self.final_tokens), column, strict=True):
            losses = [seen.losses.get(domain) for domain in self.domains]
            if seen.tokens in before:
                known += 1
                changed += losses != before[seen.tokens]
            elif seen.tokens < last:
                late += 1
            else:
                if math.isfinite(rate):
                    rates.append((seen.tokens, rate))
                schedule = _schedule(learning_rates, self.final_tokens, rates)
                errors = seen.standard_errors if self.standard_errors is None else self.standard_errors
                seen = replace(seen, learning_rates=schedule, standard_errors=errors)  # noqa: PLW2901
                state, update = strategy.update(state, seen)
                counted.append(
                    CountedEvaluation(
                        step=seen.step,
                        tokens=seen.tokens,
                        params=seen.params,
                        losses=losses,
                        weights=[update.weights[domain] for domain in self.domains],
                        status=update.status,
                        rate=rate if math.isfinite(rate) else None,
                    )
                )
        self.state, self.update, self.counts_tokens = state, update, table.counts_tokens
        self.learning_rates = learning_rates
        self.counted += counted
        return UpdateSummary(new=len(counted), known=known, changed=changed, late=late)

    def table(self) -> LossTable:
        """Return the table of the evaluations so far, at least one."""
        return LossTable(
            source="the evaluations counted so far",
            domains=tuple(self.domains),
            counts_tokens=self.counts_tokens,
            steps=np.array([row.step for row in self.counted], dtype=np.int64),
            tokens=np.array([row.tokens for row in self.counted], dtype=np.int64),
            params=np.array([row.params for row in self.counted], dtype=np.float64),
            losses=np.array([row.losses for row in self.counted], dtype=np.float64),  # None becomes NaN
            reference_ratio=self.reference_ratio,
            final_tokens=self.final_tokens,
            learning_rates=self.schedule(),
        )

    def write(self, path: Path) -> None:
        """Write the state to a temporary file and rename it to ``path``."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(path, json.dumps({"sha256": _digest(body), **body}, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Advice:
        """Read the file that :meth:`write` wrote.

        Raises:
            StateError: The file is damaged, was changed by hand, or is of another kind or version.
            OSError: It cannot be opened.
        """
        restart = "Use another file, or remove it to restart with the whole table."
        where = f"state {str(path)!r}"
        try:
            body = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise StateError(f"{where} is damaged: it is not JSON", restart) from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise StateError(f"{str(path)!r} is not a state of `drpruning advise`", restart)
        if body.get("version") != VERSION:
            raise StateError(f"{where} has version {reprlib.repr(body.get('version'))}, expected {VERSION}", restart)
        digest = body.pop("sha256", None)
        try:
            matches = digest == _digest(body)
        except (ValueError, RecursionError):  # NaN, or lists in lists in lists: not written by this class
            matches = False
        if not matches:
            raise StateError(f"{where} is damaged: its checksum does not match", restart)
        advice = cls._from_body(body, where, restart)
        try:
            advice._check()
        except DrpruningError as error:
            raise StateError(f"{where} is damaged: {error.message}", restart) from error
        return advice

    @classmethod
    def _from_body(cls, body: Mapping[str, Any], where: str, restart: str) -> Advice:
        """Return the content of a file if it has the entries and types of this class; raise StateError otherwise."""
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - only a stored state needs it

        try:
            content = {name: value for name, value in body.items() if name not in ("format", "version")}
            return TypeAdapter(cls).validate_json(json.dumps(content), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            entry = ".".join(map(str, first["loc"]))
            reason = expected_value(first["msg"])
            raise StateError(
                f"{where} is damaged: {entry}: {reason}, got {reprlib.repr(first['input'])}", restart
            ) from error

    def _check(self) -> None:
        """Raise a DrpruningError if an entry of the right type has another wrong value."""
        strategy = build(self.strategy, self.settings)
        strategy.init(self.domains, self.reference_ratio, reference_loss=self.reference_loss)
        strategy.checked(self.state)
        _expect(self.state["domains"] == self.domains, "state.domains", self.domains, self.state["domains"])
        _expect(self.final_tokens is None or self.final_tokens > 0, "final_tokens", "a number > 0", self.final_tokens)
        for name, value in self.reading.items():
            right = name in READING and (value is None or READING[name](value))
            _expect(right, f"reading.{name}", "an option for reading tables", value)
        last = -1
        for k, row in enumerate(self.counted):
            right = last < row.tokens and row.step >= 0 and is_positive(row.params) and row.status in list(UpdateStatus)
            _expect(right and is_losses(row.losses, self.state), f"counted[{k}]", f"an evaluation after {last}", row)
            MIXTURE.check(f"counted[{k}].weights", row.weights, self.state)
            last = row.tokens
        if self.update is not None:
            for name in ("weights", "reference_ratio"):
                numbers = getattr(self.update, name)
                _expect(list(numbers) == self.domains, f"update.{name}", self.domains, list(numbers))
                MIXTURE.check(f"update.{name}", list(numbers.values()), self.state)
        _expect((self.update is None) == (not self.counted), "update", "one after the first evaluation", self.update)
        for domain, error in (self.standard_errors or {}).items():
            _expect(domain in self.domains and error >= 0, f"standard_errors.{domain}", "a domain and nats >= 0", error)
        if isinstance(self.learning_rates, dict):
            names = sorted(self.learning_rates)
            _expect(names == ["rates", "tokens"], "learning_rates", "tokens and rates", names)
        if self.learning_rates is not None and (
            self.final_tokens is not None or not isinstance(self.learning_rates, str)
        ):
            self.schedule()


def is_positive(number: Any) -> bool:
    """Return whether ``number`` is positive and finite."""
    return is_number(number) and number > 0


def is_text(value: Any) -> bool:
    """Return whether ``value`` is a string."""
    return isinstance(value, str)


READING = {"columns": is_text, "stage": is_text, "tokens_per_step": is_positive, "params": is_positive}
"""Arguments of :func:`read_losses` that a state stores, with a test of each."""


def _expect(right: bool, entry: str, expected: object, got: object) -> None:
    if not right:
        raise StateError(f"{entry}: expected {expected}, got {reprlib.repr(got)}")


def as_data(learning_rates: str | LearningRates | None) -> str | dict[str, list[float]] | None:
    """Return a schedule as JSON-able data; a description stays a string."""
    if isinstance(learning_rates, LearningRates):
        return {"tokens": list(learning_rates.tokens), "rates": list(learning_rates.rates)}
    return learning_rates


def _schedule(
    schedule: str | dict[str, list[float]] | None, final_tokens: int | None, rates: Sequence[tuple[int, float]]
) -> LearningRates | None:
    """Return the schedule, after the measured pairs of tokens and learning rate."""
    if schedule is None:
        return None
    planned = parse_learning_rates(schedule, final_tokens) if isinstance(schedule, str) else LearningRates(**schedule)
    return planned.following(*zip(*rates, strict=True)) if rates else planned


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
