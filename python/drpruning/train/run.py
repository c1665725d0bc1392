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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from drpruning import __version__
from drpruning.config import RunConfig, TrainingConfig
from drpruning.corpus import Corpus
from drpruning.errors import StateError
from drpruning.files import locked
from drpruning.records import (
    Incident,
    JsonlSink,
    Record,
    RunEnded,
    RunStarted,
    Sink,
    StageEnded,
    read_records,
)
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.evaluate import Evaluator
from drpruning.train.folder import RECIPE, RECORDS, check_run_folder, open_run_folder
from drpruning.train.inputs import check_recipe, open_corpus
from drpruning.train.loop import Engine
from drpruning.train.source import corpus_tokenizer
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
        StateError: The folder belongs to another recipe, or another process is at work in it.
        Interrupted: ``stop`` became true.
    """
    check_run_folder(folder, resume=resume)
    corpus = open_corpus(config)
    source = check_recipe(config, corpus)
    if config.training.threads == "auto" and not (folder / RECIPE).is_file():
        config = config.with_threads(choose_threads(source, rows=config.prune.batch_size, seq_len=config.data.seq_len))
    config = open_run_folder(folder, config, resume=resume)
    try:
        with locked(folder):
            run_in_folder(config, folder, corpus, source, notices=config.notices(), watchers=watchers, stop=stop)
            for name in config.compare:
                if name != config.reweight.strategy:
                    beside = folder / "compare" / name
                    other = open_run_folder(beside, config.with_strategy(name), resume=True)
                    run_in_folder(other, beside, corpus, source, notices=[], watchers=watchers, stop=stop)
    except BlockingIOError as error:
        raise StateError(
            f"another process is at work in {error.filename}", "Wait until it is done, or give another --out."
        ) from error


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
    done = list(read_records(folder / RECORDS))
    if any(isinstance(record, RunEnded) for record in done):
        return
    training = config.training
    if isinstance(training.threads, int):
        torch.set_num_threads(training.threads)

    def evaluator(tokens: int) -> Evaluator:
        rows = training.evaluation_batch_size
        return Evaluator.from_corpus(
            corpus, config.domains, seq_len=config.data.seq_len, tokens=tokens, batch_size=rows
        )

    with recording(folder, training, watchers) as (file, sink):
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
                sink=sink,
                checkpoints=Checkpoints(folder / "checkpoints", keep=training.keep_checkpoints),
                written=file.tell,
                stop=stop,
            ),
        )
        if not done:
            sink.write(_run_started(run))
            for notice in notices:
                sink.write(Incident(what="setting without effect", detail=notice))
        base = None
        if config.model.source == "scratch":
            start_anew(run)
        else:
            base = obtain_base(run)
            prune(run, base)
        continue_pretraining(run, base)
        seconds = sum(record.seconds for record in run.history() if isinstance(record, StageEnded))
        sink.write(RunEnded(seconds=round(seconds, 3)))


@contextmanager
def recording(folder: Path, training: TrainingConfig, watchers: Sequence[Sink]) -> Iterator[tuple[JsonlSink, Fanout]]:
    """Opens ``metrics.jsonl``; yields it, and the sink that tells it, the watchers and the recipe's tracker."""
    with ExitStack() as stack:
        file = stack.enter_context(closing(JsonlSink(folder / RECORDS)))
        sinks: list[Sink] = [file, *watchers]
        if training.tracker != "none":
            sinks.append(stack.enter_context(closing(open_tracker(training.tracker, folder))))
        yield file, Fanout(sinks)


def choose_device(device: str) -> torch.device:
    """The device named, or the first GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _run_started(run: Run) -> RunStarted:
    config = run.config
    return RunStarted(
        name=config.name,
        recipe_hash=config.hash(),
        strategy=config.reweight.strategy,
        seed=config.seed,
        domains=config.domains,
        reference_ratio=dict(config.data.reference_ratio),
        rho=getattr(strategy(config, config.reweight.stages[0]), "rho", None),
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
