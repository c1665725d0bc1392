"""The runs of a comparison: one for each method and seed, each an ordinary run folder with its recipe.

    OUT/runs/METHOD/seed-17/     a run folder, and documents.json: losses of its final model by held-out document
    OUT/models/NAME/model.json   losses of a baseline model by held-out document; it has no runs
    OUT/bases/seed-17.json       losses of the unpruned model by held-out document
    OUT/logs/METHOD-seed-17.txt  output of the run
    OUT/primary.json             primary endpoints as declared before the first run

Runs with the same seed start from the same base, draw the same rows while their mixtures agree, and see the same number
of tokens, or charge the same FLOPs (:class:`drpruning.flops.FlopCounts`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drpruning.comparison.methods import ENDPOINTS, Method, needs, sources
from drpruning.config import RunConfig
from drpruning.config.mixture import readers
from drpruning.errors import ConfigError, StateError, did_you_mean
from drpruning.files import write_text
from drpruning.formatting import flops_in_words
from drpruning.inputs import shown
from drpruning.mixture.static import average_mixture
from drpruning.planning.quick_checks import check_target_shape
from drpruning.recipes import load_recipe, with_shares
from drpruning.records import Evaluated, ModelMeasured, Record, RunEnded, read_records, recorded_corpus
from drpruning.run_folder import RunFolder
from drpruning.train.stored_recipe import changed_settings

if TYPE_CHECKING:
    from drpruning.corpus import Corpus

Equal = Literal["tokens", "flops"]
DOCUMENTS = "documents.json"
PRIMARY = "primary.json"
BASELINE = "model.json"


@dataclass(frozen=True)
class Job:
    """One run: a method with a seed; or the measurement of a baseline model, which serves for all seeds."""

    name: str
    seed: int
    folder: Path
    method: Method = field(compare=False)

    @property
    def label(self) -> str:
        """Name of the run in messages."""
        return self.name if self.method.model else f"{self.name}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the run has ended and its final model has been measured by document."""
        if self.method.model:
            return read_model(self) is not None
        return (self.folder / DOCUMENTS).is_file() and any(isinstance(record, RunEnded) for record in self.records())

    def recorded_corpus(self) -> str | None:
        """Return the fingerprint of the measured corpus; None if it is not recorded, or nothing is measured."""
        if self.method.model:
            corpus: str | None = (read_model(self) or {}).get("corpus")
            return corpus
        file = RunFolder(self.folder).metrics
        return recorded_corpus(read_records(file)) if file.is_file() else None

    def records(self) -> list[Record]:
        """Return the records of the run so far."""
        file = RunFolder(self.folder).metrics
        return list(read_records(file)) if file.is_file() else []


def read_stored(file: Path) -> Any:
    """Read a JSON file of the folder of a comparison.

    Raises:
        StateError: The file is damaged, as after a copy that was interrupted.
    """
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise StateError(
            f"{file}: expected JSON, found {shown(error, 100)}", "Copy it again, or remove it and rerun the command."
        ) from error


def read_model(job: Job) -> dict[str, Any] | None:
    """Return the measurement of a job's baseline model.

    None without one, if the file is of another model, or if a loss is not finite (earlier versions stored such losses).
    """
    file = job.folder / BASELINE
    found: dict[str, Any] = read_stored(file) if file.is_file() else {}
    is_finite = all(math.isfinite(loss) for loss in found.get("losses", {}).values())
    return found if found.get("model") == job.method.model and is_finite else None


@dataclass(frozen=True)
class Comparison:
    """A recipe under several methods and seeds.

    Args:
        recipe: Path or name of the recipe.
        overrides: ``--set`` for all methods.
        methods: Methods by name, in the order of the table.
        seeds: One run of each method for each seed.
        folder: Folder of all runs.
        threads: CPU threads of a run if the recipe does not set them; the same for all runs, or they are not paired.
            Existing runs take precedence (:attr:`stored_threads`), so that interrupted runs can resume.
        domain_tokens: Training tokens of each domain of the recipe; needed if the recipe or a method names a static
            mixture (:meth:`names_mixtures`).
        primary: Primary endpoints of the methods file: names of :data:`~drpruning.comparison.methods.ENDPOINTS`, or
            domains.
        equal: What runs with the same seed have in common: ``tokens``, or ``flops``: the steps of the stage continue
            are those that charge the FLOPs of the first method.
    """

    recipe: str
    overrides: Sequence[str]
    methods: Mapping[str, Method]
    seeds: Sequence[int]
    folder: Path
    threads: int = 1
    domain_tokens: Mapping[str, int] | None = None
    primary: Sequence[str] = ()
    equal: Equal = "tokens"

    @cached_property
    def _config_without_also_run(self) -> RunConfig:
        return self._load(["also_run=[]"])

    def _load(self, changes: Sequence[str]) -> RunConfig:
        """Return the recipe with settings changed, and with shares in place of names if the corpus is known."""
        config = load_recipe(self.recipe, [*self.overrides, *changes])
        return config if self.domain_tokens is None else with_shares(config, self.domain_tokens)

    @property
    def plain_recipe(self) -> RunConfig:
        """The recipe as given, without the changes of a method."""
        return self._load([])

    def names_mixtures(self) -> bool:
        """Return whether the recipe or a method has the name of a static mixture in place of shares."""
        return any(self.config(job, None).mixture_names for job in self.jobs()[: len(self.methods)])

    def jobs(self) -> list[Job]:
        """Return all runs, seed by seed, so that an interrupted comparison has whole pairs; baseline models once."""
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
        """Build each recipe once, with dummy reference losses if they come from another run, and check its target.

        Raises:
            ConfigError: A method does not fit the recipe; the message names the method.
            StateError: An existing run was made with other settings than those of its method now.
        """
        plain = self._config_without_also_run
        known = [*ENDPOINTS, *plain.domains]
        if unknown := [name for name in self.primary if name not in known]:
            raise ConfigError(
                f"primary names {unknown[0]!r}; expected {', '.join(ENDPOINTS)} or a domain of the recipe",
                did_you_mean(unknown[0], known),
            )
        dummy = dict.fromkeys(plain.domains, 1.0)
        for job in self.jobs()[: len(self.methods)]:
            if odd := [domain for domain in job.method.shift if domain not in plain.domains]:
                raise ConfigError(
                    f"method {job.name!r}: shift names the domain {odd[0]!r}; the recipe has no such domain"
                )
            if job.method.shift and needs(job.method) is None:
                self._source_of_base_losses()
            self._check_average(job)
            self._check_budget(job)
            config = self.config(job, dummy if needs(job.method) or job.method.shift else None)
            if not all(other.finished for other in self.jobs() if other.name == job.name):
                self._check_target(job, config)
        for job in self.jobs():
            self._check_settings(job)

    def _check_settings(self, job: Job) -> None:
        """Check that an existing run was made with the settings that its method has now.

        A finished run may differ in settings that its strategy does not read. It may name the corpus otherwise, since
        fingerprints of corpora are compared (:meth:`check_corpus`). Numbers from other runs are compared if those runs
        are finished, and up to rounding.
        """
        folder = RunFolder(job.folder)
        if job.method.model or not folder.exists:
            return
        filled = []
        if needs(job.method) or job.method.shift:
            filled.append("mixture.reference_loss")
        if job.method.average_of:
            filled.append("data.reference_ratio")
        if self._budget_job(job):
            filled.append("continue.charged_flops")
        if all(source.finished for source in self.waits_for(job)):
            config = self.config(job, self.references(job), self.average(job), self.budget(job))
            changed = {
                key: values
                for key, values in changed_settings(folder, config).items()
                if not (key.startswith(tuple(filled)) and _nearly_equal(*values))
            }
        else:
            dummy = dict.fromkeys(self._config_without_also_run.domains, 1.0)
            config = self.config(job, dummy if "mixture.reference_loss" in filled else None)
            changed = changed_settings(folder, config)
            changed = {key: values for key, values in changed.items() if not key.startswith(tuple(filled))}
        if changed and job.finished:
            changed = {key: values for key, values in changed.items() if _affects_result(key, job.method.strategy)}
        if changed:
            first = "mixture.strategy" if "mixture.strategy" in changed else next(iter(changed))
            stored, now = (shown(value) for value in changed.pop(first))
            further = f" (also different: {', '.join(changed)})" if changed else ""
            raise StateError(
                f"the run {job.label} was made with {first}={stored}, now {now}{further}",
                f"Give another --out, or remove {job.folder}.",
            )

    def _check_target(self, job: Job, config: RunConfig) -> None:
        """Check the target shape of a method, so that no other method's runs end before an impossible one is found."""
        if job.method.model is not None:
            return
        try:
            check_target_shape(config)
        except ConfigError as error:
            raise ConfigError(f"method {job.name!r}: {error.message}", error.next_step) from error

    def _check_average(self, job: Job) -> None:
        """Check that a method's average can be had, and that its runs have the same one as before."""
        method = job.method
        if method.average_of is None:
            return
        if self.methods[method.average_of].model:
            raise ConfigError(
                f"method {job.name!r}: average_of names {method.average_of!r}, a model that is not trained"
            )
        folders = {seed: RunFolder(self._run_folder(job.name, seed)) for seed in self.seeds}
        existing = {seed: folder for seed, folder in folders.items() if folder.exists}
        if method.average_over == "seed" or not existing:
            return
        now = self.average(job) if all(source.finished for source in self._averaged_runs(job)) else None
        for seed, folder in existing.items():
            if folder.read_recipe()["data"]["reference_ratio"] != now:
                raise ConfigError(
                    f"method {job.name!r} averages {method.average_of!r} over all seeds, and its run of seed {seed} "
                    "averaged other seeds than now",
                    f"Keep the number of --seeds, or remove {folder.path.parent}.",
                )

    def _check_budget(self, job: Job) -> None:
        """Check that a method can wait for the first one's FLOPs, and that its runs have the same budget as now."""
        method, first = job.method, self.budget_method
        if method.model:
            return
        if self.equal == "flops" and job.name != first and (cycle := self._reads(first, job.name)):
            raise ConfigError(
                f"with equal FLOPs, {job.name!r} waits for those of the first method {first!r}, which reads "
                f"{' -> '.join(cycle)}",
                "Name a method first that reads no other run, for example with --strategies.",
            )
        if "continue.charged_flops" in method.set:
            return
        for seed in self.seeds:
            run = Job(job.name, seed, self._run_folder(job.name, seed), method)
            if not RunFolder(run.folder).exists:
                continue
            stored, source = RunFolder(run.folder).read_recipe()["continue"].get("charged_flops"), self._budget_job(run)
            if source is None:
                expected, fits = "equal tokens", stored == self._config_without_also_run.continue_.charged_flops
            else:
                fits = stored is not None and (not source.finished or stored == self.budget(run))
                expected = f"the FLOPs of {first}"
            if not fits:
                got = "has no budget of FLOPs" if stored is None else f"has a budget of {flops_in_words(stored)}"
                raise ConfigError(f"the run {run.label} {got}; expected {expected}", "Give another --out.")

    def _reads(self, name: str, target: str) -> list[str]:
        """Return the methods from the one after ``name`` to ``target`` that read each other's runs; empty if none."""
        for other in self._sources(name):
            if other == target:
                return [other]
            if further := self._reads(other, target):
                return [other, *further]
        return []

    def _sources(self, name: str) -> list[str]:
        """Return the methods whose runs a method reads."""
        method = self.methods[name]
        shifted = [self._source_of_base_losses()] if method.shift and needs(method) is None else []
        return sources(method) + shifted

    @property
    def budget_method(self) -> str:
        """The first method that is trained: with ``equal="flops"``, its runs are the budgets of all others."""
        return next((name for name, method in self.methods.items() if not method.model), "")

    def _budget_job(self, job: Job) -> Job | None:
        """Return the run whose charged FLOPs a run has to spend; None if the recipe sets its steps."""
        first = self.budget_method
        if self.equal == "tokens" or job.method.model or job.name == first:
            return None
        return Job(first, job.seed, self._run_folder(first, job.seed), self.methods[first])

    def budget(self, job: Job) -> float | None:
        """Return the charged FLOPs that a run has to spend, see :meth:`budget_method`; None if it has no budget.

        Raises:
            StateError: The first method's run with the same seed is not finished, or has recorded no FLOPs.
        """
        source = self._budget_job(job)
        if source is None:
            return None
        ended = next((each for each in reversed(source.records()) if isinstance(each, RunEnded)), None)
        if ended is None or not ended.charged_flops:
            raise StateError(
                f"the run {job.label} has to charge the FLOPs of {source.label}, "
                f"which {'is not finished' if ended is None else 'has recorded none'}",
                "Give another --out, or --equal tokens.",
            )
        return ended.charged_flops

    def config(
        self,
        job: Job,
        losses: Mapping[str, float] | None,
        ratio: Mapping[str, float] | None = None,
        budget: float | None = None,
    ) -> RunConfig:
        """Return the recipe of one run.

        Args:
            job: The run.
            losses: Reference losses from other runs, see :meth:`references`.
            ratio: Reference ratio from other runs, see :meth:`average`.
            budget: Charged FLOPs of another run, see :meth:`budget`.

        Raises:
            ConfigError: The method does not fit the recipe.
        """
        method, plain = job.method, self._config_without_also_run
        pruning = [key for key in (*method.set, *method.times) if key.split(".")[0] == "prune"]
        if plain.prune is None and pruning:
            raise ConfigError(
                f"method {job.name!r} sets {pruning[0]}, and the recipe {plain.name!r} has no stage prune",
                "Leave the setting out, or compare on a recipe that prunes.",
            )
        items: dict[str, Any] = {"also_run": [], "seed": job.seed, "mixture.strategy": method.strategy}
        if plain.training.threads == "auto":
            items["training.threads"] = self._threads(job)
        if method.scratch:
            items |= _scratch(plain)
        items |= plain.shares_to_set()
        if ratio is not None:
            items["data.reference_ratio"] = dict(ratio)
        if budget is not None:
            items["continue.charged_flops"] = budget
        items |= {key: _multiplied_setting(plain, key, factor) for key, factor in method.times.items()} | method.set
        if losses is not None:
            items["mixture.reference_loss"] = {
                domain: max(0.0, loss + method.shift.get(domain, 0.0)) for domain, loss in losses.items()
            }
        elif method.references == "base":
            items["mixture.reference_loss"] = "base"
        try:
            return self._load([f"{key}={json.dumps(value)}" for key, value in items.items()])
        except ConfigError as error:
            raise ConfigError(f"method {job.name!r}: {error.message}", error.next_step) from error

    @cached_property
    def stored_threads(self) -> int | None:
        """Threads of the runs that exist, of these methods if there are any; None without a run."""
        own = [job.folder for job in self.jobs() if "training.threads" not in job.method.set]
        folders = [*own, *sorted(file.parent for file in self.folder.glob("runs/*/*/recipe.yaml"))]
        return next(filter(None, map(_threads_in, folders)), None)

    def _threads(self, job: Job) -> int:
        """Return the threads of a run: its own if it exists, otherwise those of the runs that exist."""
        return _threads_in(job.folder) or self.stored_threads or self.threads

    def declare_primary(self) -> None:
        """Store the primary endpoints in the folder, unless an earlier call did or runs exist."""
        file = self.folder / PRIMARY
        if not file.is_file() and not any(job.folder.exists() for job in self.jobs()):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(list(self.primary)) + "\n")

    def first_primary(self) -> list[str]:
        """Return the primary endpoints declared before the first run; empty if none were."""
        file = self.folder / PRIMARY
        return list(read_stored(file)) if file.is_file() else []

    def recorded_corpora(self) -> dict[Job, str]:
        """Return the recorded fingerprints of the corpora on which runs and baseline models were measured so far."""
        found = {job: job.recorded_corpus() for job in self.jobs()}
        return {job: corpus for job, corpus in found.items() if corpus is not None}

    def names_other_corpus(self) -> bool:
        """Return whether an existing run was made with another ``data.corpus`` than the recipe has now."""
        folders = [folder for job in self.jobs() if (folder := RunFolder(job.folder)).exists]
        return any(each.read_recipe()["data"]["corpus"] != self.plain_recipe.data.corpus for each in folders)

    def check_corpus(self, corpus: Corpus) -> None:
        """Check that the existing runs were measured on ``corpus``.

        Raises:
            CorpusError: A run has another corpus; its losses would not compare with those of the remaining runs.
        """
        for job, recorded in self.recorded_corpora().items():
            corpus.check_fingerprint(
                recorded,
                f"{job.label} in {self.folder}",
                "Give the corpus of those runs with --set data.corpus=FOLDER, or another --out.",
            )

    def references(self, job: Job) -> dict[str, float] | None:
        """Return the reference losses that a run takes from another run of its seed; None if it takes none.

        They are the final losses of the other method's run, on the text of the evaluations in training; for shifted
        references without a method, the unpruned model's losses; for a baseline model, the losses in the tables.

        Raises:
            StateError: The other run has no such losses, or is not finished and its last losses are not final.
        """
        other = needs(job.method)
        if other is None and not job.method.shift:
            return None
        first = other or self._source_of_base_losses()
        source = Job(first, job.seed, self._run_folder(first, job.seed), self.methods[first])
        if source.method.model:
            losses = (read_model(source) or {}).get("losses")
        elif other and not source.finished:
            raise StateError(f"the run {job.label} takes reference losses from {source.label}, which is not finished")
        else:
            losses = _last_losses(source.records()) if other else _base_losses(source.records())
        if losses is None:
            raise StateError(f"the run {job.label} takes reference losses from {first!r}, which has no losses")
        return dict(losses)

    def average(self, job: Job) -> dict[str, float] | None:
        """Return the mixture that a run takes from other runs, averaged over their tokens; None if it takes none.

        Raises:
            StateError: One of these runs is not finished.
            WeightError: One of these runs drew nothing from a domain.
        """
        if job.method.average_of is None:
            return None
        runs = self._averaged_runs(job)
        if missing := [source.label for source in runs if not source.finished]:
            raise StateError(f"the run {job.label} averages the mixture of {missing[0]}, which is not finished")
        mixtures = [average_mixture(source.folder) for source in runs]
        return {domain: sum(each[domain] for each in mixtures) / len(mixtures) for domain in mixtures[0]}

    def _averaged_runs(self, job: Job) -> list[Job]:
        """Return the runs whose mixtures a run averages."""
        name = job.method.average_of
        if name is None:
            return []
        seeds = self.seeds if job.method.average_over == "seeds" else [job.seed]
        return [Job(name, seed, self._run_folder(name, seed), self.methods[name]) for seed in seeds]

    def base(self, job: Job) -> int | None:
        """Return the seed of the base that a run trains unless an earlier run did; None if it needs no base."""
        if job.method.scratch or job.method.model or self._config_without_also_run.model.source != "pretrain":
            return None
        assert self._config_without_also_run.pretrain is not None
        own = self._config_without_also_run.pretrain.seed
        return job.seed if own is None else own

    def waits_for(self, job: Job) -> set[Job]:
        """Return the runs that must end before this run can start."""
        runs = {*self._averaged_runs(job), *filter(None, [self._budget_job(job)])}
        other = needs(job.method) or (self._source_of_base_losses() if job.method.shift else None)
        if other is not None:
            runs.add(Job(other, job.seed, self._run_folder(other, job.seed), self.methods[other]))
        return runs

    def _source_of_base_losses(self) -> str:
        """Return the first method that measures the unpruned model and reads no other run, for shifted references.

        Raises:
            ConfigError: There is none.
        """
        for name, method in self.methods.items():
            if not (method.scratch or method.model or method.shift or sources(method)):
                return name
        shifted = next(name for name, method in self.methods.items() if method.shift)
        raise ConfigError(
            f"method {shifted!r} shifts the unpruned model's losses, and no method measures them: one that is not "
            "trained from new weights, has no shift and reads no other run",
            "Add a method such as constant, or name another method in references.",
        )


def _threads_in(folder: Path) -> int | None:
    """Return the threads in the recipe of a run folder; None if there is no such number."""
    stored = RunFolder(folder)
    threads = stored.read_recipe().get("training", {}).get("threads") if stored.exists else None
    return threads if isinstance(threads, int) else None


def _affects_result(key: str, strategy: str) -> bool:
    """Return whether a setting can change the result of a run with a strategy, on the same corpus."""
    section, _, rest = key.partition(".")
    if section == "mixture":
        return key == "mixture.strategy" or strategy in readers(rest.partition(".")[0])
    return key != "data.corpus"


def _nearly_equal(stored: object, now: object) -> bool:
    """Return whether two numbers are equal up to the rounding of sums in float32."""
    return isinstance(stored, float) and isinstance(now, float) and math.isclose(stored, now, rel_tol=1e-6)


def _last_losses(records: Sequence[Record]) -> dict[str, float] | None:
    """Return the final losses of a run, on validation text."""
    return next(
        (item.losses for item in reversed(records) if isinstance(item, Evaluated) and item.stage == "continue"), None
    )


def _base_losses(records: Sequence[Record]) -> dict[str, float] | None:
    """Return the unpruned model's losses, on validation text if they are recorded."""
    for item in records:
        if isinstance(item, Evaluated) and item.stage != "pretrain" and item.reference_loss:
            return item.reference_loss
    base = next((item for item in records if isinstance(item, ModelMeasured) and item.model == "base"), None)
    return None if base is None else base.evaluation_losses or base.losses


def _scratch(plain: RunConfig) -> dict[str, Any]:
    """Return settings of a run without a large model, on as many tokens, at the learning rate of the pretrain stage."""
    prune, after = plain.prune, plain.continue_
    more = 0 if prune is None else math.ceil(prune.steps * prune.batch_size / after.batch_size)
    items: dict[str, Any] = {"model.source": "scratch", "continue.steps": after.steps + more}
    if plain.pretrain is not None:
        items |= {
            "continue.learning_rate": plain.pretrain.learning_rate,
            "continue.warmup_fraction": plain.pretrain.warmup_fraction,
        }
    return items


def _multiplied_setting(plain: RunConfig, key: str, factor: float) -> int:
    """Return a whole number of the recipe times ``factor``, at least 1."""
    value: Any = plain.to_dict()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int):
        raise ConfigError(f"times names {key}, which is {value!r} in this recipe; it must be a whole number")
    return max(1, round(value * factor))
