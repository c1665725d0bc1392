"""What the mixture should be now, for a training loop that is not ours, kept between evaluations in one small file.

Each evaluation is counted once, in the order of training, by the strategy's own ``update``; what was counted before
is recognised by its tokens. So the whole table may be given again each time, or only what is new, and the answer is
the same as in one go.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from drpruning.errors import StateError
from drpruning.files import write_text
from drpruning.loss_table import LossTable
from drpruning.mixture import State, Strategy, Update, build, settings_of
from drpruning.scaling import LearningRates, parse_learning_rates

FORMAT, VERSION = "drpruning-advice", 1


@dataclass(frozen=True, kw_only=True)
class Counted:
    """An evaluation that the strategy has seen, and the mixture it chose: lists in the order of the domains.

    Attributes:
        step: Optimizer steps taken.
        tokens: Tokens trained on.
        params: Parameters in use.
        losses: Nats per token; None where a domain was not measured.
        weights: The mixture from here on.
        status: What decided it.
        rate: Learning rate at this place, where the table told it.
    """

    step: int
    tokens: int
    params: float
    losses: list[float | None]
    weights: list[float]
    status: str
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What became of the rows of a table.

    Attributes:
        new: Counted now.
        known: Counted before.
        changed: Those of the known whose losses are others now; what was counted stands.
        late: Not counted: evaluations after them have been.
    """

    new: int = 0
    known: int = 0
    changed: int = 0
    late: int = 0


@dataclass(kw_only=True)
class Advice:
    """A strategy on its way through the evaluations of one training run.

    Attributes:
        strategy: Name of the strategy.
        settings: All its settings.
        domains: Of the mixture.
        reference_ratio: Mixture that the run started with.
        reference_loss: Loss each domain should reach, nats per token, where given.
        counts_tokens: Whether ``tokens`` are tokens; if not, steps.
        final_tokens: Tokens at the end of training, in the same unit; None if not known.
        reading: How the tables are read: arguments of :func:`read_losses`, kept for the next call.
        state: The strategy's state.
        counted: The evaluations so far.
        update: The last answer; None before the first evaluation.
        standard_errors: Standard error of each domain's excess loss at every evaluation, nats per token; None: what the
            tables say.
        learning_rates: Schedule of the whole training: a description for :func:`parse_learning_rates`, or the tokens
            and rates of :class:`LearningRates`; None if not known. A rate told by a table goes before it.
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
    counted: list[Counted] = field(default_factory=list)
    update: Update | None = None
    learning_rates: str | dict[str, Any] | None = None
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
        """Advice before the first evaluation.

        Raises:
            WeightError: The ratio or the reference losses are not as :meth:`Strategy.init` wants them.
        """
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
        """The learning rates of the whole training as known now: those told with the evaluations, and the rest.

        Raises:
            ConfigError: They are given as parts of the training, and ``final_tokens`` is not known.
        """
        return _schedule(self.learning_rates, self.final_tokens, self._rates())

    def _rates(self) -> list[tuple[int, float]]:
        """Tokens and learning rate of the evaluations that told one."""
        return [(row.tokens, row.rate) for row in self.counted if row.rate is not None]

    def take(self, table: LossTable) -> Tally:
        """Counts the evaluations of ``table`` that come after those counted before.

        Raises:
            StateError: The table counts tokens where the earlier ones counted steps, or the other way round.
            ConfigError: As :meth:`schedule`.
            DrpruningError: What the strategy raises; nothing is counted then.
        """
        if self.counted and table.counts_tokens != self.counts_tokens:
            units = ("tokens", "steps") if table.counts_tokens else ("steps", "tokens")
            raise StateError(
                f"{table.source} counts {units[0]}; the evaluations counted so far have {units[1]}",
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
                    Counted(
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
        return Tally(new=len(counted), known=known, changed=changed, late=late)

    def table(self) -> LossTable:
        """The evaluations counted so far, at least one."""
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
        """Writes the state aside and renames it to ``path``."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(path, json.dumps({"sha256": _digest(body), **body}, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Advice:
        """What :meth:`write` wrote.

        Raises:
            StateError: The file is damaged, was changed by hand, or is of another kind or version.
            OSError: It cannot be opened.
        """
        anew = "Give another file, or remove it to start anew with the whole table."
        try:
            body = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise StateError(f"state {str(path)!r} is damaged: it is not JSON", anew) from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise StateError(f"{str(path)!r} is not a state of `drpruning advise`", anew)
        if body.get("version") != VERSION:
            raise StateError(f"state {str(path)!r} has version {body.get('version')!r}, wanted {VERSION}", anew)
        digest = body.pop("sha256", None)
        if digest != _digest(body):
            raise StateError(f"state {str(path)!r} is damaged: its checksum does not fit", anew)
        try:
            counted = [Counted(**row) for row in body["counted"]]
            last = body["update"]
            update = None if last is None else Update(**{key: _tupled(value) for key, value in last.items()})
            rest = {
                item.name: body[item.name]
                for item in fields(cls)
                if item.name not in {"counted", "update"} and (item.name in body or item.default is MISSING)
            }
            return cls(**rest, counted=counted, update=update)
        except (KeyError, TypeError) as error:
            raise StateError(f"state {str(path)!r} is of another version of drpruning: {error}", anew) from error


def as_data(learning_rates: str | LearningRates | None) -> str | dict[str, Any] | None:
    """A schedule as JSON-able data; a description stays as it is."""
    if isinstance(learning_rates, LearningRates):
        return {"tokens": list(learning_rates.tokens), "rates": list(learning_rates.rates)}
    return learning_rates


def _schedule(
    told: str | dict[str, Any] | None, final_tokens: int | None, rates: Sequence[tuple[int, float]]
) -> LearningRates | None:
    """The schedule that was told, after the ``rates`` that were seen at their tokens."""
    if told is None:
        return None
    planned = parse_learning_rates(told, final_tokens) if isinstance(told, str) else LearningRates(**told)
    return planned.following(*zip(*rates, strict=True)) if rates else planned


def _tupled(value: Any) -> Any:
    """JSON has no tuples, and an update has no lists."""
    return tuple(value) if isinstance(value, list) else value


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, allow_nan=False).encode()).hexdigest()
