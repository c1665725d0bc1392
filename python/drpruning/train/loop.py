"""The training loop: one function, in the order in which things happen, for all stages."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from drpruning.config import PruneConfig
from drpruning.mixture import Observation
from drpruning.pruning import parameter_count
from drpruning.pruning.sizes import expected_parameters
from drpruning.records import Evaluated, StageEnded
from drpruning.torch import to_device
from drpruning.train.engine import Engine
from drpruning.train.going_back import go_back
from drpruning.train.losses import token_losses
from drpruning.train.meter import StepMeter
from drpruning.train.optim import learning_rates, parameters_of, reach_of_gates, set_learning_rates
from drpruning.train.optimizer import widen
from drpruning.train.results import Results
from drpruning.train.sharding import average_between_copies, average_gradients, clip, norm_of
from drpruning.train.state import StageState


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop, and everything is saved
    """The run was asked to stop; a checkpoint is complete."""


def run_stage(stage: StageState, engine: Engine) -> None:
    """Takes the steps of a stage that are left.

    One step: next batch, forward and backward over its micro-batches, constraint, optimizer (weights and gates down,
    multipliers up), and, when they are due, evaluation with a new mixture, and a checkpoint. All randomness of a step
    is a function of (seed, stage, step), so that a resumed run takes the same steps. A step whose loss or gradient is
    not finite changes nothing but the schedule and the place in the data.

    No step waits for the device: what came of a step is read and recorded in the course of the next one, or before an
    evaluation or a checkpoint.

    Raises:
        Interrupted: ``engine.stop()`` became true; the step was finished and a checkpoint written.
        SolverError: ``training.skip_limit`` steps in a row had no finite gradient, and going back did not help.
        DiskError: A checkpoint cannot be written.
    """
    settings, training, scoring = stage.settings, engine.training, engine.scoring
    batches = to_device(stage.sampler, engine.device)
    stage.model.train()

    if stage.step == 0:
        evaluate_and_update_mixture(stage, engine)

    meter = StepMeter(stage, engine.device, dtype=training.dtype, peak_tflops=training.peak_tflops, ranks=engine.ranks)
    results = Results(stage, engine, meter)
    while not stage.finished:
        started = time.perf_counter()
        if not take_step(stage, engine, meter, results, batches):
            continue

        scored = scoring is not None and scoring.due(stage)
        evaluating = stage.step % settings.evaluate_every == 0 or stage.finished
        if (evaluating or scored) and not results.settle():
            continue
        if evaluating and not evaluate_and_update_mixture(stage, engine):
            meter.pause()
            continue
        if scoring is not None and scored:
            scoring.in_training(stage, engine.sink)
        stage.seconds += time.perf_counter() - started

        stopping = engine.ranks.any(engine.stop())
        saving = stopping or stage.finished or stage.step % training.checkpoint_every == 0
        if saving and results.settle():
            save(stage, engine)
        if stopping:
            engine.checkpoints.wait()
            raise Interrupted
        if evaluating or scored or saving:
            meter.pause()

    finish(stage, engine)


def take_step(
    stage: StageState, engine: Engine, meter: StepMeter, results: Results, batches: Iterator[dict[str, Any]]
) -> bool:
    """Tells the device a step, and records the one before. Does not wait for what it tells.

    Returns:
        True; False where the step before was one too many without a finite gradient, and the stage went back instead.
    """
    engine.ranks.mark(f"step {stage.step + 1} of the {stage.name} stage")
    rate = set_learning_rates(stage.optimizer, stage.settings, stage.step)
    torch.manual_seed(step_seed(engine.seed, stage.name, stage.step))
    stage.pass_over()
    batch = meter.next_batch(batches)

    means, norm_of_gates = backward(stage, engine, meter, batch)
    if not results.settle():  # of the step before: the device has this one to work on meanwhile
        return False
    clipped_along = isinstance(stage.settings, PruneConfig) and stage.settings.clip_gates
    along = parameters_of(stage.optimizer, "gates", "multipliers") if clipped_along else []
    norm = clip(parameters_of(stage.optimizer, "weights"), engine.training.clip, along=along)
    numbers = torch.stack([*means, norm, norm_of_gates]).double()
    # Whether to take the step is decided where the numbers are: where this is one, the optimizer changes nothing
    stage.optimizer.found_inf = numbers.sum().isfinite().logical_not().float()  # type: ignore[attr-defined]
    stage.optimizer.step()
    if stage.masked is not None:
        stage.masked.clamp_gates()
    stage.optimizer.zero_grad(set_to_none=True)
    stage.step += 1
    stage.tokens += stage.settings.batch_size * stage.sampler.seq_len
    results.send(numbers, rate)
    return True


def backward(stage: StageState, engine: Engine, meter: StepMeter, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a step under masks drawn for it, from this rank's rows in micro-batches, and of the constraint.

    Args:
        stage: The stage under way.
        engine: What it runs on.
        meter: Takes note of the losses.
        batch: This rank's rows, int64 [rows, seq_len].

    Returns:
        Over all ranks' rows the mean loss and the mean of what is descended on, [2], and the norm of the gates'
        gradient, a scalar; on the device.
    """
    masked, ranks = stage.masked, engine.ranks
    if masked is not None:
        next_seed = step_seed(engine.seed, stage.name, stage.step + 1)
        next_generator = torch.Generator().manual_seed(next_seed)  # as torch's own generator will be
        masked.sample_masks(next_generator=next_generator, max_gate_step=reach_of_gates(stage.optimizer))
    means = torch.zeros(2, device=engine.device)
    parts = batch.split(engine.training.micro_batch_size or len(batch))
    for number, rows in enumerate(parts, 1):
        ranks.mark()
        average_between_copies(stage.model, number == len(parts))
        with engine.autocast():
            losses_BT, objective_BT = forward(stage, rows)
        tokens = stage.settings.batch_size * losses_BT.shape[1]
        share = objective_BT.sum() / tokens
        (share * ranks.world_size).backward()  # gradients are averaged over the ranks
        means += torch.stack([losses_BT.detach().sum() / tokens, share.detach()])
        meter.add(losses_BT)
    norm_of_gates = torch.zeros((), device=engine.device)
    if masked is not None and masked.gates:
        average_gradients(masked.gates.values(), ranks)
        masked.constraint(stage.step).backward()
        norm_of_gates = norm_of(masked.gates.values())
    return ranks.sum(means), norm_of_gates


def forward(stage: StageState, rows_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each next token, and what the step descends on: the same, unless the unpruned model teaches as well."""
    if stage.distiller is None:
        losses_BT = token_losses(stage.model, rows_BT)
        return losses_BT, losses_BT
    taught = stage.distiller.losses(stage.model, rows_BT)
    return taught.losses, taught.objective


def evaluate_and_update_mixture(stage: StageState, engine: Engine) -> bool:
    """Measures the held-out losses and lets the strategy choose the weights from the next batch on.

    Returns:
        True; False where a loss is not finite and the stage went back to its newest checkpoint instead.
    """
    engine.ranks.mark(f"the evaluation after step {stage.step} of the {stage.name} stage")
    if stage.masked is not None:
        replicated = {
            **stage.masked.gates,
            **{f"{kind} multipliers": each for kind, each in stage.masked.multipliers.items()},
        }
        engine.ranks.check_equal(replicated, f"gates and multipliers after step {stage.step} of the {stage.name} stage")
    measured = engine.evaluator.measure(stage.model, engine.autocast(), engine.ranks)
    losses = measured.means()
    if odd := [domain for domain, loss in losses.items() if not math.isfinite(loss)]:
        why = f"the held-out loss of {odd[0]!r} after step {stage.step} is not finite"
        go_back(stage, engine, why, drawn=stage.sampler.step)
        return False
    if stage.paired and stage.reference is None:
        stage.reference = measured
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
        standard_errors=measured.standard_errors(stage.reference),
        learning_rates=learning_rates(stage.settings, tokens_per_step),
    )
    stage.mixture, update = engine.ranks.agree(lambda: stage.strategy.update(stage.mixture, observed))
    stage.set_weights(update.weights)
    engine.sink.write(
        Evaluated(
            stage=stage.name,
            step=stage.step,
            tokens=stage.tokens,
            parameters=observed.params,
            losses=losses,
            standard_errors=dict(observed.standard_errors or {}),
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
    return True


def save(stage: StageState, engine: Engine) -> None:
    """Writes a checkpoint of the stage, with the length of the records so far."""
    engine.ranks.mark(f"the checkpoint of step {stage.step} of the {stage.name} stage")
    state = {"stage": stage.state_dict(), "records": engine.written()}
    engine.checkpoints.save(stage.name, stage.step, stage.tensors(), state)
    if stage.finished:
        engine.checkpoints.finish()


def finish(stage: StageState, engine: Engine) -> None:
    """Ends a stage that has taken all its steps: the weights are float32 from here on, whatever they were kept in."""
    engine.ranks.mark(f"the end of the {stage.name} stage")
    widen(stage.model if stage.masked is None else stage.masked.model, stage.optimizer)
    engine.sink.write(
        StageEnded(stage=stage.name, steps=stage.step, tokens=stage.tokens, seconds=round(stage.seconds, 3))
    )


def parameters_in_use(stage: StageState) -> float:
    """Parameters of the model as it is now; under masks the expected number of open ones."""
    if stage.masked is not None:
        return expected_parameters(stage.masked)
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
