"""Rollback to the newest checkpoint when gradients stay non-finite, and the batches to skip from there on.

The batches are kept next to the checkpoints, in ``STAGE-skipped-batches.json``, so that a run that is killed after a
rollback takes the same steps when it resumes. PaLM was trained past its loss spikes by hand in this way (Chowdhery et
al. 2022, section 5.1): the same batches did not fail again from another state.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from drpruning.errors import SolverError, StateError
from drpruning.files import write_text
from drpruning.records import Incident
from drpruning.train.checkpoint import Checkpoint
from drpruning.train.context import TrainContext
from drpruning.train.state import StageState

MAX_ROLLBACKS = 2
"""To one checkpoint: first without the batches that failed, then without any batch drawn since."""


class RolledBack(Exception):  # noqa: N818 - not an error: training continues
    """The stage was restored to its newest checkpoint; the loop continues from there."""


@dataclass
class SkippedBatches:
    """Batches of a stage that are not trained on.

    Args:
        batches: Their indices in the sampler's stream, ascending.
        rollbacks: For each rollback the step of its checkpoint, and the reason.
    """

    batches: list[int] = field(default_factory=list)
    rollbacks: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> SkippedBatches:
        """Read ``path``; nothing is skipped where it does not exist.

        Raises:
            StateError: It is damaged.
        """
        if not path.is_file():
            return cls()
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                batches=[int(batch) for batch in body["batches"]],
                rollbacks=[(int(step), str(reason)) for step, reason in body["rollbacks"]],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StateError(f"{path} is damaged: {error}", "Start again with another --out.") from error


def restore_checkpoint(stage: StageState, context: TrainContext, checkpoint: Checkpoint) -> None:
    """Restore the stage and the records to ``checkpoint``; batches of earlier rollbacks are skipped from there on."""
    context.ranks.mark(f"the resume of the {stage.name} stage at step {checkpoint.step}")
    tensors = stage.tensors()
    context.checkpoints.restore(checkpoint, tensors)
    stage.load_tensors(tensors)
    stage.load_state_dict(checkpoint.state["stage"])
    context.truncate_records(checkpoint.state["records"])
    path = context.checkpoints.skipped_batches_file(stage.name)
    skipped = context.ranks.agree(lambda: SkippedBatches.read(path))
    stage.bad_batches = frozenset(skipped.batches)
    for step, reason in skipped.rollbacks:
        if step >= checkpoint.step:  # earlier ones are in the records up to the checkpoint
            context.sink.write(Incident(what="rolled back", detail=reason, stage=stage.name, step=step))


def roll_back(stage: StageState, context: TrainContext, reason: str, *, num_batches: int) -> NoReturn:
    """Restore the newest checkpoint, from where the batches of non-finite steps, or all drawn since, are skipped.

    Args:
        stage: The stage.
        context: The run.
        reason: The reason, as a clause.
        num_batches: Batches drawn in the stage so far.

    Raises:
        RolledBack: Always, unless the rollback fails.
        SolverError: There is no checkpoint, or :data:`MAX_ROLLBACKS` to it did not help.
    """
    stage.optimizer.zero_grad(set_to_none=True)
    checkpoint, _ = context.checkpoints.newest(stage.name)
    advice = f"Lower {stage.name}.learning_rate and start again with another --out."
    if checkpoint is None:
        raise SolverError(f"{reason} of the {stage.name} stage, which has no checkpoint to roll back to", advice)
    path = context.checkpoints.skipped_batches_file(stage.name)
    skipped = context.ranks.agree(lambda: SkippedBatches.read(path))
    rollbacks = sum(step == checkpoint.step for step, _ in skipped.rollbacks)
    if rollbacks == MAX_ROLLBACKS:
        raise SolverError(
            f"{reason} of the {stage.name} stage, after {rollbacks} rollbacks to step {checkpoint.step}", advice
        )
    since = checkpoint.state["stage"]["sampler"]["step"]
    failed = stage.nonfinite_batches if rollbacks == 0 else []
    batches = list(failed) or list(range(since, num_batches))
    skipped.batches = sorted({*skipped.batches, *batches})
    skipped.rollbacks.append((checkpoint.step, f"{reason}; batches {_ranges(batches)} are skipped"))
    context.ranks.agree(lambda: write_text(path, json.dumps(asdict(skipped))))
    restore_checkpoint(stage, context, checkpoint)
    raise RolledBack(f"{reason}; rolled back to step {checkpoint.step} of the {stage.name} stage")


def _ranges(numbers: list[int]) -> str:
    """Return ascending integers as ranges.

    >>> _ranges([3, 4, 5, 9])
    '3 to 5, 9'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges)
