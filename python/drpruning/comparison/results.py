"""The results of a comparison as one small file of plain data, ``results.json``.

All tables are computed from this file. Losses are held-out losses in nats per token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from drpruning.comparison.methods import Method
from drpruning.comparison.runs import DOCUMENTS, Comparison, Equal, Job, read_model, read_stored
from drpruning.errors import CorpusError, StateError
from drpruning.files import write_text
from drpruning.inputs import expected_value
from drpruning.mixture.static import drawn_tokens
from drpruning.records import (
    Evaluated,
    MixtureUpdated,
    ModelMeasured,
    Record,
    RunEnded,
    RunStarted,
    StageEnded,
    StageStarted,
    TaskMeasured,
)

FORMAT = 1
RESULTS = "results.json"


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DocumentSums(_Data):
    """For each held-out document of a domain, the number of predicted tokens and their summed loss in nats.

    ``groups`` has the group of each document, the unit of standard errors; None: each document is a group.
    """

    tokens: list[int]
    nats: list[float]
    groups: list[int] | None = None

    @classmethod
    def of(cls, tokens: NDArray[np.int64], nats: NDArray[np.float64], groups: NDArray[np.int64] | None) -> DocumentSums:
        """Return the sums of the documents with at least one predicted token, nats rounded to six decimals."""
        kept = tokens > 0
        return cls(
            tokens=tokens[kept].tolist(),
            nats=[round(value, 6) for value in nats[kept].tolist()],
            groups=None if groups is None else groups[kept].tolist(),
        )


class Point(_Data):
    """One evaluation. ``tokens`` counts from the start of the stage; ``weights`` are the mean up to the next one."""

    stage: str
    tokens: int
    losses: dict[str, float]
    weights: dict[str, float]


class RunResult(_Data):
    """One finished run; a baseline model appears once for each seed, without points.

    ``pruned`` and ``recovered`` are losses by domain; ``pruned`` is missing if nothing was pruned. ``drawn`` are the
    tokens drawn from each domain in all stages but pretrain; empty for a baseline model. ``flops`` are those of the
    same stages by part (:class:`drpruning.flops.FlopCounts`), ``charged_flops`` the sum of the charged parts.
    ``continue_steps`` are the steps of the stage continue. ``tasks`` has the scores of the final model, by task and
    metric.
    """

    method: str
    seed: int
    parameters: int
    seconds: float
    recovered: dict[str, float]
    pruned: dict[str, float] | None = None
    documents: dict[str, DocumentSums]
    points: list[Point]
    drawn: dict[str, int] = {}
    charged_flops: float | None = None
    flops: dict[str, float] = {}
    continue_steps: int | None = None
    tasks: dict[str, dict[str, float]] = {}


class Results(_Data):
    """A comparison. ``base`` and ``base_documents`` are the unpruned model's, by seed; ``failed`` has reasons by run.

    ``eval_tokens`` are the validation tokens of each domain that points are measured on, ``final_eval_tokens`` the
    test tokens of all other losses; empty in files of older versions. ``primary`` has the primary endpoints of the
    methods file, ``first_primary`` those that were declared before the first run. ``equal`` is what pairs have in
    common: tokens, or charged FLOPs.
    """

    format: int = FORMAT
    name: str
    recipe: dict[str, Any]
    environment: dict[str, str]
    methods: dict[str, Method]
    seeds: list[int]
    domains: list[str]
    reference_ratio: dict[str, float]
    base: dict[int, dict[str, float]]
    base_documents: dict[int, dict[str, DocumentSums]]
    base_parameters: int
    eval_tokens: dict[str, int] = {}
    final_eval_tokens: dict[str, int] = {}
    runs: list[RunResult]
    failed: dict[str, str] = {}
    primary: list[str] = []
    first_primary: list[str] = []
    equal: Equal = "tokens"

    def of(self, method: str) -> list[RunResult]:
        """Return the runs of a method, by seed."""
        return sorted((run for run in self.runs if run.method == method), key=lambda run: run.seed)

    def omitted_seeds(self) -> str:
        """Return a sentence that names the seeds without excess and differences; empty without one."""
        seeds = sorted({run.seed for run in self.runs} - self.base_documents.keys())
        if not seeds:
            return ""
        files = ", ".join(f"bases/seed-{seed}.json" for seed in seeds)
        reason = f"expected {files}, found none" if self.base else "no run measured the unpruned model"
        return f"Excess, differences and marks leave out seed {', '.join(map(str, seeds))}: {reason}."


def collect(comparison: Comparison, failed: Mapping[Job, str]) -> Results:
    """Read the finished runs; one whose losses are not finite is among the failed ones.

    Raises:
        StateError: No run is finished.
        CorpusError: The runs were measured on different corpora, so that their losses do not compare.
    """
    corpora = comparison.recorded_corpora()
    for job, corpus in corpora.items():
        first = next(iter(corpora))
        if corpus != corpora[first]:
            raise CorpusError(
                f"the fingerprint of {first.label}'s corpus is {corpora[first][:16]}, that of {job.label}'s is "
                f"{corpus[:16]}: their losses do not compare",
                f"Remove the run folders in {comparison.folder} of the wrong corpus, then rerun the command.",
            )
    runs, base, base_parameters = [], {}, 0
    reasons = {job.label: reason for job, reason in failed.items()}
    started: RunStarted | None = None
    for job in comparison.jobs():
        if not job.finished:
            continue
        if job.method.model:
            runs += [_baseline_result(job, seed) for seed in comparison.seeds]
            continue
        records = job.records()
        result = _run(job, records)
        if (domain := _not_finite(result)) is not None:
            reasons[job.label] = f"its final model has a loss in the domain {domain!r} that is not finite"
            continue
        started = started or next(record for record in records if isinstance(record, RunStarted))
        for record in records:
            if isinstance(record, ModelMeasured) and record.model == "base":
                base[job.seed] = record.losses
                base_parameters = record.parameters
        runs.append(result)
    if started is None:
        every = "; ".join(dict.fromkeys(reasons.values()))
        raise StateError(f"no run of {comparison.folder} is finished{f': {every}' if every else ''}")
    bases = {seed: comparison.folder / "bases" / f"seed-{seed}.json" for seed in base}
    return Results(
        name=started.name,
        recipe=comparison.plain_recipe.to_dict(),
        environment=started.environment,
        methods=dict(comparison.methods),
        seeds=list(comparison.seeds),
        domains=started.domains,
        reference_ratio=comparison.plain_recipe.reference_ratio,
        base=base,
        base_documents={seed: read_stored(path) for seed, path in bases.items() if path.is_file()},
        base_parameters=base_parameters,
        eval_tokens=started.eval_tokens,
        final_eval_tokens=started.final_eval_tokens,
        runs=runs,
        failed=reasons,
        primary=list(comparison.primary),
        first_primary=comparison.first_primary(),
        equal=comparison.equal,
    )


def write_results(results: Results, folder: Path) -> Path:
    """Write ``results.json``; the same results give the same bytes."""
    file = folder / RESULTS
    write_text(file, json.dumps(results.model_dump(mode="json"), separators=(",", ":"), allow_nan=False) + "\n")
    return file


def read_results(file: Path) -> Results:
    """Read a file of :func:`write_results`.

    Raises:
        StateError: The file is another one, or of another version.
    """
    try:
        results = Results.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise StateError(
            f"{file} has no results of a comparison: {where}: {expected_value(first['msg'])}",
            "Give the results.json that `drpruning compare` wrote.",
        ) from error
    if results.format != FORMAT:
        raise StateError(f"{file} has format {results.format}; this version reads {FORMAT}")
    return results


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Round to five decimals: the file stays small, and no table shows more than three."""
    return {name: round(value, 5) for name, value in values.items()}


def _baseline_result(job: Job, seed: int) -> RunResult:
    """Return the result of a baseline model, the same for each seed, to be paired with the other methods."""
    found = read_model(job)
    assert found is not None
    return RunResult(
        method=job.name,
        seed=seed,
        parameters=found["parameters"],
        seconds=0.0,
        recovered=found["losses"],
        documents=found["documents"],
        points=[],
        tasks=found["tasks"],
    )


def _run(job: Job, records: Sequence[Record]) -> RunResult:
    measured = {record.model: record for record in records if isinstance(record, ModelMeasured)}
    stages = dict.fromkeys(record.stage for record in records if isinstance(record, StageStarted))
    tasks = {
        record.label: record.metrics
        for record in records
        if isinstance(record, TaskMeasured) and record.model == "recovered" and record.stage is None
    }
    ended = next(record for record in reversed(records) if isinstance(record, RunEnded))
    return RunResult(
        method=job.name,
        seed=job.seed,
        parameters=measured["recovered"].parameters,
        seconds=ended.seconds,
        charged_flops=ended.charged_flops,
        flops=ended.flops,
        continue_steps=next(
            record.steps for record in records if isinstance(record, StageEnded) and record.stage == "continue"
        ),
        recovered=measured["recovered"].losses,
        pruned=measured["pruned"].losses if "pruned" in measured else None,
        documents=read_stored(job.folder / DOCUMENTS),
        points=[point for stage in stages if stage != "pretrain" for point in points_of(records, stage)],
        drawn=drawn_tokens(records),
        tasks=tasks,
    )


def _not_finite(run: RunResult) -> str | None:
    """Return the first domain in which a run's final model has a loss that is not finite."""
    return next(
        (
            domain
            for domain, sums in run.documents.items()
            if not np.isfinite([run.recovered[domain], *sums.nats]).all()
        ),
        None,
    )


def points_of(records: Sequence[Record], stage: str) -> list[Point]:
    """Return the evaluations of a stage."""
    updates = {
        record.step: record
        for record in records
        if isinstance(record, Evaluated | MixtureUpdated) and record.stage == stage
    }
    starts = [record.tokens for record in updates.values()]
    stops = [*starts[1:], *(start + 1 for start in starts[-1:])]
    points: list[Point] = []
    parts: dict[str, float] = {}  # weight times tokens since the evaluation
    for record, stop in zip(reversed(updates.values()), reversed(stops), strict=True):
        for domain, weight in record.weights.items():
            parts[domain] = parts.get(domain, 0.0) + weight * (stop - record.tokens)
        if isinstance(record, Evaluated):
            total = sum(parts.values())
            mean = {domain: part / total for domain, part in parts.items()}
            points.append(
                Point(stage=stage, tokens=record.tokens, losses=_rounded(record.losses), weights=_rounded(mean))
            )
            parts = {}
    return points[::-1]
