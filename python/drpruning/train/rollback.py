"""Back to the last checkpoint when the gradient stays non-finite, with the batches that led there passed over.

What to pass over is kept beside the checkpoints, in ``STAGE-passed-over.json``, so that a run killed on its second way
takes the same steps when it goes on. Going back and leaving batches out is what was done by hand for PaLM (Chowdhery
et al. 2022, section 5.1): the same data from another state did not fail again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from drpruning.errors import SolverError, StateError
from drpruning.files import write_text
from drpruning.records import Incident
from drpruning.train.checkpoint import Checkpoint
from drpruning.train.context import Engine
from drpruning.train.state import StageState

TRIES = 2
"""From one checkpoint: first without the batches that failed, then without any batch drawn since."""


@dataclass
class PassedOver:
    """Batches of a stage that are not trained on.

    Args:
        batches: Their numbers in the sampler's stream.
        went_back: For each time the step the run went back to, and why.
    """

    batches: list[int] = field(default_factory=list)
    went_back: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> PassedOver:
        """What ``path`` says; nothing if it is not there.

        Raises:
            StateError: It is damaged.
        """
        if not path.is_file():
            return cls()
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                batches=[int(number) for number in body["batches"]],
                went_back=[(int(step), str(why)) for step, why in body["went_back"]],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(f"{path} is damaged: {error}", "Start again with another --out.") from error


def passed_over_file(folder: Path, stage: str) -> Path:
    """Where the batches of a stage that are passed over are written down."""
    return folder / f"{stage}-passed-over.json"


def take_up(stage: StageState, engine: Engine, checkpoint: Checkpoint) -> None:
    """Puts the stage where it was at ``checkpoint``, the records too, less what is passed over on the way on."""
    engine.ranks.mark(f"the resume of the {stage.name} stage at step {checkpoint.step}")
    tensors = stage.tensors()
    engine.checkpoints.restore(checkpoint, tensors)
    stage.load_tensors(tensors)
    stage.load_state_dict(checkpoint.state["stage"])
    engine.cut_back(checkpoint.state["records"])
    path = passed_over_file(engine.checkpoints.folder, stage.name)
    found = engine.ranks.agree(lambda: PassedOver.read(path))
    stage.passed_over = frozenset(found.batches)
    for step, why in found.went_back:
        if step >= checkpoint.step:  # else it is in the records up to the checkpoint
            engine.sink.write(Incident(what="went back", detail=why, stage=stage.name, step=step))


def go_back(stage: StageState, engine: Engine, why: str, *, drawn: int) -> None:
    """Back to the newest checkpoint, passing over the batches of skipped steps, or all since then.

    Args:
        stage: The stage under way.
        engine: What it runs on.
        why: What happened, as the end of a sentence.
        drawn: Batches drawn up to then.

    Raises:
        SolverError: There is no checkpoint to go back to, or going back to it did not help.
    """
    checkpoint, _ = engine.checkpoints.newest(stage.name)
    advice = f"Lower {stage.name}.learning_rate and start again with another --out."
    if checkpoint is None:
        raise SolverError(f"{why} of the {stage.name} stage, which has no checkpoint yet to go back to", advice)
    path = passed_over_file(engine.checkpoints.folder, stage.name)
    found = engine.ranks.agree(lambda: PassedOver.read(path))
    tries = sum(step == checkpoint.step for step, _ in found.went_back)
    if tries == TRIES:
        raise SolverError(f"{why} of the {stage.name} stage, also after going back to step {checkpoint.step}", advice)
    since = checkpoint.state["stage"]["sampler"]["step"]
    batches = list(stage.skipped) if stage.skipped and tries == 0 else list(range(since, drawn))
    found.batches = sorted({*found.batches, *batches})
    found.went_back.append((checkpoint.step, f"{why}; batches {_spans(batches)} are passed over"))
    engine.ranks.agree(lambda: write_text(path, json.dumps(asdict(found))))
    take_up(stage, engine, checkpoint)


def _spans(numbers: list[int]) -> str:
    """Ascending whole numbers in words.

    >>> _spans([3, 4, 5, 9])
    '3 to 5, 9'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in spans)
