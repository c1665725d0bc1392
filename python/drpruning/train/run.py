"""A whole run: base, prune, export, continue, export; then the same under other mixtures, to compare with.

The run folder says how far a run is: ``pruned/`` and ``export/`` appear, by a rename, when their stage is over; within
a stage the newest checkpoint does. So a run killed at any instant goes on by calling :func:`train` with
``resume=True``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from drpruning import __version__
from drpruning.config import RunConfig, TrainingConfig
from drpruning.corpus import Corpus
from drpruning.errors import DiskError, DrpruningError, StateError
from drpruning.files import UNWRITABLE, locked
from drpruning.hf.tokenizers import corpus_tokenizer
from drpruning.records import (
    Incident,
    JsonlSink,
    Record,
    RunEnded,
    RunStarted,
    Sink,
    StageEnded,
    cut_back,
    read_records,
    recorded_corpus,
)
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.compiling import compiling
from drpruning.train.deterministic import deterministic
from drpruning.train.device import choose_device
from drpruning.train.engine import Engine
from drpruning.train.evaluate import Evaluator
from drpruning.train.folder import RECIPE, RECORDS, check_run_folder, open_run_folder
from drpruning.train.inputs import check_recipe, open_corpus, with_reference_losses
from drpruning.train.ranks import Ranks
from drpruning.train.room import check_memory, check_room, writes_in_background
from drpruning.train.scoring import find_scoring
from drpruning.train.sharding import check_ranks
from drpruning.train.stages import Run, continue_pretraining, obtain_base, prune, start_anew, strategy
from drpruning.train.threads import choose_threads
from drpruning.train.trackers import open_tracker


@dataclass(frozen=True)
class Fanout:
    """One sink that tells several."""

    sinks: Sequence[Sink]

    def write(self, record: Record) -> None:
        """Passes ``record`` on to each."""
        for sink in self.sinks:
            sink.write(record)


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    watchers: Sequence[Sink] = (),
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> None:
    """Does everything a recipe asks for, in ``folder``.

    Args:
        config: The recipe.
        folder: The run folder; made if it is not there.
        resume: Go on with what is in ``folder``; without it a folder that is not empty is an error.
        watchers: Told of every record, beside ``folder/metrics.jsonl``.
        stop: Asked after every step; when true, the step's checkpoint is written and ``Interrupted`` raised.
        ranks: The processes of the run, where there are several (:func:`drpruning.train.ranks.joined`): each makes
            this call, with the same folder on a disk that all see.

    Raises:
        ConfigError: The recipe cannot work with this corpus and model, or the folder is in use; nothing was written.
        StateError: The folder belongs to another recipe, or another process is at work in it.
        CorpusError: The folder holds a run that was started on another corpus.
        DiskError: The folder cannot be written, or there is no room; what was complete stays so.
        SolverError: The training diverges, also from the last checkpoint on.
        RankError: Another process died or did not answer (raised by ``joined``).
        Interrupted: ``stop`` became true.
    """
    ranks = ranks or Ranks()
    try:
        ranks.agree(lambda: check_run_folder(folder, resume=resume))
        ranks.agree(lambda: open_corpus(config))  # one builds it where it is to be built
        corpus = open_corpus(config)
        source = ranks.agree(lambda: check_recipe(config, corpus))
        ranks.agree(lambda: check_ranks(config, ranks))
        find_scoring(config.evaluate, corpus_tokenizer(corpus), ranks)  # before anything is written
        ranks.agree(lambda: check_room(folder, config, source))
        ranks.agree(lambda: check_memory(config, source, ranks))
        config = ranks.agree(lambda: _opened(folder, config, source, resume=resume))
        with _ours(folder, ranks):
            run_in_folder(
                config, folder, corpus, source, notices=config.notices(), watchers=watchers, stop=stop, ranks=ranks
            )
            for name in config.compare:
                if name != config.mixture.strategy:
                    beside, other = folder / "compare" / name, config.with_strategy(name)
                    ranks.agree(partial(open_run_folder, beside, other, resume=True))
                    run_in_folder(other, beside, corpus, source, notices=[], watchers=watchers, stop=stop, ranks=ranks)
    except OSError as error:
        if isinstance(error, DrpruningError) or error.errno not in UNWRITABLE:
            raise
        raise DiskError(
            f"the run in {folder} cannot write: {error}; its last complete checkpoint is intact",
            "Make room or give leave to write, then go on with --resume.",
        ) from error


def _opened(folder: Path, config: RunConfig, source: Any, *, resume: bool) -> RunConfig:
    """The recipe to follow in ``folder``, which is made or taken up."""
    if (folder / RECIPE).is_file():  # it has the numbers that are chosen below
        return open_run_folder(folder, config, resume=resume)
    config = with_reference_losses(config, source)
    if config.training.threads == "auto":
        rows = (config.prune or config.continue_).batch_size
        config = config.with_threads(choose_threads(source, rows=rows, seq_len=config.data.seq_len))
    return open_run_folder(folder, config, resume=resume)


@contextmanager
def _ours(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keeps other runs out of ``folder``."""
    with ExitStack() as stack:

        def lock() -> None:
            try:
                stack.enter_context(locked(folder))
            except BlockingIOError as error:
                raise StateError(
                    f"another process is at work in {error.filename}", "Wait until it is done, or give another --out."
                ) from error

        ranks.agree(lock)
        yield


def run_in_folder(
    config: RunConfig,
    folder: Path,
    corpus: Corpus,
    source: Any,
    *,
    notices: Sequence[str],
    watchers: Sequence[Sink],
    stop: Callable[[], bool],
    ranks: Ranks,
) -> None:
    """Fills one run folder that is already open, from wherever it stands."""
    done = ranks.agree(lambda: list(read_records(folder / RECORDS)))
    corpus.check_fingerprint(
        recorded_corpus(done),
        f"the run {folder}",
        "Give the corpus the run was started with (data.corpus), or another --out.",
    )
    if any(isinstance(record, RunEnded) for record in done):
        return
    with open_run(config, folder, corpus, source, watchers=watchers, stop=stop, ranks=ranks) as run:
        sink = run.engine.sink
        if not done:
            sink.write(_run_started(run))
            for notice in notices:
                sink.write(Incident(what="setting without effect", detail=notice))
        base = None
        if config.model.source != "scratch":
            base = obtain_base(run)
        if "prune" in config.stages:
            assert base is not None
            prune(run, base)
        elif config.prune is not None:
            start_anew(run)
        continue_pretraining(run, base)
        seconds = sum(record.seconds for record in run.history() if isinstance(record, StageEnded))
        sink.write(RunEnded(seconds=round(seconds, 3)))


@contextmanager
def open_run(
    config: RunConfig,
    folder: Path,
    corpus: Corpus,
    source: Any,
    *,
    watchers: Sequence[Sink] = (),
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> Iterator[Run]:
    """What the stages of a run work with, in a folder that is there: records and checkpoints are open within.

    Args:
        config: The recipe.
        folder: The run folder.
        corpus: As the recipe names it.
        source: transformers configuration of the large model.
        watchers: As of :func:`train`.
        stop: As of :func:`train`.
        ranks: As of :func:`train`.
    """
    ranks, training = ranks or Ranks(), config.training
    if isinstance(training.threads, int):
        torch.set_num_threads(training.threads)

    def evaluator(tokens: int) -> Evaluator:
        rows = training.evaluation_batch_size
        return Evaluator.from_corpus(
            corpus, config.domains, seq_len=config.data.seq_len, tokens=tokens, batch_size=rows
        )

    device = choose_device(training.device, ranks)
    checkpoints = Checkpoints(
        folder / "checkpoints",
        keep=training.keep_checkpoints,
        recipe=config.hash(),
        ranks=ranks,
        background=writes_in_background(training, device),
    )
    with (
        recording(folder, training, watchers if ranks.first else (), ranks) as (file, sink),
        compiling(sink),
        deterministic(training.deterministic, compiled=training.compile),
        closing(checkpoints),
    ):
        yield Run(
            config=config,
            folder=folder,
            corpus=corpus,
            source=source,
            tokenizer=corpus_tokenizer(corpus),
            measuring=evaluator(training.measurement_tokens),
            engine=Engine(
                device=device,
                training=training,
                seed=config.seed,
                evaluator=evaluator(training.evaluation_tokens),
                sink=sink,
                checkpoints=checkpoints,
                written=lambda: 0 if file is None else file.tell(),
                cut_back=lambda size: None if file is None else cut_back(file.path, size),
                stop=stop,
                ranks=ranks,
                scoring=find_scoring(config.evaluate, corpus_tokenizer(corpus), ranks),
            ),
        )


@contextmanager
def recording(
    folder: Path, training: TrainingConfig, watchers: Sequence[Sink], ranks: Ranks
) -> Iterator[tuple[JsonlSink | None, Fanout]]:
    """Opens ``metrics.jsonl``; yields it, and the sink that tells it, the watchers and the recipe's tracker.

    Rank 0 writes; on the others nobody is told.
    """
    with ExitStack() as stack:
        if not ranks.first:
            yield None, Fanout(())
            return
        file = stack.enter_context(closing(JsonlSink(folder / RECORDS)))
        sinks: list[Sink] = [file, *watchers]
        if training.tracker != "none":
            sinks.append(stack.enter_context(closing(open_tracker(training.tracker, folder))))
        yield file, Fanout(sinks)


def _run_started(run: Run) -> RunStarted:
    config = run.config
    return RunStarted(
        name=config.name,
        recipe_hash=config.hash(),
        strategy=config.mixture.strategy,
        seed=config.seed,
        domains=config.domains,
        reference_ratio=dict(config.data.reference_ratio),
        rho=getattr(strategy(config, config.mixture.stages[0]), "rho", None),
        stages=config.stages,
        environment={
            "drpruning": __version__,
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if run.engine.device.type == "cuda" else platform.machine(),
            "threads": str(torch.get_num_threads()),
            "processes": str(run.engine.ranks.world_size),
            "corpus": run.corpus.fingerprint,
            "corpus_folder": str(run.corpus.folder),
        },
        evaluation_tokens=run.engine.evaluator.tokens,
        measurement_tokens=run.measuring.tokens,
    )
