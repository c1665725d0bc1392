"""The table of losses, and the rules to build it: order, repeats, gaps, units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import LossTableError, did_you_mean
from drpruning.mixture import Observation
from drpruning.scaling import LearningRates

LARGEST_COUNT = 2**62
"""Maximum of steps, tokens and parameters: larger numbers are mistakes, and do not fit into int64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LossTable:
    """Losses per evaluation and domain, ``n`` evaluations in the order of training.

    Attributes:
        source: Name of the source, for messages.
        domains: Names of the columns, ``d`` of them.
        counts_tokens: Whether ``tokens`` are tokens; if not, the source has steps only, and a step counts as a token.
        steps: Optimizer steps at each evaluation, int64 ``[n]``; equal to ``tokens`` if the source has none.
        tokens: Tokens trained on at each evaluation, int64 ``[n]``, ascending, each once.
        params: Parameters in use, float64 ``[n]``; 1 if the source has none (the law's ``A`` then includes them).
        losses: Nats per token, float64 ``[n, d]``; NaN where a domain was not measured.
        reference_ratio: Mixture at the start of training, if the source has it.
        final_tokens: Tokens at the end of the stage, if the source has them.
        learning_rates: Schedule of the whole stage, if the source has it.
        rates: Learning rate at each evaluation, float64 ``[n]``, NaN where it is unknown; None if it was not read.
        standard_errors: Standard error of each domain's excess loss, nats per token, float64 ``[n, d]``, NaN where
            it is unknown; None if the source has none.
    """

    source: str
    domains: tuple[str, ...]
    counts_tokens: bool
    steps: NDArray[np.int64]
    tokens: NDArray[np.int64]
    params: NDArray[np.float64]
    losses: NDArray[np.float64]
    reference_ratio: Mapping[str, float] | None = None
    final_tokens: int | None = None
    learning_rates: LearningRates | None = None
    rates: NDArray[np.float64] | None = None
    standard_errors: NDArray[np.float64] | None = None

    def observations(
        self, *, final_tokens: float | None = None, learning_rates: LearningRates | None = None
    ) -> Iterator[Observation]:
        """Yield each evaluation as the input of a strategy, in the order of training.

        Args:
            final_tokens: Tokens at the end of the stage, in the unit of ``tokens``. Default: those of the source.
            learning_rates: Schedule of the whole stage. Default: that of the source.
        """
        schedule = self.learning_rates if learning_rates is None else learning_rates
        end = self.final_tokens if final_tokens is None else round(final_tokens)
        for number, (step, tokens, params, row) in enumerate(
            zip(self.steps, self.tokens, self.params, self.losses, strict=True)
        ):
            losses = {
                domain: float(loss) for domain, loss in zip(self.domains, row, strict=True) if math.isfinite(loss)
            }
            errors = None if self.standard_errors is None else self.standard_errors[number].tolist()
            yield Observation(
                step=int(step),
                tokens=int(tokens),
                params=float(params),
                losses=losses,
                final_tokens=end,
                standard_errors=None if errors is None else dict(zip(self.domains, errors, strict=True)),
                learning_rates=schedule,
            )


@dataclass
class _Row:
    step: int
    params: float
    losses: dict[str, float]
    rate: float = math.nan
    errors: dict[str, float] = field(default_factory=dict)


@dataclass
class Evaluations:
    """Collect evaluations in any order, and build the table.

    An evaluation is identified by its tokens, or by its step if there are no tokens. Of two losses for the same
    evaluation the later one counts, and a gap never erases a loss. So the rows of a long table are joined, and a run
    that rolled back overwrites its earlier losses.

    Args:
        source: Name of the source, for messages.
        tokens_per_step: Tokens per step, for sources that count steps.
        params: Parameters in use, for sources without them.
        domains: Domains to collect, in this order; all if None.
        reads_rates: Whether to read the learning rate at each evaluation.
    """

    source: str
    tokens_per_step: float | None = None
    params: float | None = None
    domains: Sequence[str] | None = None
    reads_rates: bool = False
    reference_ratio: dict[str, float] | None = None
    final_tokens: int | None = None
    learning_rates: LearningRates | None = None
    _rows: dict[int, _Row] = field(default_factory=dict)
    _found: dict[str, None] = field(default_factory=dict)
    _counts_tokens: bool | None = None

    @property
    def has_params(self) -> bool:
        """Whether an evaluation has a number of parameters."""
        return any(math.isfinite(row.params) for row in self._rows.values())

    def note_columns(self, names: Sequence[str]) -> None:
        """Store the names of columns, with losses or without."""
        self._found.update(dict.fromkeys(names))

    def selects(self, domain: str) -> bool:
        """Return whether ``domain`` is one of the domains to collect."""
        return self.domains is None or domain in self.domains

    def add(
        self,
        where: str,
        losses: Mapping[str, float],
        *,
        step: int | None,
        tokens: int | None,
        params: float | None,
        rate: float | None = None,
        errors: Mapping[str, float] | None = None,
    ) -> None:
        """Add the losses of one evaluation (NaN: not measured); ignore it if no domain to collect has a loss.

        Raises:
            LossTableError: It has neither a step nor tokens, no tokens while others have them, or a count out of range.
        """
        self.note_columns(list(losses))
        selected = {domain: loss for domain, loss in losses.items() if self.selects(domain) and math.isfinite(loss)}
        if not selected:
            return
        if self._counts_tokens is None:
            self._counts_tokens = tokens is not None
            if tokens is not None and self.tokens_per_step is not None:
                raise LossTableError(
                    f"{where} has tokens, so tokens per step have no effect", "Leave out the tokens per step."
                )
        place = tokens if self._counts_tokens else step
        if place is None:
            missing = "tokens, and others have them" if self._counts_tokens else "step and no tokens"
            raise LossTableError(
                f"{where} has a loss but no {missing}", "Every evaluation needs a step, or the tokens trained on."
            )
        if not self._counts_tokens and self.tokens_per_step is not None:
            place = round(place * self.tokens_per_step)
        if not 0 <= place <= LARGEST_COUNT:
            raise LossTableError(
                f"{where} is at {place:,} {'steps' if tokens is None else 'tokens'}; expected 0 to 2**62"
            )
        row = self._rows.setdefault(place, _Row(place if step is None else step, math.nan, {}))
        if step is not None:
            row.step = step
        if params is not None and math.isfinite(params):
            row.params = params
        if rate is not None:
            row.rate = rate
        row.losses.update(selected)
        row.errors.update(errors or {})

    def table(self) -> LossTable:
        """Build the table of all evaluations.

        Raises:
            LossTableError: There is no loss, or a domain to collect is missing.
        """
        for domain in self.domains or ():
            if domain not in self._found:
                raise LossTableError(
                    f"{self.source} has no losses of domain {domain!r}; it has {listed(self._found)}",
                    did_you_mean(domain, self._found),
                )
        if not self._rows:
            raise LossTableError(f"{self.source} holds no loss; expected at least one evaluation")
        names = tuple(self._found if self.domains is None else self.domains)
        places = sorted(self._rows)
        rows = [self._rows[place] for place in places]
        return LossTable(
            source=self.source,
            domains=names,
            counts_tokens=bool(self._counts_tokens) or self.tokens_per_step is not None,
            steps=np.array([row.step for row in rows], dtype=np.int64),
            tokens=np.array(places, dtype=np.int64),
            params=_filled([row.params for row in rows], self.params),
            losses=np.array([[row.losses.get(name, math.nan) for name in names] for row in rows], dtype=np.float64),
            reference_ratio=self.reference_ratio,
            final_tokens=self.final_tokens,
            learning_rates=self.learning_rates,
            rates=np.array([row.rate for row in rows], dtype=np.float64) if self.reads_rates else None,
            standard_errors=np.array([[row.errors.get(name, math.nan) for name in names] for row in rows])
            if any(row.errors for row in rows)
            else None,
        )


def listed(names: Sequence[str] | Mapping[str, object], most: int = 12) -> str:
    """Join the first names for a message.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    shown = ", ".join(list(names)[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _filled(params: list[float], given: float | None) -> NDArray[np.float64]:
    """Fill gaps in the parameters from the evaluation before, at the start from the one after."""
    known = [number for number in params if math.isfinite(number)]
    last = known[0] if known else (given or 1.0)
    filled = []
    for number in params:
        last = number if math.isfinite(number) else last
        filled.append(last)
    return np.array(filled, dtype=np.float64)
