"""The stages of a run: the model each starts from, and the model each leaves in the run folder.

A stage whose result exists does nothing; otherwise it resumes from its newest checkpoint.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from drpruning.config import ContinueConfig, DistillConfig, PruneConfig, RunConfig, StageConfig
from drpruning.errors import StateError
from drpruning.files import clear_partial, new_folder
from drpruning.flops import FORWARD, TRAINING
from drpruning.formatting import flops_in_words
from drpruning.hf.model_folder import write_model
from drpruning.hf.models import build_on_meta, disk_errors, saved_tensors
from drpruning.hf.tensor_stream import ReadTensor
from drpruning.mixture import Constant, Strategy
from drpruning.mixture import build as build_strategy
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.extract import KeptUnits, pruned_config
from drpruning.pruning.sizes import expected_sparsity
from drpruning.pruning.target import Protected
from drpruning.records import (
    BUDGET,
    Incident,
    Kept,
    ModelMeasured,
    StageEnded,
    StageStarted,
    StepTaken,
    TaskMeasured,
    flops_of_stages,
)
from drpruning.sampler import DomainSampler
from drpruning.train.base_model import base_cache, build
from drpruning.train.calibration import init_gates, measure_of, repair_pruned
from drpruning.train.context import TrainContext
from drpruning.train.distill import Distiller
from drpruning.train.distributed.fsdp import gather_model
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.distributed.whole_tensors import read_on_first
from drpruning.train.flop_counting import importance_flops, repair_flops
from drpruning.train.loop import run_stage
from drpruning.train.model_runtime import choose_attention, prepare, set_attention
from drpruning.train.model_structure import products_of_model, shape_of
from drpruning.train.optimizers.build import learning_rates, make_optimizer
from drpruning.train.rollback import restore_checkpoint
from drpruning.train.state import StageState, count_parameters, saved_reference, step_seed
from drpruning.train.teacher_files import StoredTeacher
from drpruning.train.validation import HeldOutLosses

MET_WITHIN = 0.01  # distance to the target sparsity at which the gates met it; the extraction is exact in any case


@dataclass(frozen=True)
class Base:
    """The large model.

    Attributes:
        source: Its folder or name.
        losses: On the rows of the evaluations; None if this process did not measure them.
    """

    source: str
    losses: HeldOutLosses | None = None


def get_base(context: TrainContext) -> Base:
    """Return the large model, measured; train it first if the recipe has a pretrain stage and the cache no result."""
    base = context.config.model.source
    if base == "pretrain":
        cached = base_cache(context.config, context.corpus)
        if not context.has(cached):
            pretrain(context, cached)
        elif context.ranks.first:
            clear_partial(cached.parent)  # of a run that was killed as soon as it had published its base
        context.checkpoints.drop("pretrain")
        base = str(cached)
    return Base(base, evaluate_model(context, "base", base))


def pretrain(context: TrainContext, target: Path) -> None:
    """Train the base from scratch and publish it as ``target``."""
    settings, seed = context.config.pretrain, context.config.pretrain_seed
    assert settings is not None
    context = replace(context, config=context.config.model_copy(update={"seed": seed}))
    enter_phase(context.ranks, "the start of the pretrain stage")
    model = context.place_model(_new_model(context))
    stage = begin_stage(context, "pretrain", model)
    run_stage(stage, context)
    save_model(context, model, target, may_exist=True)  # another run may train the same base at the same time


def prune(context: TrainContext, base: Base) -> None:
    """Learn which units to keep, and extract them as ``pruned/``."""
    exported = context.folder.pruned
    if not context.has(exported):
        _prune_into(exported, context, base)  # a function, so that the stage's tensors are free afterwards
    evaluate_model(context, "pruned", str(exported))


def _prune_into(exported: Path, context: TrainContext, base: Base) -> None:
    enter_phase(context.ranks, "the start of the prune stage")
    settings = context.config.pruning
    base = with_base_losses(context, "prune", base)
    noise = torch.Generator().manual_seed(step_seed(context.config.seed, "gates", 0))
    masked: MaskedModel = context.load_model(base.source, wrap=lambda plain: masked_model(settings, plain, noise))
    stage = begin_stage(context, "prune", masked, base)
    measure = measure_of(settings)
    if stage.step == 0:
        stage.flops += repair_flops(context.config, masked)
    if measure is not None and stage.step == 0:
        stage.flops += importance_flops(context.config, masked)
        init_gates(context, masked, measure)
    stage.distiller = distiller(context, settings.distill, base)
    run_stage(stage, context)
    context.sink.write(_kept_record(masked, context))
    context.ranks.mark("the export of the pruned model")
    export_pruned(context, masked, exported)


def export_pruned(context: TrainContext, masked: MaskedModel, folder: Path) -> None:
    """Extract the pruned model into ``folder`` from rank 0, weight by weight.

    A repair runs both models: rank 0 of several collects them in the memory of its node.
    """
    settings = context.config.pruning

    def export(read: ReadTensor) -> None:
        if settings.repair is None:
            masked.write_extracted(folder, context.tokenizer, read=read)
            return
        adjust = partial(repair_pruned, context, settings.repair)
        whole = masked if context.ranks.alone else gather_model(masked, read, partial(masked_model, settings))
        whole.export(folder, tokenizer=context.tokenizer, adjust=adjust)

    read_on_first(saved_tensors(masked.model), context.ranks, export)


def initialize_target_model(context: TrainContext) -> None:
    """Publish a model of the target shape with random weights as ``pruned/``, in a run without a large model."""
    exported = context.folder.pruned
    if context.has(exported):
        return
    target = Target(**context.config.pruning.target.model_dump()).resolve(context.base_config)
    assert target.layers is not None
    first = KeptUnits(layers=list(range(target.layers)), hidden=[], heads=[], intermediate=[])
    config = pruned_config(context.base_config, first, target)
    save_model(context, build(config, step_seed(context.config.seed, "weights", 0)), exported)


def masked_model(settings: PruneConfig, model: Any, generator: torch.Generator | None = None) -> MaskedModel:
    """Return ``model`` under the recipe's masks; ``generator`` draws the initial noise of the gates, if any."""
    return MaskedModel(
        model,
        Target(**settings.target.model_dump()),
        warmup_steps=round(settings.sparsity_warmup_fraction * settings.cycle_steps),
        cycles=settings.cycles,
        cycle_steps=settings.cycle_steps,
        protected=Protected(**settings.protect.model_dump()),
        gates=settings.gates,
        skip_pruned_units=settings.skip_pruned_units,
        mask_values=settings.mask_values,
        mask_norms=settings.mask_norms,
        generator=generator,
        **settings.initial(),
    )


def continue_pretraining(context: TrainContext, base: Base | None) -> None:
    """Continue to train the pruned model or, in a recipe without a prune stage, the base, and publish ``export/``.

    Args:
        context: The run.
        base: The large model; None where there is none.
    """
    exported = context.folder.export
    if not context.has(exported):
        _continue_into(exported, context, base)
    context.checkpoints.drop("prune")  # kept until here: the last one has the state of the strategy
    context.checkpoints.drop("continue")
    evaluate_model(context, "recovered", str(exported))


def _continue_into(exported: Path, context: TrainContext, base: Base | None) -> None:
    enter_phase(context.ranks, "the start of the continue stage")
    base = None if base is None else with_base_losses(context, "continue", base)
    pruned = None if context.config.prune is None else context.folder.pruned
    start = pruned or (None if base is None else base.source)
    model = context.place_model(_new_model(context)) if start is None else context.load_model(start)
    stage = begin_stage(context, "continue", model, base)
    stage.distiller = distiller(context, context.config.continue_.distill, base, pruned=pruned)
    run_stage(stage, context)
    save_model(context, model, exported)


def distiller(
    context: TrainContext, settings: DistillConfig | None, base: Base | None, pruned: Path | None = None
) -> Distiller | None:
    """Return the stage's distillation, if the recipe has one; ``pruned`` is the folder of the student at its start."""
    if settings is None or base is None:
        return None
    teacher = None
    if settings.teacher == "source" and settings.runs_teacher:
        weights = torch.bfloat16 if context.training.dtype == "bfloat16" else torch.float32
        teacher = context.load_model(base.source, dtype=weights, wrap=frozen)
        set_attention(
            teacher, choose_attention(teacher.config, context.config.training, context.config.data, context.device.type)
        )
    stored = None if settings.stored is None else StoredTeacher(Path(settings.stored).expanduser())
    return Distiller(settings, teacher, None if pruned is None else KeptUnits.read(pruned), stored)


def begin_stage(context: TrainContext, name: str, model: torch.nn.Module, base: Base | None = None) -> StageState:
    """Return a stage at its first step or at its newest checkpoint, with the records truncated to that point."""
    settings, domains = stage_settings(context, name, model), context.config.domains
    strategy, ratio = stage_strategy(context.config, name), start_ratio(context.config, name)
    prepare(model, context.config.training, context.config.data, context.corpus.end_token)
    stage = StageState(
        name=name,
        settings=settings,
        model=model,
        optimizer=make_optimizer(model, settings, context.config.training),
        sampler=DomainSampler(
            context.corpus,
            weights={domain: ratio.get(domain, 0.0) for domain in context.corpus.domains},
            seq_len=context.config.data.seq_len,
            batch_size=settings.batch_size,
            seed=step_seed(context.config.seed, name, 0),
            rank=context.ranks.rank,
            world_size=context.ranks.world_size,
            draw=context.config.data.draw,
        ),
        strategy=strategy,
        strategy_state=None,
        paired=name != "pretrain" and not isinstance(context.config.mixture.reference_loss, dict),
    )
    checkpoint, damaged = context.checkpoints.newest(name)
    if checkpoint is None:
        context.truncate_records(context.ranks.agree(lambda: records_size_before(context.folder.metrics, name)))
        stage.strategy_state, stage.reference = starting_mixture(context, name, strategy, ratio, base)
        stage.set_weights(dict(zip(domains, stage.strategy_state["weights"], strict=True)))
        context.sink.write(_stage_started(context, stage))
        if (incident := _changed_steps(context.config.stage(name), settings)) is not None:
            context.sink.write(incident)
    else:
        restore_checkpoint(stage, context, checkpoint)
        context.sink.write(Incident(what="resumed", detail=f"from step {stage.step}", stage=name, step=stage.step))
    for sentence in damaged:
        context.sink.write(Incident(what="damaged checkpoint skipped", detail=sentence, stage=name))
    return stage


def stage_settings(context: TrainContext, name: str, model: Any) -> StageConfig:
    """Return the settings of a stage, with the steps of its budget of charged FLOPs if it has one.

    The records have the FLOPs of the stages before, so a resumed stage has the same steps. They can have those of this
    stage as well: of a run that was killed before it had exported the model.

    Raises:
        ConfigError: As :meth:`drpruning.config.ContinueConfig.within_budget`.
    """
    settings = context.config.stage(name)
    if not isinstance(settings, ContinueConfig) or settings.charged_flops is None:
        return settings
    length = context.config.data.seq_len
    products = TRAINING * products_of_model(model, length)
    teacher_runs = settings.distill is not None and settings.distill.runs_teacher
    if teacher_runs and context.config.model.source != "scratch":
        products += FORWARD * products_of_model(build_on_meta(context.base_config), length)
    before = (record for record in context.history() if isinstance(record, StageEnded) and record.stage != name)
    spent = flops_of_stages(before).charged
    return settings.within_budget(spent, settings.batch_size * length * products)


def _changed_steps(recipe: StageConfig, settings: StageConfig) -> Incident | None:
    """Return an incident with the steps that a budget has led to; None without a budget."""
    budget = getattr(settings, "charged_flops", None)
    if budget is None:
        return None
    changes = (
        f"steps {recipe.steps:,} to {settings.steps:,}, eval_every {recipe.eval_every:,} to {settings.eval_every:,}"
    )
    return Incident(what=BUDGET, detail=f"{flops_in_words(budget)} charged: {changes}", stage="continue")


def evaluate_model(context: TrainContext, name: str, folder: str) -> HeldOutLosses | None:
    """Load a finished model from its folder and record its losses and task scores, where the records lack them.

    Returns:
        Its losses on the validation rows; None if this call did not measure them.
    """
    history, scoring = context.history(), context.task_eval
    measured = any(isinstance(record, ModelMeasured) and record.model == name for record in history)
    scored = scoring is None or any(
        isinstance(record, TaskMeasured) and record.model == name and record.step is None for record in history
    )
    validation: HeldOutLosses | None = None
    if measured and scored:
        return validation
    enter_phase(context.ranks, f"the measurement of the {name} model")
    model = load_for_evaluation(context, folder)
    if not measured:
        losses = context.final_validator.validate(model, context.autocast(), context.ranks)
        validation = context.validator.validate(model, context.autocast(), context.ranks)
        context.sink.write(
            ModelMeasured(
                model=name,
                parameters=count_parameters(model),
                shape=shape_of(model.config),
                losses=losses.means(),
                evaluation_losses=validation.means(),
                part_losses=losses.part_means(),
                path=folder,
            )
        )
    if scoring is not None and not scored:
        scoring.finished(model, name, context.sink)
    return validation


def enter_phase(ranks: Ranks, place: str) -> None:
    """Pass the mark ``place_model`` and free the models of earlier phases."""
    ranks.mark(place)
    release_memory()


def release_memory() -> None:
    """Free models without references, before another one is placed.

    Masks and FSDP hold a model in cycles of references, which live until Python's collector runs: large tensors do not
    start it.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _new_model(context: TrainContext) -> Any:
    """Return a model of the base's shape with weights drawn from the run's seed."""
    return build(context.base_config, step_seed(context.config.seed, "weights", 0))


def starting_mixture(
    context: TrainContext, name: str, strategy: Strategy, ratio: dict[str, float], base: Base | None
) -> tuple[dict[str, Any], HeldOutLosses | None]:
    """Return the strategy's state at the start of a stage, and the reference losses by row, if known.

    In the stage after the first one of its run, a strategy continues from its state there.
    """
    if name == "pretrain":
        return strategy.init(context.config.domains, ratio), None
    if not _continues_mixture(context, name, base):
        reference_loss = context.config.mixture.reference_loss
        reference = base.losses if base is not None and reference_loss == "base" else None
        losses = None if reference is None else reference.means()
        if isinstance(reference_loss, dict):
            losses = dict(reference_loss)
        return strategy.init(context.config.domains, ratio, reference_loss=losses), reference
    before, _ = context.checkpoints.newest("prune")
    if before is None:
        raise StateError(
            f"{context.folder.path} lacks the last checkpoint of the prune stage, which holds the strategy's state",
            "Start again with another --out.",
        )
    state = before.state["stage"]
    return strategy.next_stage(state["strategy_state"]), saved_reference(state)


def _continues_mixture(context: TrainContext, name: str, base: Base | None) -> bool:
    """Return whether a stage starts with the strategy's state at the end of the prune stage."""
    return name == "continue" and base is not None and set(context.config.mixture.stages) == {"prune", "continue"}


def with_base_losses(context: TrainContext, name: str, base: Base) -> Base:
    """Return the base with its losses on the validation rows, where the strategy needs them.

    Call this before the stage's model is placed: the base does not fit next to that model and its optimizer.
    """
    needed = context.config.mixture.reference_loss == "base" and not _continues_mixture(context, name, base)
    if not needed or base.losses is not None or context.checkpoints.newest(name)[0] is not None:
        return base
    model = load_for_evaluation(context, base.source)
    # As get_base did in an earlier process, to the last bit
    losses = context.validator.validate(model, context.autocast(), context.ranks)
    del model
    release_memory()
    return Base(base.source, losses)


def load_for_evaluation(context: TrainContext, folder: str) -> Any:
    """Load a finished model in evaluation mode, with the recipe's kernels."""
    model = context.load_model(folder, wrap=frozen)
    prepare(model, context.config.training, context.config.data, context.corpus.end_token)
    return model


def frozen(model: Any) -> Any:
    """Disable the gradients of a model, and return it."""
    return model.requires_grad_(False)


def stage_strategy(config: RunConfig, stage: str) -> Strategy:
    """Return the recipe's strategy with its settings; in stages where it does not move the mixture, a constant one."""
    if stage not in config.mixture.stages:
        return Constant()
    return build_strategy(config.mixture.strategy, config.mixture.settings(), stages=config.mixture.stages)


def start_ratio(config: RunConfig, stage: str) -> dict[str, float]:
    """Return the mixture at the start of a stage: the reference ratio or, in the pretrain stage, what it sets."""
    return config.pretrain_ratio if stage == "pretrain" else config.reference_ratio


def save_model(context: TrainContext, model: Any, target: Path, *, may_exist: bool = False) -> None:
    """Publish a model as a Hugging Face folder, complete or not at all, from rank 0.

    Args:
        context: The run.
        model: The trained model.
        target: The folder.
        may_exist: Keep a folder that exists.
    """
    context.ranks.mark(f"the export to {target.name}")

    def publish(read: ReadTensor) -> None:
        exists = [FileExistsError] if may_exist else []
        with suppress(*exists), disk_errors(target), new_folder(target) as partial_folder:
            write_model(model, partial_folder, read)
            if context.tokenizer is not None:
                context.tokenizer.save_pretrained(partial_folder)

    read_on_first(saved_tensors(model), context.ranks, publish)


def records_size_before(records: Path, stage: str) -> int:
    """Return the bytes of a metrics.jsonl before the records of a stage; all bytes if it has none."""
    size = 0
    with records.open("rb") as lines:
        for line in lines:
            if b'"kind":"stage_started"' in line and f'"stage":"{stage}"'.encode() in line:
                return size
            size += len(line)
    return size


def _stage_started(context: TrainContext, stage: StageState) -> StageStarted:
    masked = stage.masked
    model: Any = stage.model if masked is None else masked.model
    tokens_per_step = stage.settings.batch_size * context.config.data.seq_len
    rates = learning_rates(stage.settings, tokens_per_step)
    return StageStarted(
        stage=stage.name,
        steps=stage.settings.steps,
        tokens_per_step=tokens_per_step,
        parameters=count_parameters(model),
        shape=shape_of(model.config),
        target=None if masked is None else masked.target.sizes(),
        learning_rates={"tokens": list(rates.tokens), "rates": list(rates.rates)},
    )


def _kept_record(masked: MaskedModel, context: TrainContext) -> Kept:
    units: dict[str, Any] = {
        "source": masked.source.sizes(),
        "target": masked.target.sizes(),
        **masked.kept_units().to_dict(),
    }
    if context.config.pruning.one_shot:
        return Kept(**units)
    reached, final = expected_sparsity(masked), masked.target_sparsity()

    def met(expected: Mapping[str, float]) -> dict[str, bool]:
        return {kind: abs(expected[kind] - final[kind]) <= MET_WITHIN for kind in final}

    steps = [record for record in context.history() if isinstance(record, StepTaken) and record.stage == "prune"]
    at_target = takewhile(lambda record: all(met(record.expected or {}).values()), reversed(steps))
    return Kept(
        **units,
        target_met=met(reached),
        expected=reached,
        steps_at_target=sum(1 for _ in at_target),
    )
