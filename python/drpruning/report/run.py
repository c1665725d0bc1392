"""A run folder, read: its records, its recipe, and the comparison runs beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from drpruning.errors import StateError
from drpruning.records import (
    Evaluated,
    ModelMeasured,
    Record,
    RunStarted,
    StageEnded,
    StageStarted,
    StepTaken,
    read_records,
)

R = TypeVar("R")
P = TypeVar("P", StepTaken, Evaluated)

PRUNED_STAGES = ("prune", "continue")
NARROWEST = 0.25  # of the token axis
RECIPE_LIMIT = 200_000  # characters; a recipe is a page or two, anything longer is not one


@dataclass(frozen=True)
class Run:
    """What one run folder holds. ``label`` tells it from the runs it is compared with."""

    folder: Path
    label: str
    records: tuple[Record, ...]
    recipe: str | None = None
    others: tuple[Run, ...] = ()

    @property
    def domains(self) -> list[str]:
        """Every domain of the run, in the recipe's order."""
        return domains_of(self.records)


def open_run(folder: Path) -> Run:
    """Reads ``folder`` and the comparison runs in ``folder/compare``.

    Raises:
        StateError: There is no such folder, or it holds neither ``metrics.jsonl`` nor ``recipe.yaml``.
    """
    if not folder.is_dir():
        what = "is a file, not a run folder" if folder.exists() else "does not exist"
        raise StateError(f"run {str(folder)!r} {what}", "give the folder that `drpruning train` wrote")
    metrics, recipe = folder / "metrics.jsonl", folder / "recipe.yaml"
    if not metrics.is_file() and not recipe.is_file():
        raise StateError(
            f"{str(folder)!r} is not a run folder: it holds neither metrics.jsonl nor recipe.yaml",
            "give the folder that `drpruning train` wrote",
        )
    folders = [folder, *sorted(path.parent for path in folder.glob("compare/*/metrics.jsonl"))]
    every = [_records(path / "metrics.jsonl") for path in folders]
    strategies = [_strategy(records) for records in every]
    distinct = None not in strategies and len(set(strategies)) == len(strategies)
    labels = (
        [str(name) for name in strategies]
        if distinct
        else [folder.resolve().name, *(f"compare/{path.name}" for path in folders[1:])]
    )
    return Run(
        folder=folder,
        label=labels[0],
        records=every[0],
        recipe=recipe.read_text(encoding="utf-8", errors="replace")[:RECIPE_LIMIT] if recipe.is_file() else None,
        others=tuple(map(Run, folders[1:], labels[1:], every[1:])),
    )


def of_kind(records: Iterable[Record], cls: type[R]) -> list[R]:
    """The records of one kind, in order."""
    return [record for record in records if isinstance(record, cls)]


def last(records: Iterable[Record], cls: type[R]) -> R | None:
    """The last record of one kind: a resumed run writes some of them twice."""
    found = of_kind(records, cls)
    return found[-1] if found else None


def measured(records: Iterable[Record], model: str) -> ModelMeasured | None:
    """The last measurement of ``base``, ``pruned`` or ``recovered``."""
    found = [record for record in of_kind(records, ModelMeasured) if record.model == model]
    return found[-1] if found else None


def points(records: Iterable[Record], cls: type[P], stage: str) -> list[P]:
    """The steps or evaluations of ``stage`` by step; of those written twice the later one counts."""
    by_step = {record.step: record for record in of_kind(records, cls) if record.stage == stage}
    return [by_step[step] for step in sorted(by_step)]


def domains_of(records: Iterable[Record]) -> list[str]:
    """Domain names in the recipe's order, then any that only turn up in measurements."""
    names: dict[str, None] = {}
    for record in records:
        if isinstance(record, RunStarted):
            names.update(dict.fromkeys(record.domains))
        elif isinstance(record, (Evaluated, ModelMeasured)):
            names.update(dict.fromkeys(record.losses))
    return list(names)


def shown(text: object) -> str:
    """``text`` as it may be displayed: what does not print (terminal codes, lone surrogates) is replaced.

    >>> shown("a" + chr(27) + "[31mb") == "a" + chr(0xFFFD) + "[31mb"
    True
    """
    return "".join(char if char.isprintable() else "\ufffd" for char in str(text))


@dataclass(frozen=True)
class Span:
    """A stage of ``tokens`` tokens, and the part of a common axis from 0 to 1 that it is drawn on."""

    stage: str
    tokens: int
    left: float
    right: float

    def at(self, tokens: float) -> float:
        """Where on the axis the stage has seen ``tokens``."""
        return self.left + (self.right - self.left) * tokens / self.tokens


def spans(records: Iterable[Record], stages: Iterable[str] = PRUNED_STAGES) -> list[Span]:
    """The stages that took place, laid end to end; one still running ends at its last record.

    Widths follow the tokens, but a stage is never narrower than ``NARROWEST`` before they are scaled to fill the axis:
    pruning is one percent of a real run, and where most happens.
    """
    records = list(records)
    lengths: dict[str, int] = {}
    for stage in stages:
        ended = [record.tokens for record in of_kind(records, StageEnded) if record.stage == stage]
        steps = [record for record in records if isinstance(record, (StepTaken, Evaluated)) and record.stage == stage]
        length = max(ended[-1:] + [record.tokens for record in steps], default=0)
        if length > 0:
            lengths[stage] = length
    widths = {stage: max(length / sum(lengths.values()), NARROWEST) for stage, length in lengths.items()}
    laid: list[Span] = []
    left = 0.0
    for stage, width in widths.items():
        right = left + width / sum(widths.values())
        laid.append(Span(stage, lengths[stage], left, right))
        left = right
    return laid


def planned(records: Iterable[Record], stage: str) -> StageStarted | None:
    """What the stage set out to do."""
    found = [record for record in of_kind(records, StageStarted) if record.stage == stage]
    return found[-1] if found else None


def _records(path: Path) -> tuple[Record, ...]:
    return tuple(read_records(path)) if path.is_file() else ()


def _strategy(records: Iterable[Record]) -> str | None:
    started = last(records, RunStarted)
    return started.strategy if started else None
