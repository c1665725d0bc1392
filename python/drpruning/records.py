"""The records of a run: the only contract between the training loop and the programs that read them.

A run folder has ``metrics.jsonl``, one JSON object per line. Each object has ``kind`` (one of the classes below),
``time`` (seconds since the epoch, added when it is written) and the fields of its class. A reader skips unknown kinds
and fields, so newer runs stay readable.

Losses are held-out losses in nats per token. ``step`` counts optimizer steps within the stage, ``tokens`` the tokens
trained on within the stage. ``charged_flops`` are the floating point operations of the stage so far that are charged to
its method, of all ranks, and ``flops`` the same by part, with the evaluations, which are not charged
(:class:`drpruning.flops.FlopCounts`). Numbers that are not finite are written as ``null``.
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

from drpruning.files import open_to_append, truncate
from drpruning.flops import FlopCounts

Losses = dict[str, float]
BUDGET = "steps of a budget"
"""The incident with the steps that a budget of charged FLOPs has led to."""


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """First record of a run: its recipe and its environment.

    ``rho`` is the radius of the chi-square ball (halved divergence), for strategies that have one. ``stages`` are the
    stages of the recipe in their order. ``eval_tokens`` are the validation tokens of each domain in
    :class:`Evaluated`, ``final_eval_tokens`` the test tokens in :class:`ModelMeasured`.
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
    eval_tokens: dict[str, int] = field(default_factory=dict)
    final_eval_tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageStarted:
    """A stage (``pretrain``, ``prune`` or ``continue``) begins or resumes.

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
    """One optimizer step. ``expected``, ``scheduled`` and ``multipliers`` are per mask kind, in the prune stage only.

    ``expected`` is the expected sparsity, ``scheduled`` the sparsity that the warm-up has reached (both as fractions of
    pruned units, 0 to 1); ``multipliers`` are [linear, quadratic].

    ``objective`` is the value that the step minimised, if it is not ``loss`` alone: with distillation.

    ``domain_losses`` are the mean training losses of the step's rows and ``domain_tokens`` their tokens, for the
    domains that had any. ``utilisation`` is the model FLOPs utilisation (MFU) where the device's peak is known,
    ``loader_wait`` the seconds spent waiting for the batch, ``memory`` the peak bytes of the process that writes, on
    its accelerator or, without one, resident. ``skipped`` marks a step with a loss or gradient that was not finite: it
    changed no parameter.
    """

    kind: ClassVar[str] = "step"
    stage: str
    step: int
    tokens: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    charged_flops: float | None = None
    objective: float | None = None
    domain_losses: Losses | None = None
    domain_tokens: dict[str, int] | None = None
    utilisation: float | None = None
    loader_wait: float | None = None
    memory: int | None = None
    skipped: bool = False
    expected: dict[str, float] | None = None
    scheduled: dict[str, float] | None = None
    multipliers: dict[str, list[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Held-out losses after ``step``, and the mixture that the strategy chose from them for the next steps.

    ``predicted_loss`` is the law's prediction for the end of the stage, ``predicted_band`` its 90% band [low, high].

    ``status`` is a :class:`drpruning.mixture.UpdateStatus`, the reason for the weights; after the status ``probing``,
    the steps up to the next evaluation are those of a probe. ``at_bound`` are the domains with a weight at a bound.
    ``standard_errors`` are those of each domain's excess loss, over held-out rows. If the reference losses are those of
    a model on the same rows (the unpruned model, or the model at the first evaluation), the errors are those of the
    differences paired row by row; if they are numbers of the recipe, or in the stage pretrain, of the losses. Predicted
    reference losses do not change them.
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
    at_bound: list[str] = field(default_factory=list)
    average_weights: Losses | None = None
    epochs: Losses = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MixtureUpdated:
    """The mixture that the strategy chose after ``step``, between two evaluations.

    ``training_losses`` are the mean training losses since the update before, of the domains that were drawn.
    ``status`` is a :class:`drpruning.mixture.UpdateStatus`.
    """

    kind: ClassVar[str] = "mixture_updated"
    stage: str
    step: int
    tokens: int
    weights: Losses
    training_losses: Losses = field(default_factory=dict)
    status: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelMeasured:
    """Held-out losses of a finished model: ``base``, ``pruned`` or ``recovered``.

    ``losses`` are measured on the test rows, ``evaluation_losses`` on the validation rows, as the losses of
    :class:`Evaluated`. ``part_losses`` are the means over at most 64 equal parts of consecutive test rows of each
    domain, the same for all models of a corpus: differences of models are paired part by part.
    """

    kind: ClassVar[str] = "model_measured"
    model: str
    parameters: int
    shape: dict[str, int]
    losses: Losses
    evaluation_losses: Losses | None = None
    part_losses: dict[str, list[float]] | None = None
    path: str | None = None


def with_shots(task: str, shots: int | None) -> str:
    """Return the task with its number of examples, if it has any."""
    return f"{task}, {shots}-shot" if shots else task


@dataclass(frozen=True, kw_only=True)
class TaskMeasured:
    """Scores of a model on a task of lm-evaluation-harness, or on the domain benchmark.

    ``metrics`` has for instance ``acc`` and ``acc_norm``, ``errors`` their standard errors if known. ``shots`` is the
    number of examples before each question. ``stage`` and ``step`` are those of a model in training; ``dtype`` is the
    data type of ``drpruning eval tasks``.
    """

    kind: ClassVar[str] = "task_measured"
    model: str
    task: str
    metrics: dict[str, float]
    errors: dict[str, float] = field(default_factory=dict)
    samples: int | None = None
    shots: int | None = None
    stage: str | None = None
    step: int | None = None
    dtype: str | None = None

    @property
    def label(self) -> str:
        """The task and its number of examples: scores with different numbers are not comparable."""
        return with_shots(self.task, self.shots)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The units of the source model that the exported model has, as sorted indices in the source.

    ``layers`` and ``hidden`` are lists; ``heads`` (key/value groups) and ``intermediate`` hold one list for each kept
    layer, in order. In a mixture of experts ``experts`` does too, and ``intermediate`` has the index e * units + j for
    unit j of expert e.

    ``expected`` is the expected sparsity by mask kind before the extraction, ``target_met`` whether it is within 0.01
    of the target's, ``steps_at_target`` the number of last steps after which it is, for all kinds. They are empty for a
    one-shot cut.
    """

    kind: ClassVar[str] = "kept"
    source: dict[str, int]
    target: dict[str, int]
    layers: list[int]
    hidden: list[int]
    heads: list[list[int]]
    intermediate: list[list[int]]
    experts: list[list[int]] = field(default_factory=list)
    target_met: dict[str, bool] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    steps_at_target: int | None = None


@dataclass(frozen=True, kw_only=True)
class Incident:
    """An event for the reader: a resume, an interruption, a setting without effect, a skipped step."""

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
    charged_flops: float | None = None
    flops: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunEnded:
    """Last record of a finished run.

    ``charged_flops`` and ``flops`` are sums over its stages except pretrain: the base is the start of every method, and
    several runs share it.
    """

    kind: ClassVar[str] = "run_ended"
    seconds: float
    charged_flops: float | None = None
    flops: dict[str, float] = field(default_factory=dict)


Record = (
    RunStarted
    | StageStarted
    | StepTaken
    | Evaluated
    | MixtureUpdated
    | ModelMeasured
    | TaskMeasured
    | Kept
    | Incident
    | StageEnded
    | RunEnded
)
RECORDS: dict[str, type[Any]] = {cls.kind: cls for cls in get_args(Record)}


class Sink(Protocol):
    """An object that receives the records of a run."""

    def write(self, record: Record) -> None:
        """Receive ``record``."""


def to_json(record: Record, now: float | None = None) -> str:
    """Return the line of ``metrics.jsonl`` for a record, without the newline."""
    body = {"kind": record.kind, "time": time.time() if now is None else now, **asdict(record)}
    return json.dumps(_finite(body), separators=(",", ":"), allow_nan=False)


def from_json(line: str) -> Record | None:
    """Parse a line of ``metrics.jsonl``; return None for an unknown kind.

    Numbers that were written as ``null`` are read as NaN, so tables keep their shape.

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
    """Yield the records of a ``metrics.jsonl`` in order, without incomplete and unreadable lines."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = from_json(line)
            except ValueError:
                continue
            if record is not None:
                yield record


def recorded_corpus(records: Iterable[Record]) -> str | None:
    """Return the fingerprint of the corpus of a run; None if the run recorded none."""
    return next((record.environment.get("corpus") for record in records if isinstance(record, RunStarted)), None)


def flops_of_stages(records: Iterable[Record]) -> FlopCounts:
    """Return the operations of the stages that have ended, without those of the stage pretrain."""
    ended = (record for record in records if isinstance(record, StageEnded) and record.stage != "pretrain")
    return sum((FlopCounts.of(record.flops) for record in ended), FlopCounts())


class JsonlSink:
    """Append records to a ``metrics.jsonl`` and flush each line.

    An incomplete last line, for instance after a full disk, is removed first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._file = open_to_append(path)

    def write(self, record: Record) -> None:
        """Append ``record``."""
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    @property
    def size(self) -> int:
        """Bytes written so far: a checkpoint stores them, and a resume truncates the file to them."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
    """Return ``value`` if it has the type ``hint``, with floats that are finite or NaN; else raise TypeError."""
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
            raise OverflowError("expected an integer of 64 bits")
        return value
    raise TypeError(f"expected {hint}, got {type(value).__name__}")


def _float(value: Any) -> float:
    if value is None:
        return math.nan
    if type(value) not in {int, float}:
        raise TypeError(f"expected a number, got {type(value).__name__}")
    number = float(value)
    return number if math.isfinite(number) else math.nan
