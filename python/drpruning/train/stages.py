"""The stages of a run: what each starts from, and what it leaves in the run folder.

Each does nothing if its result is there already, and otherwise goes on from its newest checkpoint.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from drpruning.config import DistillConfig, PruneConfig, RunConfig, even
from drpruning.corpus import Corpus
from drpruning.errors import StateError
from drpruning.export.extract import KeptUnits, pruned_config
from drpruning.files import new_folder
from drpruning.mixture import Constant, Strategy
from drpruning.mixture import build as build_strategy
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.importance import Measure, RankRows, importance
from drpruning.pruning.sizes import expected_sparsity, target_sparsity
from drpruning.pruning.target import Protected
from drpruning.records import (
    Incident,
    Kept,
    ModelMeasured,
    Record,
    StageStarted,
    TaskMeasured,
    read_records,
)
from drpruning.sampler import DomainSampler
from drpruning.train.any_model import shape_of
from drpruning.train.distill import Distiller
from drpruning.train.engine import Engine
from drpruning.train.evaluate import Evaluator, HeldOutLosses
from drpruning.train.execution import choose_attention, prepare, set_attention
from drpruning.train.folder import RECORDS, base_cache
from drpruning.train.going_back import take_up
from drpruning.train.loop import count_parameters, run_stage, step_seed
from drpruning.train.losses import token_losses
from drpruning.train.optim import learning_rates, make_optimizer
from drpruning.train.ranks import Ranks
from drpruning.train.sharding import place, read, whole
from drpruning.train.source import build
from drpruning.train.state import StageState, reference_in

CALIBRATION_TOKENS = 65_536  # order the units; four times as many order them hardly better
MET_WITHIN = 0.01  # of the target sparsity: the learned sizes were right by themselves; the cut is exact in any case


@dataclass(frozen=True)
class Run:
    """One run folder being filled: what its stages share."""

    config: RunConfig
    folder: Path
    corpus: Corpus
    source: Any  # transformers configuration of the large model
    engine: Engine
    tokenizer: Any
    measuring: Evaluator

    @property
    def records(self) -> Path:
        """Where the run's records are."""
        return self.folder / RECORDS

    def history(self) -> list[Record]:
        """What the run has recorded so far."""
        return self.ranks.agree(lambda: list(read_records(self.records)))

    @property
    def ranks(self) -> Ranks:
        """The processes of the run."""
        return self.engine.ranks

    def has(self, folder: Path) -> bool:
        """Whether ``folder`` is there, as rank 0 sees it."""
        return self.ranks.agree(folder.is_dir)

    def place(self, model: Any) -> Any:
        """Puts a model where it is used."""
        return place(model, self.engine.device, self.ranks, self.config.training)

    def read(self, source: str | Path, **options: Any) -> Any:
        """Read a model to where it is used; options as :func:`drpruning.train.sharding.read` takes them."""
        return read(source, self.engine.device, self.ranks, self.config.training, **options)


@dataclass(frozen=True)
class Base:
    """The large model.

    Attributes:
        source: Its folder or name.
        losses: On the rows of the evaluations, as far as they were measured in this process.
    """

    source: str
    losses: HeldOutLosses | None = None


def obtain_base(run: Run) -> Base:
    """The large model, measured; trains it if the recipe says so and no run has done so before."""
    base = run.config.model.source
    if base == "pretrain":
        cached = base_cache(run.config, run.corpus)
        if not run.has(cached):
            pretrain(run, cached)
        run.engine.checkpoints.drop("pretrain")
        base = str(cached)
    return Base(base, measure(run, "base", base))


def pretrain(run: Run, target: Path) -> None:
    """Trains the base from scratch and publishes it as ``target``."""
    settings, seed = run.config.pretrain, run.config.pretrain_seed
    assert settings is not None
    run = replace(run, config=run.config.model_copy(update={"seed": seed}), engine=replace(run.engine, seed=seed))
    enter_phase(run.ranks, "the start of the pretrain stage")
    model = run.place(_new_model(run))
    ratio = even(run.config.domains) if settings.weights == "even" else run.config.data.reference_ratio
    stage = begin(run, "pretrain", model, Constant(), ratio, None)
    run_stage(stage, run.engine)
    save_model(run, model, target, may_exist=True)  # a run beside this one may be quicker with the same base


def prune(run: Run, base: Base) -> None:
    """Learns what to keep and cuts it out, as ``pruned/``."""
    exported = run.folder / "pruned"
    if not run.has(exported):
        _prune_into(exported, run, base)  # a function, so that nothing of the stage is alive in what comes next
    measure(run, "pruned", str(exported))


def _prune_into(exported: Path, run: Run, base: Base) -> None:
    enter_phase(run.ranks, "the start of the prune stage")
    settings = run.config.pruning
    base = with_reference_losses(run, "prune", base)
    noise = torch.Generator().manual_seed(step_seed(run.config.seed, "gates", 0))
    masked: MaskedModel = run.read(base.source, wrap=lambda plain: masked_model(settings, plain, noise))
    stage = begin(run, "prune", masked, strategy(run.config, "prune"), run.config.data.reference_ratio, base)
    if settings.start != "neutral" and stage.step == 0:
        scores = measured_importance(run, masked, settings.start)
        masked.init_from_importance(run.ranks.agree(lambda: {kind: score.cpu() for kind, score in scores.items()}))
    stage.distiller = distiller(run, settings.distill, base)
    run_stage(stage, run.engine)
    run.engine.sink.write(_kept(masked))
    run.ranks.mark("the export of the pruned model")
    in_one = whole(masked, run.ranks, partial(masked_model, settings))
    run.ranks.do(lambda: in_one.export(exported, tokenizer=run.tokenizer))


def measured_importance(run: Run, masked: MaskedModel, measure: Measure) -> dict[str, torch.Tensor]:
    """Importance of the units, on every rank; the model runs as in a training step, each rank on its rows."""

    def loss(masked: MaskedModel, tokens: torch.Tensor) -> torch.Tensor:
        with run.engine.autocast():
            return token_losses(masked, tokens).mean()

    return importance(masked, calibration(run), measure, loss=loss, total=run.ranks.sum)


def start_anew(run: Run) -> None:
    """A model of the target shape with weights of its own, as ``pruned/``: what a run without a large model trains."""
    exported = run.folder / "pruned"
    if run.has(exported):
        return
    target = Target(**run.config.pruning.target.model_dump()).resolve(run.source)
    assert target.layers is not None
    first = KeptUnits(layers=list(range(target.layers)), hidden=[], heads=[], intermediate=[])
    config = pruned_config(run.source, first, target)
    save_model(run, build(config, step_seed(run.config.seed, "weights", 0)), exported)


def masked_model(settings: PruneConfig, model: Any, generator: torch.Generator | None = None) -> MaskedModel:
    """A model under masks, as the recipe says; ``generator`` draws the noise at the start of the gates, if any."""
    return MaskedModel(
        model,
        Target(**settings.target.model_dump()),
        warmup_steps=round(settings.target_warmup * settings.round_steps),
        cycles=settings.rounds,
        cycle_steps=settings.round_steps,
        protected=Protected(**settings.protect.model_dump()),
        skip_pruned_units=settings.skip_closed,
        mask_values=settings.mask_values,
        mask_norms=settings.mask_norms,
        generator=generator,
        **settings.initial(),
    )


def calibration(run: Run) -> Iterator[RankRows]:
    """This rank's rows of batches of training text at the reference ratio, for the importance of units."""
    rows, ranks = run.config.training.micro_batch_size or run.config.pruning.batch_size, run.ranks
    ratio = run.config.data.reference_ratio
    sampler = DomainSampler(
        run.corpus,
        weights={domain: ratio.get(domain, 0.0) for domain in run.corpus.domains},
        seq_len=run.config.data.seq_len,
        batch_size=rows,
        seed=step_seed(run.config.seed, "calibration", 0),
    )
    for _ in range(math.ceil(CALIBRATION_TOKENS / (rows * run.config.data.seq_len))):
        batch = torch.from_numpy(next(sampler).tokens)  # the same on each rank
        own = batch.tensor_split(ranks.world_size)[ranks.rank]
        yield RankRows((own if len(own) else batch[:1]).to(run.engine.device), len(own) / rows)


def continue_pretraining(run: Run, base: Base | None) -> None:
    """Trains the pruned model, or without a stage prune the base itself, further, as ``export/``.

    Args:
        run: The run.
        base: The large model; None where there is none.
    """
    exported = run.folder / "export"
    if not run.has(exported):
        _continue_into(exported, run, base)
    run.engine.checkpoints.drop("prune")  # kept until here: its last one starts the mixture of this stage
    run.engine.checkpoints.drop("continue")
    measure(run, "recovered", str(exported))


def _continue_into(exported: Path, run: Run, base: Base | None) -> None:
    enter_phase(run.ranks, "the start of the continue stage")
    base = None if base is None else with_reference_losses(run, "continue", base)
    pruned = None if run.config.prune is None else run.folder / "pruned"
    start = pruned or (None if base is None else base.source)
    model = run.place(_new_model(run)) if start is None else run.read(start)
    stage = begin(run, "continue", model, strategy(run.config, "continue"), run.config.data.reference_ratio, base)
    stage.distiller = distiller(run, run.config.continue_.distill, base, pruned=pruned)
    run_stage(stage, run.engine)
    save_model(run, model, exported)


def distiller(
    run: Run, settings: DistillConfig | None, base: Base | None, pruned: Path | None = None
) -> Distiller | None:
    """What the unpruned model teaches in a stage, if the recipe says so; ``pruned`` is where its student comes from."""
    if settings is None or base is None:
        return None
    teacher = None
    if settings.teacher == "source":
        weights = torch.bfloat16 if run.engine.training.dtype == "bfloat16" else torch.float32
        teacher = run.read(base.source, dtype=weights, wrap=frozen)
        set_attention(
            teacher, choose_attention(teacher.config, run.config.training, run.config.data, run.engine.device.type)
        )
    return Distiller(settings, teacher, None if pruned is None else KeptUnits.read(pruned))


def begin(
    run: Run, name: str, model: torch.nn.Module, chooser: Strategy, ratio: dict[str, float], base: Base | None
) -> StageState:
    """A stage at its first step, or at its newest checkpoint; the records are cut back to match."""
    settings = run.config.stage(name)
    domains = run.config.domains
    prepare(model, run.config.training, run.config.data, run.corpus.end_token)
    stage = StageState(
        name=name,
        settings=settings,
        model=model,
        optimizer=make_optimizer(model, settings, run.config.training),
        sampler=DomainSampler(
            run.corpus,
            weights={domain: ratio.get(domain, 0.0) for domain in run.corpus.domains},
            seq_len=run.config.data.seq_len,
            batch_size=settings.batch_size,
            seed=step_seed(run.config.seed, name, 0),
            rank=run.ranks.rank,
            world_size=run.ranks.world_size,
            draw=run.config.data.draw,
        ),
        strategy=chooser,
        mixture=None,
        paired=name != "pretrain" and not isinstance(run.config.mixture.reference_loss, dict),
    )
    checkpoint, damaged = run.engine.checkpoints.newest(name)
    if checkpoint is None:
        run.engine.cut_back(run.ranks.agree(lambda: size_before_stage(run.records, name)))
        stage.mixture, stage.reference = starting_mixture(run, name, chooser, ratio, base)
        stage.set_weights(dict(zip(domains, stage.mixture["weights"], strict=True)))
        run.engine.sink.write(_stage_started(run, stage))
    else:
        take_up(stage, run.engine, checkpoint)
        run.engine.sink.write(Incident(what="resumed", detail=f"from step {stage.step}", stage=name, step=stage.step))
    for sentence in damaged:
        run.engine.sink.write(Incident(what="damaged checkpoint passed over", detail=sentence, stage=name))
    return stage


def measure(run: Run, name: str, folder: str) -> HeldOutLosses | None:
    """Records losses and scores of a finished model, read back from its folder, as far as that is not done.

    Returns:
        Its losses on the rows of the evaluations; None where they were not measured here, or on other rows.
    """
    history, scoring = run.history(), run.engine.scoring
    measured = any(isinstance(record, ModelMeasured) and record.model == name for record in history)
    scored = scoring is None or any(
        isinstance(record, TaskMeasured) and record.model == name and record.step is None for record in history
    )
    chosen: HeldOutLosses | None = None
    if measured and scored:
        return chosen
    enter_phase(run.ranks, f"the measurement of the {name} model")
    model = load_to_measure(run, folder)
    if not measured:
        losses = run.measuring.measure(model, run.engine.autocast(), run.ranks)
        chosen = run.engine.evaluator.choose(losses, by=run.measuring)
        run.engine.sink.write(
            ModelMeasured(
                model=name,
                parameters=count_parameters(model),
                shape=shape_of(model.config),
                losses=losses.means(),
                evaluation_losses=None if chosen is None else chosen.means(),
                path=folder,
            )
        )
    if scoring is not None and not scored:
        scoring.finished(model, name, run.engine.sink)
    return chosen


def enter_phase(ranks: Ranks, place: str) -> None:
    """Pass the mark ``place`` and free the models of earlier phases."""
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


def _new_model(run: Run) -> Any:
    """A model of the source's shape with weights drawn from the run's seed."""
    return build(run.source, step_seed(run.config.seed, "weights", 0))


def starting_mixture(
    run: Run, name: str, chooser: Strategy, ratio: dict[str, float], base: Base | None
) -> tuple[dict[str, Any], HeldOutLosses | None]:
    """The strategy's state at the start of a stage, and the losses by row it measures excess against, if known.

    A strategy that was at work before takes up what it has learned.
    """
    if name == "pretrain":
        return chooser.init(run.config.domains, ratio), None
    if not _takes_up_mixture(run, name, base):
        given = run.config.mixture.reference_loss
        reference = base.losses if base is not None and given == "base" else None
        losses = dict(given) if isinstance(given, dict) else None if reference is None else reference.means()
        return chooser.init(run.config.domains, ratio, reference_loss=losses), reference
    before, _ = run.engine.checkpoints.newest("prune")
    if before is None:
        raise StateError(
            f"{run.folder} has lost the last checkpoint of its prune stage, which holds the mixture to go on with",
            "Start again with another --out.",
        )
    state = before.state["stage"]
    return chooser.next_stage(state["mixture"]), reference_in(state)


def _takes_up_mixture(run: Run, name: str, base: Base | None) -> bool:
    """Whether a stage starts with the mixture that the stage before it ended with."""
    return name == "continue" and base is not None and set(run.config.mixture.stages) == {"prune", "continue"}


def with_reference_losses(run: Run, name: str, base: Base) -> Base:
    """The base with its losses on the rows of the evaluations, where a stage starts from them.

    To be called before the stage's model is placed: next to that, and to its optimizer, there is no room for the base.
    """
    needed = run.config.mixture.reference_loss == "base" and not _takes_up_mixture(run, name, base)
    if not needed or base.losses is not None or run.engine.checkpoints.newest(name)[0] is not None:
        return base
    model, autocast = load_to_measure(run, base.source), run.engine.autocast()
    # As obtain_base did in an earlier process, to the last bit
    losses = run.engine.evaluator.choose(run.measuring.measure(model, autocast, run.ranks), by=run.measuring)
    losses = losses or run.engine.evaluator.measure(model, autocast, run.ranks)
    del model
    release_memory()
    return Base(base.source, losses)


def load_to_measure(run: Run, folder: str) -> Any:
    """A finished model, run as the recipe says, in evaluation mode."""
    model = run.read(folder, wrap=frozen)
    prepare(model, run.config.training, run.config.data, run.corpus.end_token)
    return model


def frozen(model: Any) -> Any:
    """Return a model that is not trained: it has no gradients."""
    return model.requires_grad_(False)


def strategy(config: RunConfig, stage: str) -> Strategy:
    """The recipe's strategy with its settings, in the stages where it is to move the mixture."""
    if stage not in config.mixture.stages:
        return Constant()
    return build_strategy(config.mixture.strategy, config.mixture.settings(), stages=config.mixture.stages)


def save_model(run: Run, model: Any, target: Path, *, may_exist: bool = False) -> None:
    """Publishes a model as a Hugging Face folder, complete or not at all; rank 0 does.

    Args:
        run: The run.
        model: As it was trained.
        target: The folder.
        may_exist: Let one be that is there already.
    """
    run.ranks.mark(f"the export to {target.name}")
    in_one = whole(model, run.ranks)

    def publish() -> None:
        with suppress(*([FileExistsError] if may_exist else [])), new_folder(target) as aside:
            in_one.save_pretrained(aside)
            if run.tokenizer is not None:
                run.tokenizer.save_pretrained(aside)

    run.ranks.do(publish)


def size_before_stage(records: Path, stage: str) -> int:
    """Bytes of a metrics.jsonl before the stage began: all of it, if it has not."""
    size = 0
    with records.open("rb") as lines:
        for line in lines:
            if b'"kind":"stage_started"' in line and f'"stage":"{stage}"'.encode() in line:
                return size
            size += len(line)
    return size


def _stage_started(run: Run, stage: StageState) -> StageStarted:
    masked = stage.masked
    model: Any = stage.model if masked is None else masked.model
    tokens_per_step = stage.settings.batch_size * run.config.data.seq_len
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


def _kept(masked: MaskedModel) -> Kept:
    reached, final = expected_sparsity(masked), target_sparsity(masked)
    return Kept(
        source=masked.source.sizes(),
        target=masked.target.sizes(),
        target_met={kind: abs(reached[kind] - final[kind]) <= MET_WITHIN for kind in reached},
        expected=reached,
        **asdict(masked.kept_units()),
    )
