"""The runs of a comparison: one for each method and seed, each an ordinary run folder with a recipe of its own.

    OUT/runs/METHOD/seed-17/     a run folder, and documents.json: losses of its final model by held-out document
    OUT/models/NAME/model.json   losses of a finished model by held-out document; it has no runs
    OUT/bases/seed-17.json       those of the unpruned model
    OUT/logs/METHOD-seed-17.txt  what the run printed

Runs with the same seed start from the same base, draw the same rows while their mixtures agree, and see the same number
of tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpruning.comparison.methods import Method, needs
from drpruning.config import RunConfig
from drpruning.errors import ConfigError, StateError
from drpruning.recipes import load_recipe
from drpruning.records import Evaluated, ModelMeasured, Record, RunEnded, read_records, recorded_corpus

if TYPE_CHECKING:
    from drpruning.corpus import Corpus

RECORDS = "metrics.jsonl"
DOCUMENTS = "documents.json"
BASELINE = "model.json"


@dataclass(frozen=True)
class Job:
    """One run: a method with a seed; or the measurement of a finished model, which serves for all seeds."""

    name: str
    seed: int
    folder: Path
    method: Method = field(compare=False)

    @property
    def label(self) -> str:
        """For people."""
        return self.name if self.method.model else f"{self.name}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the run is over and its final model has been measured by document."""
        if self.method.model:
            return read_model(self) is not None
        return (self.folder / DOCUMENTS).is_file() and any(isinstance(record, RunEnded) for record in self.records())

    def recorded_corpus(self) -> str | None:
        """Fingerprint of the corpus it was measured on; None where that is not recorded, or nothing is yet."""
        if self.method.model:
            corpus: str | None = (read_model(self) or {}).get("corpus")
            return corpus
        file = self.folder / RECORDS
        return recorded_corpus(read_records(file)) if file.is_file() else None

    def records(self) -> list[Record]:
        """What the run has recorded so far."""
        file = self.folder / RECORDS
        return list(read_records(file)) if file.is_file() else []


def read_model(job: Job) -> dict[str, Any] | None:
    """What was measured of a job's finished model; None if nothing was, or another model had the name then."""
    file = job.folder / BASELINE
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if found.get("model") == job.method.model else None


@dataclass(frozen=True)
class Comparison:
    """A recipe under several methods and seeds.

    Args:
        recipe: Path or name of the recipe.
        overrides: ``--set`` for all methods.
        methods: By name, in the order of the table.
        seeds: One run each.
        folder: Where the runs go.
        threads: CPU threads of a run where the recipe leaves the choice; the same for all, or they would not be paired.
    """

    recipe: str
    overrides: Sequence[str]
    methods: Mapping[str, Method]
    seeds: Sequence[int]
    folder: Path
    threads: int = 1

    @cached_property
    def _plain(self) -> RunConfig:
        return load_recipe(self.recipe, [*self.overrides, "compare=[]"])

    def jobs(self) -> list[Job]:
        """All runs, seed by seed, so that an early stop leaves whole pairs; finished models with the first."""
        return [
            Job(name, seed, self._run_folder(name, seed), method)
            for at, seed in enumerate(self.seeds)
            for name, method in self.methods.items()
            if at == 0 or not method.model
        ]

    def _run_folder(self, name: str, seed: int) -> Path:
        if self.methods[name].model:
            return self.folder / "models" / name
        return self.folder / "runs" / name / f"seed-{seed}"

    def check(self) -> None:
        """Makes each recipe once, with made-up reference losses where they come from another run.

        Raises:
            ConfigError: A method does not fit the recipe; names it.
        """
        plain = self._plain
        dummy = dict.fromkeys(plain.domains, 1.0)
        for job in self.jobs()[: len(self.methods)]:
            if odd := [domain for domain in job.method.shift if domain not in plain.domains]:
                raise ConfigError(f"method {job.name!r}: shift names the domain {odd[0]!r}; the recipe has no such one")
            self.config(job, dummy if needs(job.method) or job.method.shift else None)

    def config(self, job: Job, losses: Mapping[str, float] | None) -> RunConfig:
        """The recipe of one run.

        Args:
            job: The run.
            losses: Reference losses that other runs supply, see :meth:`references`.

        Raises:
            ConfigError: The method does not fit the recipe.
        """
        method, plain = job.method, self._plain
        pruning = [key for key in (*method.set, *method.times) if key.split(".")[0] == "prune"]
        if plain.prune is None and pruning:
            raise ConfigError(
                f"method {job.name!r} sets {pruning[0]}, and the recipe {plain.name!r} has no stage prune",
                "Leave the setting out, or compare on a recipe that prunes.",
            )
        items: dict[str, Any] = {"compare": [], "seed": job.seed, "mixture.strategy": method.strategy}
        if plain.training.threads == "auto":
            items["training.threads"] = self.threads
        if method.scratch:
            items |= _scratch(plain)
        items |= {key: _multiplied(plain, key, factor) for key, factor in method.times.items()} | method.set
        if losses is not None:
            items["mixture.reference_loss"] = {
                domain: max(0.0, loss + method.shift.get(domain, 0.0)) for domain, loss in losses.items()
            }
        elif method.references == "base":
            items["mixture.reference_loss"] = "base"
        try:
            return load_recipe(
                self.recipe, [*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in items.items())]
            )
        except ConfigError as error:
            raise ConfigError(f"method {job.name!r}: {error.message}", error.next_step) from error

    def recorded_corpora(self) -> dict[Job, str]:
        """Fingerprints of the corpora that runs and finished models were measured on so far, as far as recorded."""
        found = {job: job.recorded_corpus() for job in self.jobs()}
        return {job: corpus for job, corpus in found.items() if corpus is not None}

    def check_corpus(self, corpus: Corpus) -> None:
        """Makes sure that what is there already was measured on ``corpus``.

        Raises:
            CorpusError: It was not; its losses would not compare with those of the runs that are left.
        """
        for job, recorded in self.recorded_corpora().items():
            corpus.check_fingerprint(
                recorded,
                f"{job.label} in {self.folder}",
                "Give the corpus of those runs with --set data.corpus=FOLDER, or another --out.",
            )

    def references(self, job: Job) -> dict[str, float] | None:
        """The reference losses that a run takes from another of its seed; None if it takes none.

        They are measured on the text that strategies see, at the end of the other method's run; for shifted ones
        without a method, the unpruned model's. A finished model's are those of the tables.

        Raises:
            StateError: The other run does not have them.
        """
        other = needs(job.method)
        if other is None and not job.method.shift:
            return None
        first = other or self._first()
        source = Job(first, job.seed, self._run_folder(first, job.seed), self.methods[first])
        if source.method.model:
            losses = (read_model(source) or {}).get("losses")
        else:
            losses = _last_losses(source.records()) if other else _base_losses(source.records())
        if losses is None:
            raise StateError(f"the run {job.label} takes reference losses from {first!r}, which has none")
        return dict(losses)

    def base(self, job: Job) -> int | None:
        """The seed of the base that a run trains where no run before has; None if it needs none."""
        if job.method.scratch or job.method.model or self._plain.model.source != "pretrain":
            return None
        assert self._plain.pretrain is not None
        own = self._plain.pretrain.seed
        return job.seed if own is None else own

    def waits_for(self, job: Job) -> str | None:
        """The method whose run with the same seed must be over before this one can start."""
        if other := needs(job.method):
            return other
        return self._first() if job.method.shift else None

    def _first(self) -> str:
        """The first method that has an unpruned model."""
        return next(name for name, method in self.methods.items() if not method.scratch and not method.model)


def _last_losses(records: Sequence[Record]) -> dict[str, float] | None:
    """What a run ended with, on the text that strategies see."""
    return next(
        (item.losses for item in reversed(records) if isinstance(item, Evaluated) and item.stage == "continue"), None
    )


def _base_losses(records: Sequence[Record]) -> dict[str, float] | None:
    """Those of the unpruned model: on the text that strategies see, where the recipe has them measured there."""
    for item in records:
        if isinstance(item, Evaluated) and item.stage != "pretrain" and item.reference_loss:
            return item.reference_loss
    base = next((item for item in records if isinstance(item, ModelMeasured) and item.model == "base"), None)
    return None if base is None else base.evaluation_losses or base.losses


def _scratch(plain: RunConfig) -> dict[str, Any]:
    """Settings of a run without a large model on as many tokens, at the rate at which the recipe trains anew."""
    prune, after = plain.prune, plain.continue_
    more = 0 if prune is None else math.ceil(prune.steps * prune.batch_size / after.batch_size)
    items: dict[str, Any] = {"model.source": "scratch", "continue.steps": after.steps + more}
    if plain.pretrain is not None:
        items |= {
            "continue.learning_rate": plain.pretrain.learning_rate,
            "continue.warmup": plain.pretrain.warmup,
        }
    return items


def _multiplied(plain: RunConfig, key: str, factor: float) -> int:
    """A whole number of the recipe times ``factor``, at least 1."""
    value: Any = plain.to_dict()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int):
        raise ConfigError(f"times names {key}, which is {value!r} in this recipe; it must be a whole number")
    return max(1, round(value * factor))
