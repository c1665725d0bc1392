"""Schedules in files: read from records or YAML, written for this trainer and for others.

The YAML that is read and written::

    unit: step                  # or tokens
    stages:
      prune:
      - {at: 0, weights: {web: 0.8, code: 0.2}}
      - {at: 400, weights: {web: 0.6, code: 0.4}}
      continue:
      - {at: 0, weights: {web: 0.5, code: 0.5}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError
from drpruning.files import write_text
from drpruning.inputs import read_yaml, shown
from drpruning.mixture.strategies.schedule import Schedule, ScheduleChange, ScheduleSpan, Unit
from drpruning.records import Evaluated, MixtureUpdated, read_records
from drpruning.run_folder import RunFolder

NOT_REPLAYED = "pretrain"
"""The stage that trains the base model; its mixture is a separate setting."""


def read_schedule(path: str | Path, unit: Unit = "step") -> Schedule:
    """Read the weights that a run used, or those in a file.

    Args:
        path: A run folder, its ``metrics.jsonl``, or a YAML file as the module describes it.
        unit: Unit of the changes from a run; a YAML file contains its unit.

    Raises:
        ConfigError: The file does not exist, is none of these, or holds no mixture.
        WeightError: Weights are not usable.
    """
    path = Path(path)
    file = RunFolder(path).metrics if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"there is no schedule in {path}", "Give a run folder, a metrics.jsonl, or a YAML file.")
    if file.suffix == ".jsonl":
        return _from_records(file, unit)
    return parse_schedule(read_yaml(file), str(file))


def parse_schedule(body: Any, where: str = "the schedule") -> Schedule:
    """Build a schedule from plain data: the mapping the module describes, or the list of changes of a single stage.

    Raises:
        ConfigError: The data has another shape.
        WeightError: Weights are not usable.
    """
    if isinstance(body, Sequence) and not isinstance(body, str):
        body = {"stages": {"stage": body}}
    if not isinstance(body, Mapping) or not isinstance(body.get("stages"), Mapping) or not body["stages"]:
        raise ConfigError(f"{where} is not a schedule: it needs `stages`, from name to a list of changes")
    if unknown := sorted(map(str, set(body) - {"unit", "stages"})):
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}; it can have unit and stages")
    stages = {str(name): changes for name, changes in body["stages"].items()}
    for name, changes in stages.items():
        if changes is not None and (not isinstance(changes, Sequence) or isinstance(changes, str)):
            raise ConfigError(f"{where}: stage {shown(name)} is {shown(changes)}; expected a list of changes")
    return Schedule(stages=stages, unit=body.get("unit", "step"))


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Write the schedule as YAML that :func:`read_schedule` reads back exactly."""
    import yaml  # noqa: PLC0415

    stages = {
        name: [{"at": change.at, "weights": dict(change.weights)} for change in changes]
        for name, changes in (schedule.stages or {}).items()
    }
    text = yaml.safe_dump({"unit": schedule.unit, "stages": stages}, sort_keys=False, allow_unicode=True)
    write_text(path, text)


def merge_spans(spans: Sequence[ScheduleSpan], max_spans: int) -> list[ScheduleSpan]:
    """Merge spans into at most ``max_spans``, for trainers that must be restarted to change a mixture.

    The merged spans have equal lengths, and each has the mean of the weights over its length. So the text that is drawn
    of each domain in total stays the same.

    Raises:
        ConfigError: There is no span, or ``max_spans`` is below 1.
    """
    if not spans or max_spans < 1:
        raise ConfigError(f"expected at least 1 span and max_spans of at least 1, got {len(spans)} and {max_spans}")
    if len(spans) <= max_spans:
        return list(spans)
    start, stop = spans[0].start, spans[-1].stop
    edges = [start + (stop - start) * k / max_spans for k in range(max_spans)] + [stop]
    merged = []
    for low, high in pairwise(edges):
        shares = [max(0.0, min(span.stop, high) - max(span.start, low)) / (high - low) for span in spans]
        weights = {
            domain: sum(share * span.weights[domain] for share, span in zip(shares, spans, strict=True))
            for domain in spans[0].weights
        }
        merged.append(ScheduleSpan(low, high, weights))
    return merged


def megatron_blends(spans: Sequence[ScheduleSpan], prefixes: Mapping[str, str | Sequence[str]]) -> list[str]:
    """Return, for each span, the arguments of Megatron's ``--data-path``: weight, prefix, weight, prefix, ...

    Args:
        spans: As :meth:`Schedule.spans` or :func:`merge_spans` gives them.
        prefixes: For each domain its ``.bin``/``.idx`` path without ending. Of several, all get the domain's weight in
            equal parts. A domain of weight 0 is left out, as Megatron refuses a zero.

    Raises:
        ConfigError: A domain has no prefix.

    Example:
        >>> spans = Schedule.of([(0, {"web": 0.75, "code": 0.25}), (50, {"web": 0.5, "code": 0.5})]).spans(100)
        >>> for line in megatron_blends(spans, {"web": "data/web", "code": ["data/py", "data/c"]}):
        ...     print(line)
        0.75 data/web 0.125 data/py 0.125 data/c
        0.5 data/web 0.25 data/py 0.25 data/c
    """
    lines = []
    for span in spans:
        words = []
        for domain, weight in span.weights.items():
            if domain not in prefixes:
                raise ConfigError(f'domain "{domain}" has no prefix; there are some for {", ".join(prefixes)}')
            given = prefixes[domain]
            paths = [given] if isinstance(given, str) else list(given)
            words += [f"{weight / len(paths):.9g} {path}" for path in paths if weight > 0]
        lines.append(" ".join(words))
    return lines


def _from_records(file: Path, unit: Unit) -> Schedule:
    stages: dict[str, dict[float, ScheduleChange]] = {}
    for record in read_records(file):
        if isinstance(record, Evaluated | MixtureUpdated) and record.stage != NOT_REPLAYED:
            at = record.step if unit == "step" else record.tokens
            stages.setdefault(record.stage, {})[at] = ScheduleChange(
                at, record.weights
            )  # a resumed run may say it twice
    if not stages:
        raise ConfigError(f"{file} holds no evaluation, so there is no mixture to replay")
    return Schedule(stages={name: list(changes.values()) for name, changes in stages.items()}, unit=unit)
