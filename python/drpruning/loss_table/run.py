"""Losses from the records of a run of ``drpruning train``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from drpruning.errors import LossTableError
from drpruning.loss_table.table import Evaluations, listed
from drpruning.records import RECORDS, Evaluated, RunStarted, StageStarted, from_json
from drpruning.scaling import LearningRates


def is_record(line: str) -> bool:
    """Return whether a line is one of ``metrics.jsonl``."""
    try:
        return from_json(line) is not None
    except ValueError:
        return any(f'"kind":"{kind}"' in line for kind in RECORDS)


def read_run(lines: Iterable[tuple[int, str]], found: Evaluations, stage: str | None) -> None:
    """Add the evaluations of ``stage``, the last one that has any if None; unreadable lines are skipped.

    Raises:
        LossTableError: The run has no evaluations, or none in that stage.
    """
    evaluations: dict[str, list[tuple[int, Evaluated]]] = {}
    planned: dict[str, int] = {}
    rates: dict[str, LearningRates] = {}
    for number, text in lines:
        try:
            record = from_json(text)
        except ValueError:
            continue
        match record:
            case RunStarted():
                found.reference_ratio = record.reference_ratio
                found.note_columns(record.domains)
            case StageStarted():
                planned[record.stage] = record.steps * record.tokens_per_step
                if record.learning_rates is not None:
                    with suppress(TypeError, ValueError):  # as other unreadable records
                        rates[record.stage] = LearningRates(**record.learning_rates)
            case Evaluated():
                evaluations.setdefault(record.stage, []).append((number, record))
            case _:
                pass
    if not evaluations:
        raise LossTableError(f"{found.source} holds no evaluation yet")
    chosen = next(reversed(evaluations)) if stage is None else stage
    if chosen not in evaluations:
        raise LossTableError(f"{found.source} has no evaluation in stage {chosen!r}; its stages: {listed(evaluations)}")
    found.final_tokens, found.learning_rates = planned.get(chosen), rates.get(chosen)
    for number, record in evaluations[chosen]:
        where = f"{found.source}, line {number}"
        found.add(
            where,
            record.losses,
            step=record.step,
            tokens=record.tokens,
            params=record.parameters,
            errors=record.standard_errors,
        )
