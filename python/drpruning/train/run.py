"""A whole run: base, prune, continue; then the same under the other strategies of the recipe.

The run folder holds the progress: ``pruned/`` and ``export/`` appear, by a rename, when their stage is complete; within
a stage the newest checkpoint counts. A run that is killed at any instant resumes by ``train(..., resume=True)``.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from drpruning import __version__
from drpruning.config import RunConfig, TrainingConfig
from drpruning.corpus import Split
from drpruning.errors import DiskError, DrpruningError, StateError
from drpruning.files import UNWRITABLE, locked, truncate
from drpruning.formatting import shares_in_words
from drpruning.prepare.recipe_corpus import open_corpus
from drpruning.recipes import with_shares
from drpruning.records import (
    Incident,
    JsonlSink,
    Record,
    RunEnded,
    RunStarted,
    Sink,
    StageEnded,
    flops_of_stages,
    read_records,
    recorded_corpus,
)
from drpruning.run_folder import RunFolder, check_run_folder
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.compiling import compiling
from drpruning.train.context import TrainContext
from drpruning.train.deterministic import deterministic
from drpruning.train.device import choose_device
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.loggers import open_logger
from drpruning.train.preflight import PreflightResult, check, with_chosen_numbers, writes_in_background
from drpruning.train.stages import continue_pretraining, get_base, initialize_target_model, prune, stage_strategy
from drpruning.train.state import check_saved
from drpruning.train.stored_recipe import open_run_folder
from drpruning.train.validation import Validator


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    watchers: Sequence[Sink] = (),
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> None:
    """Run a recipe in ``folder``: all its stages, then those of the other strategies of ``compare``.

    Args:
        config: The recipe.
        folder: The run folder; created if it does not exist.
        resume: Continue the run in ``folder``; without it a folder that is not empty is an error.
        watchers: Sinks of the records, in addition to ``folder/metrics.jsonl``.
        stop: Called after every step; if it returns True, the step's checkpoint is written and ``Interrupted`` raised.
        ranks: The processes of the run, where there are several
            (:func:`drpruning.train.distributed.ranks.join_ranks`). Each of them makes this call, with the same folder
            on a disk that all processes share.

    Raises:
        ConfigError: The recipe cannot work with this corpus and model, or the folder is in use; nothing was written.
        StateError: The folder belongs to another recipe, or another process uses it.
        CorpusError: The run in the folder was started on another corpus.
        DiskError: The folder cannot be written, or the disk is full; complete checkpoints stay intact.
        SolverError: The training diverges, also after rollbacks.
        RankError: Another process died or did not answer (raised by ``join_ranks``).
        Interrupted: ``stop`` returned True.
    """
    ranks, run_folder = ranks or Ranks(), RunFolder(folder)
    with disk_errors(run_folder):
        ranks.agree(lambda: check_run_folder(run_folder, resume=resume))
        ranks.do(lambda: open_corpus(config))  # rank 0 builds it where it must be built
        corpus, names = open_corpus(config), config.mixture_names
        config = ranks.agree(partial(with_shares, config, corpus.tokens()))
        checked = check(config, corpus, run_folder, ranks)
        config = ranks.agree(lambda: create_or_open(run_folder, checked, resume=resume))
        with exclusive(run_folder, ranks):
            run_in_folder(
                replace(checked, config=config), run_folder, watchers, stop, ranks, first_incidents(config, names)
            )
            for name in config.also_run:
                if name != config.mixture.strategy:
                    compared, other = replace(checked, config=config.with_strategy(name)), run_folder.compare(name)
                    ranks.agree(partial(open_run_folder, other, compared.config, resume=True))
                    run_in_folder(compared, other, watchers, stop, ranks)


def create_or_open(folder: RunFolder, checked: PreflightResult, *, resume: bool) -> RunConfig:
    """Create the run folder with the recipe's chosen numbers, or open an existing one, which holds them.

    Raises:
        ConfigError, StateError, LossTableError: As :func:`open_run_folder` and :func:`with_chosen_numbers`.
    """
    config = checked.config
    if not folder.exists:
        config = with_chosen_numbers(config, checked.base_config)
    return open_run_folder(folder, config, resume=resume)


def first_incidents(config: RunConfig, names: Mapping[str, str]) -> list[Incident]:
    """Return the first incidents of a run: what its reader needs from the start.

    Args:
        config: The recipe, with shares.
        names: The names of static mixtures that it had in their place, by setting.

    Returns:
        The shares of each name, and each setting without effect.
    """
    ratios = {"data.reference_ratio": config.reference_ratio, "pretrain.mixture": config.pretrain_ratio}
    resolved = [
        Incident(what="static mixture", detail=f"{setting} {name}: {shares_in_words(ratios[setting])}")
        for setting, name in names.items()
    ]
    return resolved + [Incident(what="setting without effect", detail=notice) for notice in config.notices()]


def run_in_folder(
    checked: PreflightResult,
    folder: RunFolder,
    watchers: Sequence[Sink],
    stop: Callable[[], bool],
    ranks: Ranks,
    incidents: Sequence[Incident] = (),
) -> None:
    """Run the remaining stages in a run folder that is open.

    Args:
        checked: The recipe after its preflight.
        folder: The run folder.
        watchers: As of :func:`train`.
        stop: As of :func:`train`.
        ranks: As of :func:`train`.
        incidents: Recorded once, at the start: see :func:`first_incidents`.
    """
    config = checked.config
    history = ranks.agree(lambda: list(read_records(folder.metrics)))
    checked.corpus.check_fingerprint(
        recorded_corpus(history),
        f"the run {folder.path}",
        "Give the corpus the run was started with (data.corpus), or another --out.",
    )
    if any(isinstance(record, RunEnded) for record in history):
        return
    with build_context(checked, folder, watchers=watchers, stop=stop, ranks=ranks) as context:
        if not history:
            context.sink.write(_run_started(context))
            for incident in incidents:
                context.sink.write(incident)
        base = None if config.model.source == "scratch" else get_base(context)
        if base is not None and "prune" in config.stages:
            prune(context, base)
        elif config.prune is not None:
            initialize_target_model(context)
        continue_pretraining(context, base)
        ended = [record for record in context.history() if isinstance(record, StageEnded)]
        seconds, flops = sum(record.seconds for record in ended), flops_of_stages(ended)
        context.sink.write(
            RunEnded(seconds=round(seconds, 3), charged_flops=flops.charged, flops=asdict(flops)),
        )


@contextmanager
def build_context(
    checked: PreflightResult,
    folder: RunFolder,
    *,
    watchers: Sequence[Sink] = (),
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> Iterator[TrainContext]:
    """Build the context of a run's stages; records and checkpoints are open within the block.

    Args:
        checked: The recipe after its preflight.
        folder: The run folder; it exists.
        watchers: As of :func:`train`.
        stop: As of :func:`train`.
        ranks: As of :func:`train`.
    """
    config, ranks = checked.config, ranks or Ranks()
    training = config.training
    if isinstance(training.threads, int):
        torch.set_num_threads(training.threads)

    def validator(split: Split, tokens: int) -> Validator:
        return Validator.from_corpus(
            checked.corpus,
            config.domains,
            seq_len=config.data.seq_len,
            tokens=tokens,
            batch_size=training.eval_batch_size,
            split=split,
        )

    device = choose_device(training.device, ranks)
    checkpoints = Checkpoints(
        folder.checkpoints,
        keep=training.keep_checkpoints,
        recipe=config.hash(),
        ranks=ranks,
        background=writes_in_background(training, device),
        check=check_saved,
    )
    with (
        recording(folder, training, watchers if ranks.first else (), ranks) as (file, sink),
        compiling(sink),
        deterministic(training.deterministic, compiled=training.compile),
        closing(checkpoints),
    ):
        yield TrainContext(
            config=config,
            folder=folder,
            corpus=checked.corpus,
            base_config=checked.base_config,
            tokenizer=checked.tokenizer,
            device=device,
            ranks=ranks,
            validator=validator("validation", training.eval_tokens),
            final_validator=validator("test", training.final_eval_tokens),
            sink=sink,
            checkpoints=checkpoints,
            records_size=lambda: 0 if file is None else file.size,
            truncate_records=lambda size: None if file is None else truncate(file.path, size),
            stop=stop,
            task_eval=checked.task_eval,
        )


@dataclass(frozen=True)
class TeeSink:
    """A sink that passes each record to several."""

    sinks: Sequence[Sink]

    def write(self, record: Record) -> None:
        """Pass ``record`` to each sink."""
        for sink in self.sinks:
            sink.write(record)


@contextmanager
def recording(
    folder: RunFolder, training: TrainingConfig, watchers: Sequence[Sink], ranks: Ranks
) -> Iterator[tuple[JsonlSink | None, TeeSink]]:
    """Open ``metrics.jsonl``; yield it, and the sink of that file, the watchers and the recipe's logger.

    Rank 0 writes; the sinks of other ranks are empty.
    """
    with ExitStack() as stack:
        if not ranks.first:
            yield None, TeeSink(())
            return
        file = stack.enter_context(closing(JsonlSink(folder.metrics)))
        sinks: list[Sink] = [file, *watchers]
        if training.logger != "none":
            sinks.append(stack.enter_context(closing(open_logger(training.logger, folder))))
        yield file, TeeSink(sinks)


@contextmanager
def disk_errors(folder: RunFolder) -> Iterator[None]:
    """Raise DiskError for errors of a full, read-only or forbidden disk."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DrpruningError) or error.errno not in UNWRITABLE:
            raise
        raise DiskError(
            f"the run in {folder.path} cannot write: {error}; its last complete checkpoint is intact",
            "Free disk space or fix permissions, then rerun with --resume.",
        ) from error


@contextmanager
def exclusive(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """Lock ``folder`` against other runs.

    Raises:
        StateError: Another process has the lock.
    """
    with ExitStack() as stack:

        def lock() -> None:
            try:
                stack.enter_context(locked(folder.path))
            except BlockingIOError as error:
                raise StateError(
                    f"another process uses {error.filename}", "Wait until it ends, or give another --out."
                ) from error

        ranks.agree(lock)
        yield


def _run_started(context: TrainContext) -> RunStarted:
    config = context.config
    return RunStarted(
        name=config.name,
        recipe_hash=config.hash(),
        strategy=config.mixture.strategy,
        seed=config.seed,
        domains=config.domains,
        reference_ratio=dict(config.reference_ratio),
        rho=getattr(stage_strategy(config, config.mixture.stages[0]), "rho", None),
        stages=config.stages,
        environment={
            "drpruning": __version__,
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": torch.cuda.get_device_name() if context.device.type == "cuda" else platform.machine(),
            "threads": str(torch.get_num_threads()),
            "processes": str(context.ranks.world_size),
            "corpus": context.corpus.fingerprint,
            "corpus_folder": str(context.corpus.folder),
        },
        eval_tokens=context.validator.tokens,
        final_eval_tokens=context.final_validator.tokens,
    )
