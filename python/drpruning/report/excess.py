"""Excess losses of a run's finished model over the base, and their differences between runs, with intervals.

A model's loss on a domain is recorded as a whole and by parts of consecutive test rows, which are the same for all
models of a corpus. Intervals are of differences paired part by part. They hold the choice of the text; the chance of
training (seeds) is not in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from drpruning.intervals import Difference, difference_of_parts
from drpruning.records import Losses, ModelMeasured, Record, recorded_corpus
from drpruning.report.read.run import Run, domains_of, measured

Parts = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class RunExcess:
    """Losses of the newest finished model of a run minus those of the base, in nats per token.

    Attributes:
        label: The run.
        model: ``recovered``, or ``pruned`` as long as it is the newest.
        excess: By domain, those that were measured on both.
        parts: The same on each part of the test rows, float64 ``[parts]``; empty if the run did not record them.
        ratio: Reference ratio, the weights of the ratio-weighted mean.
        tokens: Test tokens of each domain; runs with other numbers were measured on other text.
        pruned: Whether the model has another size than the base.
    """

    label: str
    model: str
    excess: Losses
    parts: Parts = field(repr=False)
    ratio: Losses = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    pruned: bool = True

    def domain(self, name: str) -> Difference:
        """Return the excess of a domain."""
        return difference_of_parts(self.excess[name], self._terms({name: 1.0}))

    @property
    def worst_domain(self) -> str:
        """The domain with the largest excess."""
        return max(self.excess, key=self.excess.__getitem__)

    @property
    def worst(self) -> Difference:
        """The largest excess; its interval covers all domains together (Bonferroni)."""
        return replace(self.domain(self.worst_domain), selected_from=len(self.excess))

    @property
    def mean(self) -> Difference:
        """The plain mean over domains."""
        return self._sum(dict.fromkeys(self.excess, 1 / len(self.excess)))

    @property
    def ratio_weighted(self) -> Difference:
        """The mean weighted by the reference ratio; NaN without one."""
        total = sum(self.ratio.get(name, math.nan) for name in self.excess)
        return self._sum({name: self.ratio.get(name, math.nan) / total for name in self.excess})

    def _sum(self, weights: Losses) -> Difference:
        value = sum(weight * self.excess[name] for name, weight in weights.items())
        return difference_of_parts(value, self._terms(weights))

    def _terms(self, weights: Losses) -> list[NDArray[np.float64]]:
        if not all(name in self.parts for name in weights):
            return []
        return [weight * self.parts[name] for name, weight in weights.items()]

    def minus(self, other: RunExcess) -> RunExcess:
        """Return the differences of two runs by domain, paired by part; the base cancels if it is the same."""
        names = [name for name in self.excess if name in other.excess]
        return RunExcess(
            f"{self.label} − {other.label}",
            self.model,
            {name: self.excess[name] - other.excess[name] for name in names},
            {
                name: self.parts[name] - other.parts[name]
                for name in names
                if self.parts.keys() & other.parts.keys() >= {name}
                and self.parts[name].size == other.parts[name].size
                and self.tokens.get(name) == other.tokens.get(name)
            },
            self.ratio,
            self.tokens,
            self.pruned,
        )

    def worst_minus(self, other: RunExcess) -> Difference:
        """Return the difference of the worst excesses, paired if the worst domain is the same."""
        value = self.worst.value - other.worst.value
        ours, theirs = self.worst_domain, other.worst_domain
        if ours == theirs:
            terms = self.minus(other)._terms({ours: 1.0})
        else:
            terms = [*self._terms({ours: 1.0}), *other._terms({theirs: 1.0})]
            terms = terms if len(terms) == 2 else []
        return replace(difference_of_parts(value, terms), selected_from=len(self.excess))


def excess_of(run: Run, first: Iterable[Record] = ()) -> RunExcess | None:
    """Return the excess losses of a run's newest finished model; None before one, or without a base.

    Args:
        run: The run.
        first: Records of the run whose base counts if this one did not measure it.
    """
    base = measured(run.records, "base") or measured(first, "base")
    model = measured(run.records, "recovered") or measured(run.records, "pruned")
    if base is None or model is None:
        return None
    names = [name for name in domains_of(run.records) if name in model.losses and name in base.losses]
    excess = {name: model.losses[name] - base.losses[name] for name in names}
    excess = {name: value for name, value in excess.items() if math.isfinite(value)}
    if not excess:
        return None
    parts = {name: _parts(model, name) - _parts(base, name) for name in excess if _paired(model, base, name)}
    started = run.started
    ratio, tokens = (started.reference_ratio, started.final_eval_tokens) if started else ({}, {})
    return RunExcess(run.label, model.model, excess, parts, ratio, tokens, model.parameters != base.parameters)


def excesses(run: Run) -> list[RunExcess]:
    """Return the excess losses of a run and of those compared with it.

    Runs without a finished model are left out, and those that were measured on another corpus.
    """
    found = (excess_of(each, run.records) for each in (run, *run.others) if same_corpus(run, each))
    return [each for each in found if each is not None]


def same_corpus(run: Run, other: Run) -> bool:
    """Return whether two runs were measured on the same corpus, or one did not record its corpus."""
    corpora = {recorded_corpus(each.records) for each in (run, other)} - {None}
    return len(corpora) < 2


def _paired(one: ModelMeasured, other: ModelMeasured, name: str) -> bool:
    return _parts(one, name).size == _parts(other, name).size > 0


def _parts(model: ModelMeasured, name: str) -> NDArray[np.float64]:
    return np.array((model.part_losses or {}).get(name, []), dtype=np.float64)
