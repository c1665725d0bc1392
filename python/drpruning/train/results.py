"""What came of a step: read and recorded in the course of the next one, so that no step waits for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drpruning.pruning.sizes import expected_sparsity_tensor, scheduled_sparsity
from drpruning.records import Incident, StepTaken
from drpruning.train.engine import Engine
from drpruning.train.going_back import go_back
from drpruning.train.meter import Measured, StepMeter
from drpruning.train.optimizer import NarrowAdamW
from drpruning.train.state import StageState


@dataclass(frozen=True)
class Step:
    """A step that was told to the device.

    Args:
        number: Steps of the stage, this one included.
        tokens: Tokens of the stage, this step's included.
        batch: Number of its batch in the sampler's stream.
        learning_rate: Of the weights.
        measured: What came of it, on its way.
    """

    number: int
    tokens: int
    batch: int
    learning_rate: float
    measured: Measured


class Results:
    """Sends what comes of the steps of a stage to the host, and settles it there when it has arrived.

    Args:
        stage: The stage under way.
        engine: What it runs on.
        meter: Measures its steps.
    """

    def __init__(self, stage: StageState, engine: Engine, meter: StepMeter) -> None:
        self.stage, self.engine, self.meter = stage, engine, meter
        self._last: Step | None = None
        self._reported_failure = False

    def send(self, numbers: Tensor, learning_rate: float) -> None:
        """Takes note of the step that ``stage`` now counts as taken.

        Args:
            numbers: Its loss, the objective, and the norms of the weights' and the gates' gradient: float64 [4].
            learning_rate: Of the weights.
        """
        masked = self.stage.masked
        if masked is not None and masked.gates:
            where = [masked.num_missed_units()[None], expected_sparsity_tensor(masked), *masked.multipliers.values()]
            numbers = torch.cat([numbers, *(each.detach().double() for each in where)])
        self._last = Step(
            number=self.stage.step,
            tokens=self.stage.tokens,
            batch=self.stage.sampler.step - 1,
            learning_rate=learning_rate,
            measured=self.meter.send(numbers),
        )

    def settle(self) -> bool:
        """Records the last step that was sent, if that is not done.

        Returns:
            True; False where too many steps in a row had no finite gradient and the stage went back to its newest
            checkpoint instead.
        """
        step, self._last = self._last, None
        if step is None:
            return True
        stage, sink = self.stage, self.engine.sink
        self.engine.ranks.mark()  # now this thread waits for the device
        loss, objective, grad_norm, gates_norm, *of_masks = step.measured.numbers()
        if taken := math.isfinite(loss + objective + grad_norm + gates_norm):
            stage.skipped.clear()
        else:
            stage.skipped.append(step.batch)
            if isinstance(stage.optimizer, NarrowAdamW):
                stage.optimizer.uncount()
        self._report_failure_to_compile()
        record = self._record(step, loss, objective, grad_norm, of_masks)
        sink.write(record)
        if taken:
            return True
        detail = f"batch {step.batch}: loss {loss:g}, gradient norm {grad_norm:g}"
        sink.write(Incident(what="skipped a step", detail=detail, stage=stage.name, step=step.number))
        if len(stage.skipped) < self.engine.training.skip_limit and step.number < stage.settings.steps:
            return True
        why = f"the gradient was not finite in {len(stage.skipped)} steps up to {step.number}"
        stage.optimizer.zero_grad(set_to_none=True)
        go_back(stage, self.engine, why, drawn=step.batch + 1)
        self.meter.pause()
        return False

    def _report_failure_to_compile(self) -> None:
        """Write, once in a stage, why the optimizer's updates are not compiled."""
        why = self.stage.optimizer.failure if isinstance(self.stage.optimizer, NarrowAdamW) else None
        if why is not None and not self._reported_failure:
            detail = f"updates run uncompiled, with the same result and more memory traffic: {why}"
            self.engine.sink.write(Incident(what="optimizer not compiled", detail=detail, stage=self.stage.name))
            self._reported_failure = True

    def _record(self, step: Step, loss: float, objective: float, grad_norm: float, of_masks: list[float]) -> StepTaken:
        """The step's numbers, what the meter saw, and where the masks were after it."""
        stage, masked = self.stage, self.stage.masked
        expected, multipliers = None, None
        if masked is not None:
            kinds = list(masked.gates)
            left_out, sparsity, pairs = of_masks[:1], of_masks[1 : len(kinds) + 1], of_masks[len(kinds) + 1 :]
            assert not any(left_out), f"{left_out} open units were left out of a step"
            expected = dict(zip(kinds, sparsity, strict=True))
            multipliers = dict(zip(kinds, map(list, zip(pairs[::2], pairs[1::2], strict=True)), strict=True))
        return StepTaken(
            stage=stage.name,
            step=step.number,
            tokens=step.tokens,
            skipped=bool(stage.skipped),
            loss=loss,
            objective=None if stage.distiller is None else objective,  # else it is the loss
            learning_rate=step.learning_rate,
            grad_norm=grad_norm,
            expected=expected,
            wanted=None if masked is None else scheduled_sparsity(masked, step.number),
            multipliers=multipliers,
            **self.meter.fields(step.measured, stage.settings.batch_size * stage.sampler.seq_len, expected),
        )
