"""What a run says about itself: the only contract between the training loop and those who watch it.

A run folder holds ``metrics.jsonl``, one JSON object a line. Each object has ``kind`` (which of the classes below),
``time`` (seconds since the epoch, added when it is written) and the fields of its class. A reader skips kinds and
fields it does not know, so that newer runs stay readable.

Losses are held-out losses in nats per token. ``step`` counts optimizer steps within the stage, ``tokens`` the tokens
trained on within the stage. Numbers that are not finite are written as ``null``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Protocol, get_args, get_origin, get_type_hints

Losses = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """First record of a run: what was asked for, and on what it runs.

    ``rho`` is the radius of the chi-square ball (halved divergence), for strategies that have one. ``stages`` are those
    of the recipe in their order; empty in records of earlier versions.
    ``evaluation_tokens`` and ``measurement_tokens`` are the held-out tokens of each domain that :class:`Evaluated` and
    :class:`ModelMeasured` are measured on.
    """

    kind: ClassVar[str] = "run_started"
    name: str
    recipe_hash: str
    strategy: str
    seed: int
    domains: list[str]
    reference_ratio: Losses
    rho: float | None = None
    stages: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    evaluation_tokens: dict[str, int] = field(default_factory=dict)
    measurement_tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageStarted:
    """A stage (``pretrain``, ``prune`` or ``continue``) begins, or goes on after a resume.

    ``learning_rates`` is the schedule of the whole stage: ``rates`` at ``tokens``, straight lines between.
    """

    kind: ClassVar[str] = "stage_started"
    stage: str
    steps: int
    tokens_per_step: int
    parameters: int
    shape: dict[str, int]
    target: dict[str, int] | None = None
    learning_rates: dict[str, list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class StepTaken:
    """One optimizer step. ``expected``, ``wanted`` and ``multipliers`` are per mask kind, in the prune stage only.

    ``expected`` is the expected sparsity, ``wanted`` the warmed-up target sparsity (both fractions removed, 0 to 1);
    ``multipliers`` holds [linear, quadratic].

    ``objective`` is what the step descended on where that is not ``loss`` alone: with distillation.

    ``domain_losses`` are the mean training losses of the step's rows and ``domain_tokens`` their tokens, for the
    domains that had any. ``utilisation`` is the model FLOPs utilisation (MFU) where the device's peak is known,
    ``loader_wait`` the seconds spent waiting for the batch, ``memory`` the peak bytes of the process that writes, on
    its accelerator or, without one, resident. ``skipped`` marks a step whose loss or gradient was not finite: it
    changed nothing.
    """

    kind: ClassVar[str] = "step"
    stage: str
    step: int
    tokens: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    objective: float | None = None
    domain_losses: Losses | None = None
    domain_tokens: dict[str, int] | None = None
    utilisation: float | None = None
    loader_wait: float | None = None
    memory: int | None = None
    skipped: bool = False
    expected: dict[str, float] | None = None
    wanted: dict[str, float] | None = None
    multipliers: dict[str, list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Held-out losses after ``step``, and the mixture chosen from them for the steps that follow.

    ``predicted_loss`` is the law's prediction for the end of the stage, ``predicted_band`` its 90% band [low, high].

    ``standard_errors`` are of each domain's excess loss, over held-out rows. Where the reference is a model's losses
    on the same rows, the unpruned one's or those of the first evaluation, they are of the difference paired row by row;
    where it is numbers of the recipe, or nothing as in the pretrain stage, they are of the loss. A strategy that puts
    predictions in place of the reference changes nothing here.
    """

    kind: ClassVar[str] = "evaluated"
    stage: str
    step: int
    tokens: int
    parameters: float
    losses: Losses
    weights: Losses
    reference_ratio: Losses
    reference_loss: Losses | None = None
    excess_loss: Losses | None = None
    predicted_loss: Losses | None = None
    predicted_band: dict[str, list[float]] | None = None
    standard_errors: Losses | None = None
    divergence: float | None = None
    status: str = ""
    bounded: list[str] = field(default_factory=list)
    average_weights: Losses | None = None
    epochs: Losses = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelMeasured:
    """Held-out losses of a finished model: ``base``, ``pruned`` or ``recovered``.

    ``evaluation_losses`` are on those rows that :class:`Evaluated` is measured on, where they are among the rows of
    ``losses``: these compare with the losses of evaluations.
    """

    kind: ClassVar[str] = "model_measured"
    model: str
    parameters: int
    shape: dict[str, int]
    losses: Losses
    evaluation_losses: Losses | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskMeasured:
    """Scores of a model on a task of lm-evaluation-harness, or on the domain benchmark.

    ``metrics`` holds e.g. ``acc`` and ``acc_norm``, ``errors`` their standard errors where known. ``stage`` and
    ``step`` say when, for a model that was in training; ``dtype`` is the type of the computation.
    """

    kind: ClassVar[str] = "task_measured"
    model: str
    task: str
    metrics: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    samples: int | None = None
    stage: str | None = None
    step: int | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Which units of the source model are in the exported one, as indices into the source, sorted.

    ``layers`` and ``hidden`` are lists; ``heads`` (key/value groups) and ``intermediate`` hold one list for each kept
    layer, in order.
    """

    kind: ClassVar[str] = "kept"
    source: dict[str, int]
    target: dict[str, int]
    layers: list[int]
    hidden: list[int]
    heads: list[list[int]]
    intermediate: list[list[int]]
    target_met: dict[str, bool] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something a reader should know: a resume, an interruption, a setting without effect, a skipped step."""

    kind: ClassVar[str] = "incident"
    what: str
    detail: str
    stage: str | None = None
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class StageEnded:
    """A stage is complete."""

    kind: ClassVar[str] = "stage_ended"
    stage: str
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """Last record of a finished run."""

    kind: ClassVar[str] = "run_ended"
    seconds: float


Record = (
    RunStarted
    | StageStarted
    | StepTaken
    | Evaluated
    | ModelMeasured
    | TaskMeasured
    | Kept
    | Incident
    | StageEnded
    | RunEnded
)
RECORDS: dict[str, type[Any]] = {cls.kind: cls for cls in get_args(Record)}


class Sink(Protocol):
    """Anything that wants to know what happens."""

    def write(self, record: Record) -> None:
        """Takes note of ``record``."""


def to_json(record: Record, now: float | None = None) -> str:
    """One line of ``metrics.jsonl``, without the newline."""
    body = {"kind": record.kind, "time": time.time() if now is None else now, **asdict(record)}
    return json.dumps(_finite(body), separators=(",", ":"), allow_nan=False)


def from_json(line: str) -> Record | None:
    """The record in ``line``, or None for a kind this version does not know.

    Numbers that were written as ``null`` come back as NaN, so that tables keep their shape.

    Raises:
        ValueError: The line is not a JSON object, or a field its kind requires is missing or of another type.
    """
    try:
        body = json.loads(line)
    except RecursionError as error:
        raise ValueError("a record is a flat JSON object, got one nested too deeply") from error
    if not isinstance(body, dict):
        raise ValueError(f"a record is a JSON object, got {type(body).__name__}")
    kind = str(body.get("kind", ""))
    cls = RECORDS.get(kind)
    if cls is None:
        return None
    try:
        record: Record = cls(
            **{key: _typed(body[key], hint) for key, hint in _field_types(kind).items() if key in body}
        )
    except (TypeError, OverflowError) as error:
        raise ValueError(f"record of kind {cls.kind!r} is not usable: {error}") from error
    return record


def read_records(path: Path) -> Iterator[Record]:
    """The records of a ``metrics.jsonl``, in order; a cut-off or unreadable line is skipped."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = from_json(line)
            except ValueError:
                continue
            if record is not None:
                yield record


def recorded_corpus(records: Iterable[Record]) -> str | None:
    """Fingerprint of the corpus that a run was trained and measured on; None where the run recorded none."""
    return next((record.environment.get("corpus") for record in records if isinstance(record, RunStarted)), None)


class JsonlSink:
    """Appends records to a ``metrics.jsonl``; each line is flushed as it is written.

    A last line that was cut off, by a full disk for instance, is dropped first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            cut_back(path, path.read_bytes().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Appends ``record``."""
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def tell(self) -> int:
        """Bytes written so far: what a checkpoint remembers, so that a resume can cut back to it."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def cut_back(path: Path, size: int) -> None:
    """Drops what was written to ``path`` after it had ``size`` bytes: the steps a resumed run takes again."""
    if path.exists() and path.stat().st_size > size:
        with path.open("r+b") as file:
            file.truncate(size)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


@cache
def _field_types(kind: str) -> dict[str, Any]:
    hints = get_type_hints(RECORDS[kind])
    return {item.name: hints[item.name] for item in fields(RECORDS[kind])}


def _typed(value: Any, hint: Any) -> Any:
    """``value`` if it is what ``hint`` says, floats made finite or NaN; otherwise a TypeError."""
    if hint is float:
        return _float(value)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(item, inner[1]) for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_typed(item, inner[0]) for item in value]
    if NoneType in inner:  # X | None, written in this order throughout
        return None if value is None else _typed(value, inner[0])
    if origin is None and type(value) is hint:  # `type is`, since True is an int to isinstance
        if hint is int and not -(2**63) <= value < 2**63:
            raise OverflowError("wanted an integer of 64 bits")
        return value
    raise TypeError(f"wanted {hint}, got {type(value).__name__}")


def _float(value: Any) -> float:
    if value is None:
        return math.nan
    if type(value) not in {int, float}:
        raise TypeError(f"wanted a number, got {type(value).__name__}")
    number = float(value)
    return number if math.isfinite(number) else math.nan
