"""Read a run folder: its records, its recipe, and the runs to compare with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from drpruning.errors import CorpusError, StateError
from drpruning.records import (
    Evaluated,
    ModelMeasured,
    Record,
    RunEnded,
    RunStarted,
    StageEnded,
    StageStarted,
    read_records,
    recorded_corpus,
)
from drpruning.report.read.tail import RunSeries, read_series
from drpruning.run_folder import COMPARE, METRICS, RunFolder

R = TypeVar("R")

STAGES = ("pretrain", "prune", "continue")
MASK_KINDS = ("layer", "head", "intermediate", "hidden", "expert")
MASK_TABLES = ("expected", "scheduled", "linear", "quadratic")
MOST_NAMES = 200  # domains or mask kinds that are drawn
RECIPE_LIMIT = 200_000  # characters; a recipe is a page or two, anything longer is not one


@dataclass(frozen=True)
class StageProgress:
    """Progress of a stage: ``tokens`` and ``steps`` within it, ``seconds`` since its first record."""

    name: str
    tokens: int
    steps: int
    began: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """The contents of a run folder.

    Attributes:
        folder: The folder.
        label: Distinguishes the run from those it is compared with.
        series: Contents of its ``metrics.jsonl``.
        recipe: Text of its ``recipe.yaml``.
        others: The runs in ``folder/compare``.

    Example:
        Figures need no page: ``drpruning.Plots(drpruning.Run.open("runs/quickstart")).losses()``.
    """

    folder: Path
    label: str
    series: RunSeries = field(repr=False)
    recipe: str | None = field(default=None, repr=False)
    others: tuple[Run, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Read a run folder, finished or not.

        Raises:
            StateError: There is no such folder, or it holds neither ``metrics.jsonl`` nor ``recipe.yaml``.
        """
        return open_run(Path(folder))

    @property
    def records(self) -> tuple[Record, ...]:
        """All records except steps and evaluations, whose numbers are in :attr:`series`."""
        return tuple(self.series.records)

    @property
    def domains(self) -> list[str]:
        """Every domain of the run, in the recipe's order."""
        return list(dict.fromkeys([*domains_of(self.records), *self.series.domains]))

    @property
    def started(self) -> RunStarted | None:
        """The record of the run's start."""
        return last(self.records, RunStarted)

    @property
    def ended(self) -> bool:
        """Whether the run is complete."""
        return last(self.records, RunEnded) is not None

    @property
    def stages(self) -> list[StageProgress]:
        """The stages with records, in order."""
        both = (self.series.steps, self.series.evaluations)
        names = dict.fromkeys(name for table in both for name in table)
        known = [name for name in STAGES if name in names]
        return [_progress_of(self, name) for name in [*known, *(name for name in names if name not in STAGES)]]


def open_run(folder: Path, *others: Path) -> Run:
    """Read ``folder`` and the runs to compare with it; by default those in ``folder/compare``.

    Raises:
        StateError: There is no such folder, or it holds neither ``metrics.jsonl`` nor ``recipe.yaml``.
    """
    folders = run_folders(folder, *others)
    return runs_together(folders, [read_series(RunFolder(path).metrics) for path in folders])


def run_folders(folder: Path, *others: Path) -> list[Path]:
    """Return ``folder`` and the run folders to compare with it; by default those in ``folder/compare``.

    Raises:
        StateError: There is no such folder, or it holds neither ``metrics.jsonl`` nor ``recipe.yaml``.
    """
    for each in (folder, *others):
        check_run(each)
    return [folder, *(others or sorted(path.parent for path in folder.glob(f"{COMPARE}/*/{METRICS}")))]


def check_corpora(folders: Sequence[Path]) -> None:
    """Check that runs were measured on the same corpus, where they recorded it.

    Raises:
        CorpusError: They were not, so that their losses do not compare.
    """
    files = [(folder, RunFolder(folder).metrics) for folder in folders]
    corpora = [(folder, recorded_corpus(read_records(file))) for folder, file in files if file.is_file()]
    known = [(folder, corpus) for folder, corpus in corpora if corpus is not None]
    for folder, corpus in known:
        first, expected = known[0]
        if corpus != expected:
            raise CorpusError(
                f"the fingerprint of {first}'s corpus is {expected[:16]}, that of {folder}'s is {corpus[:16]}: their "
                "losses do not compare",
                "Report them one by one, or add --other-corpus to compare them anyway.",
            )


def runs_together(folders: Sequence[Path], series: Sequence[RunSeries]) -> Run:
    """Build the first run with the others to compare with it.

    They go by their strategies; where two have the same, by their folders, from where those part.
    """
    strategies = [_strategy(each.records) for each in series]
    names = [folder.resolve().name for folder in folders]
    if None not in strategies and len(set(strategies)) == len(strategies):
        labels = [str(strategy) for strategy in strategies]
    elif len(folders) > 1 and all(folder.parent.parent == folders[0] for folder in folders[1:]):
        labels = [names[0], *(f"compare/{name}" for name in names[1:])]
    else:
        labels = names if len(set(names)) == len(names) else _where_they_part(folders)
    runs = [
        Run(folder, label, each, _recipe(folder)) for folder, label, each in zip(folders, labels, series, strict=True)
    ]
    return Run(runs[0].folder, runs[0].label, runs[0].series, runs[0].recipe, tuple(runs[1:]))


def _where_they_part(folders: Sequence[Path]) -> list[str]:
    """Return the parts of the paths between those that all of them begin and end with.

    >>> _where_they_part([Path("/runs/paper/seed-17"), Path("/runs/wide/seed-17")])
    ['paper', 'wide']
    """
    whole = [folder.resolve() for folder in folders]
    shared = os.path.commonpath([folder.parent for folder in whole])
    parts = [folder.relative_to(shared).parts for folder in whole]
    while len({each[-1] for each in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [each[:-1] for each in parts]
    return ["/".join(each) for each in parts]


def records_of(records: Iterable[Record], cls: type[R]) -> list[R]:
    """Return the records of one kind, in order."""
    return [record for record in records if isinstance(record, cls)]


def last(records: Iterable[Record], cls: type[R]) -> R | None:
    """Return the last record of one kind: a resumed run writes some of them twice."""
    found = records_of(records, cls)
    return found[-1] if found else None


def measured(records: Iterable[Record], model: str) -> ModelMeasured | None:
    """Return the last measurement of ``base``, ``pruned`` or ``recovered``."""
    found = [record for record in records_of(records, ModelMeasured) if record.model == model]
    return found[-1] if found else None


def base_of_curves(records: Iterable[Record]) -> dict[str, float]:
    """Return the base's losses on the validation rows, as curves; if none were recorded, those on the test rows."""
    base = measured(records, "base")
    if base is None:
        return {}
    return base.losses if base.evaluation_losses is None else base.evaluation_losses


def planned(records: Iterable[Record], stage: str) -> StageStarted | None:
    """Return the record of the stage's start."""
    found = [record for record in records_of(records, StageStarted) if record.stage == stage]
    return found[-1] if found else None


def domains_of(records: Iterable[Record]) -> list[str]:
    """Return domain names in the recipe's order, then those found only in measurements."""
    names: dict[str, None] = {}
    for record in records:
        if isinstance(record, RunStarted):
            names.update(dict.fromkeys(record.domains))
        elif isinstance(record, (Evaluated, ModelMeasured)):
            names.update(dict.fromkeys(record.losses))
    return list(names)


def mask_kinds(runs: Iterable[Run]) -> list[str]:
    """Return the mask kinds of the runs: the known ones in their order, then any other."""
    seen = {
        str(name[1])
        for run in runs
        for bins in run.series.steps.values()
        for name in bins.names
        if isinstance(name, tuple) and name[0] in MASK_TABLES
    }
    return [*(kind for kind in MASK_KINDS if kind in seen), *sorted(seen - set(MASK_KINDS))][:MOST_NAMES]


def _progress_of(run: Run, name: str) -> StageProgress:
    tables = [table[name] for table in (run.series.steps, run.series.evaluations) if name in table]
    tokens, times = (
        np.concatenate([each for table in tables for each in (table.low(column), table.high(column))])
        for column in (("tokens", ""), ("time", ""))
    )
    ended = [record.tokens for record in records_of(run.records, StageEnded) if record.stage == name]
    most = [int(tokens[np.isfinite(tokens)].max(initial=0)), *ended[-1:]]
    known = times[np.isfinite(times)]
    began = float(known.min()) if known.size else 0.0
    seconds = float(known.max()) - began if known.size else 0.0
    return StageProgress(name, max(most), max(table.last for table in tables), began, seconds)


def check_run(folder: Path) -> None:
    """Raise StateError if there is no such folder, or it holds neither ``metrics.jsonl`` nor ``recipe.yaml``."""
    if not folder.is_dir():
        what = "is a file, not a run folder" if folder.exists() else "does not exist"
        raise StateError(f"run {str(folder)!r} {what}", "Give the folder that `drpruning train` wrote.")
    if not RunFolder(folder).metrics.is_file() and not RunFolder(folder).exists:
        raise StateError(
            f"{str(folder)!r} is not a run folder: it holds neither metrics.jsonl nor recipe.yaml",
            "Give the folder that `drpruning train` wrote.",
        )


def _recipe(folder: Path) -> str | None:
    path = RunFolder(folder).recipe
    return path.read_text(encoding="utf-8", errors="replace")[:RECIPE_LIMIT] if path.is_file() else None


def _strategy(records: Iterable[Record]) -> str | None:
    started = last(records, RunStarted)
    return started.strategy if started else None
