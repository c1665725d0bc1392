"""A whole run: base, prune, export, continue, export; then the same under other mixtures, to compare with.

The run folder says how far a run is: ``pruned/`` and ``export/`` appear, by a rename, when their stage is over; within
a stage the newest checkpoint does. So a run killed at any instant goes on by calling :func:`train` with
``resume=True``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from drpruning import __version__
from drpruning.config import RunConfig, even
from drpruning.corpus import Corpus
from drpruning.errors import StateError
from drpruning.files import new_folder
from drpruning.pruning import MaskedModel, Target
from drpruning.records import (
    Incident,
    JsonlSink,
    Kept,
    ModelMeasured,
    Record,
    RunEnded,
    RunStarted,
    Sink,
    StageEnded,
    StageStarted,
    cut_back,
    read_records,
)
from drpruning.reweight import STRATEGIES, Constant, Strategy
from drpruning.sampler import DomainSampler
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.evaluate import Evaluator
from drpruning.train.folder import base_cache, open_run_folder
from drpruning.train.inputs import check_recipe, open_corpus
from drpruning.train.loop import Engine, count_parameters, run_stage, step_seed
from drpruning.train.optim import make_optimizer
from drpruning.train.source import build, corpus_tokenizer, load
from drpruning.train.state import StageState
from drpruning.train.threads import choose_threads

MET_WITHIN = 0.01  # of the target sparsity: the learned sizes were right by themselves; the cut is exact in any case


@dataclass(frozen=True)
class Fanout:
    """One sink that tells several."""

    sinks: Sequence[Sink]

    def write(self, record: Record) -> None:
        """Passes ``record`` on to each."""
        for sink in self.sinks:
            sink.write(record)


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
        """The run's metrics.jsonl."""
        return self.folder / "metrics.jsonl"

    def history(self) -> list[Record]:
        """What the run has recorded so far."""
        return list(read_records(self.records))


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    watchers: Sequence[Sink] = (),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Does everything a recipe asks for, in ``folder``.

    Args:
        config: The recipe.
        folder: The run folder; made if it is not there.
        resume: Go on with what is in ``folder``; without it a folder that is not empty is an error.
        watchers: Told of every record, beside ``folder/metrics.jsonl``.
        stop: Asked after every step; when true, the step's checkpoint is written and ``Interrupted`` raised.

    Raises:
        ConfigError: The recipe cannot work with this corpus and model, or the folder is in use; nothing was written.
        StateError: The folder belongs to another recipe.
        Interrupted: ``stop`` became true.
    """
    corpus = open_corpus(config)
    source = check_recipe(config, corpus)
    if config.training.threads == "auto":
        config = config.with_threads(choose_threads(source, rows=config.prune.batch_size, seq_len=config.data.seq_len))
    config = open_run_folder(folder, config, resume=resume)
    run_in_folder(config, folder, corpus, source, notices=config.notices(), watchers=watchers, stop=stop)
    for name in config.compare:
        if name == config.reweight.strategy:
            continue
        beside = folder / "compare" / name
        other = open_run_folder(beside, config.with_strategy(name), resume=True)
        run_in_folder(other, beside, corpus, source, notices=[], watchers=watchers, stop=stop)


def run_in_folder(
    config: RunConfig,
    folder: Path,
    corpus: Corpus,
    source: Any,
    *,
    notices: Sequence[str],
    watchers: Sequence[Sink],
    stop: Callable[[], bool],
) -> None:
    """Fills one run folder that is already open, from wherever it stands."""
    done = list(read_records(folder / "metrics.jsonl"))
    if any(isinstance(record, RunEnded) for record in done):
        return
    training = config.training
    if isinstance(training.threads, int):
        torch.set_num_threads(training.threads)
    file = JsonlSink(folder / "metrics.jsonl")

    def evaluator(tokens: int) -> Evaluator:
        rows = training.evaluation_batch_size
        return Evaluator.from_corpus(
            corpus, config.domains, seq_len=config.data.seq_len, tokens=tokens, batch_size=rows
        )

    try:
        run = Run(
            config=config,
            folder=folder,
            corpus=corpus,
            source=source,
            tokenizer=corpus_tokenizer(corpus),
            measuring=evaluator(training.measurement_tokens),
            engine=Engine(
                device=choose_device(training.device),
                training=training,
                seed=config.seed,
                evaluator=evaluator(training.evaluation_tokens),
                sink=Fanout([file, *watchers]),
                checkpoints=Checkpoints(folder / "checkpoints", keep=training.keep_checkpoints),
                written=file.tell,
                stop=stop,
            ),
        )
        if not done:
            run.engine.sink.write(_run_started(run))
            for notice in notices:
                run.engine.sink.write(Incident(what="setting without effect", detail=notice))
        base = obtain_base(run)
        prune(run, base)
        continue_pretraining(run, base)
        seconds = sum(record.seconds for record in run.history() if isinstance(record, StageEnded))
        run.engine.sink.write(RunEnded(seconds=round(seconds, 3)))
    finally:
        file.close()


def obtain_base(run: Run) -> str:
    """The folder or name of the large model; trains it if the recipe says so and no run has done so before."""
    base = run.config.model.source
    if base == "pretrain":
        cached = base_cache(run.config, run.corpus)
        if not cached.is_dir():
            pretrain(run, cached)
        base = str(cached)
    measure(run, "base", base)
    return base


def pretrain(run: Run, target: Path) -> None:
    """Trains the base from scratch and publishes it as ``target``."""
    settings = run.config.pretrain
    assert settings is not None
    model = build(run.source, step_seed(run.config.seed, "weights", 0)).to(run.engine.device)
    ratio = even(run.config.domains) if settings.weights == "even" else run.config.data.reference_ratio
    stage = begin(run, "pretrain", model, Constant(), ratio, None)
    run_stage(stage, run.engine)
    with suppress(FileExistsError):  # a run beside this one was quicker with the same base
        save_model(run, model, target)
    run.engine.checkpoints.drop("pretrain")


def prune(run: Run, base: str) -> None:
    """Learns what to keep and cuts it out, as ``pruned/``."""
    exported = run.folder / "pruned"
    if not exported.is_dir():
        settings = run.config.prune
        masked = MaskedModel(
            load(base).to(run.engine.device),
            Target(**settings.target.model_dump()),
            warmup_steps=round(settings.target_warmup * settings.steps),
            **settings.initial(),
        )
        stage = begin(run, "prune", masked, strategy(run.config), run.config.data.reference_ratio, base)
        run_stage(stage, run.engine)
        run.engine.sink.write(_kept(masked))
        masked.export(exported, tokenizer=run.tokenizer)
    measure(run, "pruned", str(exported))


def continue_pretraining(run: Run, base: str) -> None:
    """Trains the pruned model further, as ``export/``."""
    exported = run.folder / "export"
    if not exported.is_dir():
        model = load(run.folder / "pruned").to(run.engine.device)
        stage = begin(run, "continue", model, strategy(run.config), run.config.data.reference_ratio, base)
        run_stage(stage, run.engine)
        save_model(run, model, exported)
    run.engine.checkpoints.drop("prune")  # kept until here: its last one starts the mixture of this stage
    run.engine.checkpoints.drop("continue")
    measure(run, "recovered", str(exported))


def begin(
    run: Run, name: str, model: torch.nn.Module, chooser: Strategy, ratio: dict[str, float], base: str | None
) -> StageState:
    """A stage at its first step, or at its newest checkpoint; the records are cut back to match."""
    settings = run.config.stage(name)
    domains = run.config.domains
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
            draw=run.config.data.draw,
        ),
        strategy=chooser,
        mixture=None,
    )
    checkpoint, damaged = run.engine.checkpoints.newest(name)
    if checkpoint is None:
        cut_back(run.records, size_before_stage(run.records, name))
        stage.mixture = starting_mixture(run, name, chooser, ratio, base)
        stage.set_weights(dict(zip(domains, stage.mixture["weights"], strict=True)))
        run.engine.sink.write(_stage_started(run, stage))
    else:
        tensors = stage.tensors()
        run.engine.checkpoints.restore(checkpoint, tensors)
        stage.load_tensors(tensors)
        stage.load_state_dict(checkpoint.state["stage"])
        cut_back(run.records, checkpoint.state["records"])
        run.engine.sink.write(Incident(what="resumed", detail=f"from step {stage.step}", stage=name, step=stage.step))
    for sentence in damaged:
        run.engine.sink.write(Incident(what="damaged checkpoint passed over", detail=sentence, stage=name))
    return stage


def measure(run: Run, name: str, folder: str) -> None:
    """Records the held-out losses of a finished model, read back from its folder, unless that is done."""
    if any(isinstance(record, ModelMeasured) and record.model == name for record in run.history()):
        return
    model = load(folder).to(run.engine.device).eval()
    run.engine.sink.write(
        ModelMeasured(
            model=name,
            parameters=count_parameters(model),
            shape=Target.of(model.config).sizes(),
            losses=run.measuring.losses(model, run.engine.autocast()),
            path=folder,
        )
    )


def starting_mixture(
    run: Run, name: str, chooser: Strategy, ratio: dict[str, float], base: str | None
) -> dict[str, Any]:
    """The strategy's state at the start of a stage; the continue stage takes up what the prune stage has learned."""
    if name != "continue":
        return chooser.init(run.config.domains, ratio, reference_loss=reference_loss(run, base))
    before, _ = run.engine.checkpoints.newest("prune")
    if before is None:
        raise StateError(
            f"{run.folder} has lost the last checkpoint of its prune stage, which holds the mixture to go on with",
            "Start again with another --out.",
        )
    return chooser.next_stage(before.state["stage"]["mixture"])


def reference_loss(run: Run, base: str | None) -> dict[str, float] | None:
    """What excess loss is measured against until the strategy has something better; None if nothing is given."""
    given = run.config.reweight.reference_loss
    if base is None or given is None:
        return None
    if isinstance(given, dict):
        return dict(given)
    return run.engine.evaluator.losses(load(base).to(run.engine.device), run.engine.autocast())


def strategy(config: RunConfig) -> Strategy:
    """The recipe's strategy with its settings."""
    return STRATEGIES[config.reweight.strategy](**config.reweight.settings())


def save_model(run: Run, model: Any, target: Path) -> None:
    """Publishes a model as a Hugging Face folder, complete or not at all."""
    with new_folder(target) as aside:
        model.save_pretrained(aside)
        if run.tokenizer is not None:
            run.tokenizer.save_pretrained(aside)


def choose_device(device: str) -> torch.device:
    """The device named, or the first GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def size_before_stage(records: Path, stage: str) -> int:
    """Bytes of a metrics.jsonl before the stage began: all of it, if it has not."""
    size = 0
    with records.open("rb") as lines:
        for line in lines:
            if b'"kind":"stage_started"' in line and f'"stage":"{stage}"'.encode() in line:
                return size
            size += len(line)
    return size


def _run_started(run: Run) -> RunStarted:
    config = run.config
    return RunStarted(
        name=config.name,
        recipe_hash=config.hash(),
        strategy=config.reweight.strategy,
        seed=config.seed,
        domains=config.domains,
        reference_ratio=dict(config.data.reference_ratio),
        rho=getattr(strategy(config), "rho", None),
        environment={
            "drpruning": __version__,
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if run.engine.device.type == "cuda" else platform.machine(),
            "threads": str(torch.get_num_threads()),
            "corpus": run.corpus.fingerprint,
        },
    )


def _stage_started(run: Run, stage: StageState) -> StageStarted:
    masked = stage.masked
    model: Any = stage.model if masked is None else masked.model
    return StageStarted(
        stage=stage.name,
        steps=stage.settings.steps,
        tokens_per_step=stage.settings.batch_size * run.config.data.seq_len,
        parameters=count_parameters(model),
        shape=Target.of(model.config).sizes(),
        target=None if masked is None else masked.target.sizes(),
    )


def _kept(masked: MaskedModel) -> Kept:
    reached, final = masked.expected_sparsity(), masked.wanted_sparsity(masked.warmup_steps)
    return Kept(
        source=masked.source.sizes(),
        target=masked.target.sizes(),
        target_met={kind: abs(reached[kind] - final[kind]) <= MET_WITHIN for kind in reached},
        expected=reached,
        **masked.kept(),
    )
