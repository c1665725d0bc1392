"""The training loop: one function, in the order in which things happen, for all stages."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drpruning.config import TrainingConfig
from drpruning.errors import SolverError
from drpruning.pruning import parameter_count
from drpruning.records import Evaluated, Sink, StageEnded, StepTaken
from drpruning.reweight import Observation
from drpruning.torch import to_device
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.evaluate import Evaluator
from drpruning.train.losses import token_losses
from drpruning.train.meter import StepMeter
from drpruning.train.optim import learning_rate, learning_rates, set_learning_rate, weights_of
from drpruning.train.optimizer import widen
from drpruning.train.state import StageState


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop, and everything is saved
    """The run was asked to stop; a checkpoint is complete."""


@dataclass(frozen=True)
class Engine:
    """What the loop works with and does not change: device, precision, where records and checkpoints go."""

    device: torch.device
    training: TrainingConfig
    seed: int
    evaluator: Evaluator
    sink: Sink
    checkpoints: Checkpoints
    written: Callable[[], int]
    stop: Callable[[], bool]

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        bfloat16 = self.training.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16)


def run_stage(stage: StageState, engine: Engine) -> None:
    """Takes the steps of a stage that are left.

    One step: next batch, forward and backward over its micro-batches, constraint, optimizer (weights and gates down,
    multipliers up), and, when they are due, evaluation with a new mixture, and a checkpoint. All randomness of a step
    is a function of (seed, stage, step), so that a resumed run takes the same steps.

    Raises:
        Interrupted: ``engine.stop()`` became true; the step was finished and a checkpoint written.
        SolverError: The gradient of a step is not finite; the step is not taken.
    """
    settings, masked = stage.settings, stage.masked
    tokens_per_step = settings.batch_size * stage.sampler.seq_len
    micro = engine.training.micro_batch_size or settings.batch_size
    clipped = weights_of(stage.optimizer)
    batches = to_device(stage.sampler, engine.device)
    stage.model.train()

    if stage.step == 0:
        evaluate_and_reweight(stage, engine)

    meter = StepMeter(stage, engine.device, dtype=engine.training.dtype, peak_tflops=engine.training.peak_tflops)
    while not stage.finished:
        started = time.perf_counter()
        rate = learning_rate(settings, stage.step)
        set_learning_rate(stage.optimizer, rate)
        torch.manual_seed(step_seed(engine.seed, stage.name, stage.step))
        batch = meter.next_batch(batches)

        if masked is not None:
            masked.sample_masks()
        means = torch.zeros(2, device=engine.device)  # of the loss, and of what is descended on
        for rows in batch.split(micro):
            with engine.autocast():
                losses_BT, objective_BT = forward(stage, rows)
            share = objective_BT.sum() / (settings.batch_size * losses_BT.shape[1])
            share.backward()
            means += torch.stack(
                [losses_BT.detach().sum() / (settings.batch_size * losses_BT.shape[1]), share.detach()]
            )
            meter.add(losses_BT)
        if masked is not None:
            masked.constraint(stage.step).backward()

        norm = torch.nn.utils.clip_grad_norm_(clipped, engine.training.clip)
        mean_loss, reached, grad_norm = meter.read(*means, norm)
        if not math.isfinite(grad_norm):
            raise SolverError(
                f"the gradient of step {stage.step} of the {stage.name} stage is not finite (loss {mean_loss:g})",
                f"Lower {stage.name}.learning_rate and start again; what was saved before is as it was.",
            )
        stage.optimizer.step()
        stage.optimizer.zero_grad(set_to_none=True)
        stage.step += 1
        stage.tokens += tokens_per_step
        numbers = {"loss": mean_loss, "objective": reached, "learning_rate": rate, "grad_norm": grad_norm}
        engine.sink.write(step_record(stage, meter, numbers))

        evaluating = stage.step % settings.evaluate_every == 0 or stage.finished
        if evaluating:
            evaluate_and_reweight(stage, engine)
        stage.seconds += time.perf_counter() - started

        stopping = engine.stop()
        saving = stopping or stage.finished or stage.step % engine.training.checkpoint_every == 0
        if saving:
            save(stage, engine)
        if stopping:
            raise Interrupted
        if evaluating or saving:
            meter.pause()

    finish(stage, engine)


def forward(stage: StageState, rows_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each next token, and what the step descends on: the same, unless the unpruned model teaches as well."""
    if stage.distiller is None:
        losses_BT = token_losses(stage.model, rows_BT)
        return losses_BT, losses_BT
    taught = stage.distiller.losses(stage.model, rows_BT)
    return taught.losses, taught.objective


def evaluate_and_reweight(stage: StageState, engine: Engine) -> None:
    """Measures the held-out losses and lets the strategy choose the weights from the next batch on."""
    losses = engine.evaluator.losses(stage.model, engine.autocast())
    tokens_per_step = stage.settings.batch_size * stage.sampler.seq_len
    observed = Observation(
        step=stage.step,
        tokens=stage.tokens,
        params=parameters_in_use(stage),
        losses=losses,
        final_tokens=stage.settings.steps * tokens_per_step,
        final_params=final_parameters(stage),
        domain_tokens=domain_tokens(stage),
        consumed=stage.sampler.tokens,
        learning_rates=learning_rates(stage.settings, tokens_per_step),
    )
    stage.mixture, update = stage.strategy.update(stage.mixture, observed)
    stage.set_weights(update.weights)
    engine.sink.write(
        Evaluated(
            stage=stage.name,
            step=stage.step,
            tokens=stage.tokens,
            parameters=observed.params,
            losses=losses,
            weights=update.weights,
            reference_ratio=update.reference_ratio,
            reference_loss=update.reference_loss,
            excess_loss=update.excess_loss,
            predicted_loss=update.predicted_loss,
            predicted_band=update.predicted_band,
            divergence=update.divergence,
            status=update.status,
            bounded=list(update.bounded),
            average_weights=update.average_weights,
            epochs=stage.sampler.epochs,
        )
    )


def save(stage: StageState, engine: Engine) -> None:
    """Writes a checkpoint of the stage, with the length of the records so far."""
    state = {"stage": stage.state_dict(), "records": engine.written()}
    engine.checkpoints.save(stage.name, stage.step, stage.tensors(), state)


def finish(stage: StageState, engine: Engine) -> None:
    """Ends a stage that has taken all its steps: the weights are float32 from here on, whatever they were kept in."""
    widen(stage.model if stage.masked is None else stage.masked.model, stage.optimizer)
    engine.sink.write(
        StageEnded(stage=stage.name, steps=stage.step, tokens=stage.tokens, seconds=round(stage.seconds, 3))
    )


def parameters_in_use(stage: StageState) -> float:
    """Parameters of the model as it is now; under masks the expected number of open ones."""
    if stage.masked is not None:
        return stage.masked.expected_parameters()
    return float(count_parameters(stage.model))


def final_parameters(stage: StageState) -> float:
    """Parameters at the end of the stage: the target's in the prune stage, unchanged elsewhere."""
    if stage.masked is not None:
        return float(parameter_count(stage.masked.model.config, stage.masked.target))
    return float(count_parameters(stage.model))


def domain_tokens(stage: StageState) -> dict[str, int]:
    """Training tokens of each domain of the corpus, once through: whole rows."""
    seq_len = stage.sampler.seq_len
    return {domain: rows * seq_len for domain, rows in stage.sampler.corpus.num_rows(seq_len).items()}


def count_parameters(model: torch.nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def step_seed(seed: int, stage: str, step: int) -> int:
    """A 63-bit seed for one step; equal inputs give equal seeds on every platform."""
    digest = hashlib.blake2b(f"{seed}/{stage}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_record(stage: StageState, meter: StepMeter, numbers: dict[str, Any]) -> StepTaken:
    """The record of the step just taken: ``numbers``, what the meter saw, and where the masks are."""
    masked = stage.masked
    if stage.distiller is None:
        numbers = {**numbers, "objective": None}  # it is the loss
    expected = None if masked is None else masked.expected_sparsity()
    return StepTaken(
        stage=stage.name,
        step=stage.step,
        tokens=stage.tokens,
        expected=expected,
        wanted=None if masked is None else masked.wanted_sparsity(stage.step),
        multipliers=None if masked is None else {kind: pair.tolist() for kind, pair in masked.multipliers.items()},
        **numbers,
        **meter.fields(stage.settings.batch_size * stage.sampler.seq_len, expected),
    )
