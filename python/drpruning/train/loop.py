"""The training loop of all stages: one function, in the order of events."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from drpruning.config import PruneConfig
from drpruning.pruning.sizes import evaluated_sizes
from drpruning.records import Incident, StageEnded
from drpruning.torch import to_device
from drpruning.train.calibration import init_gates, measure_of
from drpruning.train.context import TrainContext
from drpruning.train.distributed.fsdp import (
    average_replicated_gradients,
    clip_grad_norm,
    grad_norm,
    set_replica_sync,
)
from drpruning.train.flop_counting import evaluation_flops, importance_flops, step_flops
from drpruning.train.losses import token_losses
from drpruning.train.metrics import StepMeter, mask_metrics
from drpruning.train.optimizers import LowPrecisionAdamW, to_float32
from drpruning.train.optimizers.build import group_parameters, max_gate_step, set_learning_rates
from drpruning.train.rollback import RolledBack, roll_back
from drpruning.train.state import StageState, evaluation_record, step_seed, update_record
from drpruning.train.validation import HeldOutLosses

MUST_BE_FINITE = ("loss", "objective", "grad_norm", "gates_grad_norm")
"""Metrics of a step that decide whether the optimizer applies it."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user requested it, and everything is saved
    """The run stopped on request; its last checkpoint is complete."""


def run_stage(stage: StageState, context: TrainContext) -> None:
    """Run the remaining steps of a stage.

    All randomness of a step is a function of (seed, stage, step), so a resumed run takes the same steps. A step with a
    non-finite loss or gradient changes nothing but the learning rate's schedule and the position in the data.

    No step synchronises with the device: its metrics are copied to the host while the next step is enqueued, and are
    logged one step late, or before an evaluation, an update of the mixture or a checkpoint.

    Raises:
        Interrupted: ``context.stop()`` returned True; the step is finished and its checkpoint written.
        SolverError: ``training.max_skipped_steps`` consecutive steps had non-finite gradients, and a rollback did not
            help.
        DiskError: A checkpoint cannot be written.
    """
    batches = to_device(stage.sampler, context.device)
    stage.model.train()
    if stage.step == 0:
        evaluate(stage, context)
    meter = StepMeter(stage, context)

    while not stage.finished:
        started = time.perf_counter()
        try:
            # ---- one optimizer step
            train_step(stage, context, meter, batches)

            # ---- evaluate: held-out losses and the next mixture, then tasks
            evaluating, updating = stage.evaluation_due, stage.update_due
            scoring = context.task_eval is not None and context.task_eval.due(stage)
            if evaluating or updating or scoring:
                log_step(stage, context, meter)
            if evaluating:
                evaluate(stage, context)
            elif updating:
                update_mixture(stage, context)
            if context.task_eval is not None and scoring:
                context.task_eval.in_training(stage, context.sink)
            stage.seconds += time.perf_counter() - started

            # ---- save
            stopping = context.ranks.any(context.stop())
            saving = stopping or stage.finished or stage.step % context.training.checkpoint_every == 0
            if saving:
                log_step(stage, context, meter)
                save_checkpoint(stage, context)
        except RolledBack:
            meter.restart_clock()
            continue

        if stopping:
            context.checkpoints.wait()
            raise Interrupted
        if evaluating or scoring or saving:
            meter.restart_clock()

    end_stage(stage, context)


def train_step(stage: StageState, context: TrainContext, meter: StepMeter, batches: Iterator[dict[str, Any]]) -> None:
    """Enqueue one optimizer step, and log the step before it, without synchronising with the step enqueued.

    Raises:
        RolledBack: By :func:`log_step`; this step is dropped.
    """
    # ---- score the units again, at the start of a cycle
    if stage.rescoring_due:
        rescore(stage, context)

    # ---- next batch
    context.ranks.mark(f"step {stage.step + 1} of the {stage.name} stage")
    learning_rate = set_learning_rates(stage.optimizer, stage.settings, stage.step)
    torch.manual_seed(step_seed(context.seed, stage.name, stage.step))
    stage.skip_bad_batches()
    with meter.waiting():
        batch = next(batches)

    # ---- forward and backward: the loss, and the constraint on the gates
    metrics = forward_backward(stage, context, batch["tokens"])
    flops = step_flops(stage)

    # ---- log the step before: the device has the work above to do meanwhile
    log_step(stage, context, meter)

    # ---- optimizer: weights and gates descend, multipliers ascend
    with_gates = isinstance(stage.settings, PruneConfig) and stage.settings.clip_gates
    metrics["grad_norm"] = clip_grad_norm(
        group_parameters(stage.optimizer, "weights"),
        context.training.max_grad_norm,
        along=group_parameters(stage.optimizer, "gates", "multipliers") if with_gates else [],
    )
    total = torch.stack([metrics[name] for name in MUST_BE_FINITE]).double().sum()
    stage.optimizer.found_inf = total.isfinite().logical_not().float()  # type: ignore[attr-defined] # one: no update
    stage.optimizer.step()
    if stage.masked is not None:
        stage.masked.clamp_gates()
    stage.optimizer.zero_grad(set_to_none=True)
    stage.step += 1
    stage.tokens += stage.tokens_per_step
    stage.flops += flops

    # ---- metrics: start their copy to the host
    meter.push(
        {
            **metrics,
            **mask_metrics(stage.masked),
            "row_domains": batch["domains"],
            "step": stage.step,
            "tokens": stage.tokens,
            "charged_flops": stage.flops.charged,
            "batch": stage.sampler.step - 1,
            "learning_rate": learning_rate,
        }
    )


def rescore(stage: StageState, context: TrainContext) -> None:
    """Order the gates again by the importance of the units that are active now; pruned units come last."""
    masked, settings = stage.masked, stage.settings
    assert masked is not None
    assert isinstance(settings, PruneConfig)
    measure = measure_of(settings)
    assert measure is not None
    stage.flops += importance_flops(context.config, masked)
    init_gates(context, masked, measure, masked.deterministic_masks(evaluated_sizes(masked)))
    for gate in masked.gates.values():  # the momentum belongs to the earlier order
        stage.optimizer.state[gate]["exp_avg"].zero_()


def forward_backward(stage: StageState, context: TrainContext, tokens_BT: Tensor) -> dict[str, Tensor]:
    """Compute the gradients of a step: of the loss under sampled masks, in micro-batches, and of the constraint.

    Args:
        stage: The stage.
        context: The run.
        tokens_BT: This rank's rows, int64 [rows, seq_len].

    Returns:
        Metrics on the device: ``loss`` and ``objective``, means over the rows of all ranks, and ``gates_grad_norm``,
        all scalars; ``row_losses`` [rows] of this rank, nats per token.
    """
    masked, ranks = stage.masked, context.ranks
    if masked is not None:
        next_seed = step_seed(context.seed, stage.name, stage.step + 1)  # as the next step seeds torch's generator
        following = torch.Generator().manual_seed(next_seed)
        masked.sample_masks(next_generator=following, max_gate_step=max_gate_step(stage.optimizer), step=stage.step)

    means = torch.zeros(2, device=context.device)
    row_losses = []
    micro_batches = tokens_BT.split(context.training.micro_batch_size or len(tokens_BT))
    for number, rows_BT in enumerate(micro_batches, 1):
        ranks.mark()
        set_replica_sync(stage.model, number == len(micro_batches))
        with context.autocast():
            losses_BT, objective_BT = forward(stage, rows_BT, first=(number - 1) * len(micro_batches[0]))
        num_tokens = stage.settings.batch_size * losses_BT.shape[1]
        objective = objective_BT.sum() / num_tokens
        (objective * ranks.world_size).backward()  # gradients are averaged over the ranks
        means += torch.stack([losses_BT.detach().sum() / num_tokens, objective.detach()])
        row_losses.append(losses_BT.detach().mean(-1))

    gates_grad_norm = torch.zeros((), device=context.device)
    if masked is not None and masked.gates:
        average_replicated_gradients(masked.gates.values(), ranks)
        masked.constraint(stage.step).backward()
        gates_grad_norm = grad_norm(masked.gates.values())
    loss, mean_objective = ranks.sum(means)
    return {
        "loss": loss,
        "objective": mean_objective,
        "gates_grad_norm": gates_grad_norm,
        "row_losses": torch.cat(row_losses),
    }


def forward(stage: StageState, rows_BT: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Return the loss of each next token, and the objective, which differs from it under distillation only.

    Args:
        stage: The stage.
        rows_BT: Rows of the last batch drawn, int64 [rows, seq_len].
        first: Number of the first of them among this rank's rows of the batch.
    """
    if stage.distiller is None:
        losses_BT = token_losses(stage.model, rows_BT)
        return losses_BT, losses_BT
    rows = None if stage.distiller.stored is None else stage.row_numbers(first, len(rows_BT))
    distilled = stage.distiller.losses(stage.model, rows_BT, stage.step / stage.settings.steps, rows)
    return distilled.losses, distilled.objective


def log_step(stage: StageState, context: TrainContext, meter: StepMeter) -> None:
    """Write the record of the last step, if it is not written, and count consecutive non-finite steps.

    Raises:
        RolledBack: ``training.max_skipped_steps`` consecutive steps, or the last ones of the stage, were non-finite;
            the stage is at its newest checkpoint.
        SolverError: As :func:`drpruning.train.rollback.roll_back`.
    """
    metrics = meter.flush()
    if metrics is None:
        return
    finite = math.isfinite(sum(metrics[name] for name in MUST_BE_FINITE))
    if finite:
        stage.nonfinite_batches.clear()
    else:
        stage.nonfinite_batches.append(metrics["batch"])
        if isinstance(stage.optimizer, LowPrecisionAdamW):
            stage.optimizer.uncount()
    if (failure := meter.new_compile_failure()) is not None:
        detail = f"updates run uncompiled, with the same result and more memory traffic: {failure}"
        context.sink.write(Incident(what="optimizer not compiled", detail=detail, stage=stage.name))
    record = meter.record(metrics)
    context.sink.write(record)
    stage.add_training_losses(record)
    if finite:
        return
    step, batch = metrics["step"], metrics["batch"]
    detail = f"batch {batch}: loss {metrics['loss']:g}, gradient norm {metrics['grad_norm']:g}"
    context.sink.write(Incident(what="skipped a step", detail=detail, stage=stage.name, step=step))
    failures = len(stage.nonfinite_batches)
    if failures >= context.training.max_skipped_steps or step >= stage.settings.steps:
        reason = f"the gradient was not finite in {failures} steps up to {step}"
        roll_back(stage, context, reason, num_batches=batch + 1)


def evaluate(stage: StageState, context: TrainContext) -> None:
    """Measure the held-out losses, and let the strategy choose the mixture from the next batch on.

    Raises:
        RolledBack: A held-out loss is not finite; the stage is at its newest checkpoint.
        SolverError: As :func:`drpruning.train.rollback.roll_back`.
    """
    place = f"after step {stage.step} of the {stage.name} stage"
    context.ranks.mark(f"the evaluation {place}")
    context.ranks.check_equal(stage.replicated_tensors(), f"gates and multipliers {place}")
    measured = context.validator.validate(stage.model, context.autocast(), context.ranks)
    stage.flops += evaluation_flops(stage, sum(context.validator.tokens.values()))
    for domain, loss in measured.means().items():
        if not math.isfinite(loss):
            reason = f"the held-out loss of {domain!r} after step {stage.step} is not finite"
            roll_back(stage, context, reason, num_batches=stage.sampler.step)
    if stage.paired and stage.reference is None:
        stage.reference = measured

    update_mixture(stage, context, measured)


def update_mixture(stage: StageState, context: TrainContext, measured: HeldOutLosses | None = None) -> None:
    """Let the strategy choose the mixture from the next batch on, and record it.

    Args:
        stage: The stage; the metrics of all its steps are logged.
        context: The run.
        measured: The losses of an evaluation; None: only training losses are new.
    """
    observation = stage.observation(measured)
    stage.strategy_state, update = context.ranks.agree(lambda: stage.strategy.update(stage.strategy_state, observation))
    stage.training_losses.clear()
    stage.set_weights(update.weights)
    record = (update_record if measured is None else evaluation_record)(stage, observation, update)
    context.sink.write(record)


def save_checkpoint(stage: StageState, context: TrainContext) -> None:
    """Write a checkpoint of the stage, with the length of the records so far."""
    context.ranks.mark(f"the checkpoint of step {stage.step} of the {stage.name} stage")
    state = {"stage": stage.state_dict(), "records": context.records_size()}
    context.checkpoints.save(stage.name, stage.step, stage.tensors(), state)
    if stage.finished:
        context.checkpoints.finish()


def end_stage(stage: StageState, context: TrainContext) -> None:
    """Convert the weights to float32, whatever their format in training, and write the record of the stage's end."""
    context.ranks.mark(f"the end of the {stage.name} stage")
    to_float32(stage.model if stage.masked is None else stage.masked.model, stage.optimizer)
    context.sink.write(
        StageEnded(
            stage=stage.name,
            steps=stage.step,
            tokens=stage.tokens,
            seconds=round(stage.seconds, 3),
            charged_flops=stage.flops.charged,
            flops=asdict(stage.flops),
        )
    )
