"""Runs what has not been run, several at a time, and loses nothing: not to a failure, not to Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from drpruning.comparison.runs import Comparison, Job
from drpruning.errors import DrpruningError, ExitCode

POLL_SECONDS = 0.2
Outcome = Literal["finished", "found", "failed", "stopped"]


class Tell(Protocol):
    """Told what becomes of each run, as it happens."""

    def __call__(self, job: Job, outcome: Outcome, detail: str) -> None:
        """``detail`` is the reason of a failure, otherwise empty."""


@dataclass
class Progress:
    """How far a comparison is.

    Attributes:
        failed: Why, by run; the order is that in which they failed.
        stopped: Whether it was asked to stop before everything was run.
    """

    failed: dict[Job, str] = field(default_factory=dict)
    stopped: bool = False


def execute(comparison: Comparison, *, parallel: int, tell: Tell, stop: Callable[[], bool]) -> Progress:
    """Starts every run that is not finished, in order, at most ``parallel`` at a time.

    Where the recipe trains its base, the first run that needs one goes ahead of the others that need the same. A run
    that takes another's losses waits for it.

    Args:
        comparison: What to run.
        parallel: Runs at a time.
        tell: Told of each run that ends.
        stop: Asked all the time; when true, running ones write a checkpoint and nothing is started any more.
    """
    progress = Progress()
    waiting: list[Job] = []
    trained: set[int | None] = {None}  # seeds whose base is there; None is that of runs that wait for none
    for job in comparison.jobs():
        if job.finished:
            trained.add(comparison.base(job))
            tell(job, "found", "")
        else:
            waiting.append(job)
    # torch is loaded once, in a process from which those of the runs are forked; a crash is one run's
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drpruning.comparison.worker"])
    running: dict[Job, BaseProcess] = {}
    while running or (waiting and not progress.stopped):
        if stop() and not progress.stopped:
            progress.stopped = True
            for process in running.values():
                process.terminate()  # to a run: finish this step and save
        for job in [job for job, process in running.items() if process.exitcode is not None]:
            outcome, detail = _outcome(comparison, job, running.pop(job).exitcode, stopped=progress.stopped)
            if outcome == "finished":
                trained.add(comparison.base(job))
            elif outcome == "failed":
                progress.failed[job] = detail
            tell(job, outcome, detail)
        while not progress.stopped and len(running) < parallel:
            ready = _next(comparison, waiting, running, trained)
            if ready is None:
                break
            waiting.remove(ready)
            try:
                running[ready] = _start(context, comparison, ready)
            except DrpruningError as error:
                progress.failed[ready] = " ".join(error.message.split())
                tell(ready, "failed", progress.failed[ready])
        time.sleep(POLL_SECONDS)
    return progress


def _next(
    comparison: Comparison, waiting: Iterable[Job], running: Iterable[Job], trained: set[int | None]
) -> Job | None:
    """The first run that can start now; also one that never can, whose start says why."""
    under_way = {(job.name, job.seed) for job in (*waiting, *running)}
    training = {comparison.base(job) for job in running} - trained
    for job in waiting:
        if comparison.base(job) not in training and (comparison.waits_for(job), job.seed) not in under_way:
            return job
    return None


def _start(context: ForkServerContext, comparison: Comparison, job: Job) -> BaseProcess:
    config = comparison.config(job, comparison.references(job))
    base = comparison.folder / "bases" / f"seed-{job.seed}.json"
    process = context.Process(
        target=_work,
        args=(config.to_dict(), job.folder, base, job.method.model, log_of(comparison.folder, job)),
        name=job.label,
    )
    process.start()
    return process


def _work(recipe: dict[str, Any], folder: Path, base: Path, model: str | None, log: Path) -> None:
    """What the process of a run does; all it prints, libraries in C and a traceback included, goes into ``log``."""
    os.setpgid(0, 0)  # Ctrl-C goes to the comparison alone, which passes it on once
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    from drpruning.comparison.worker import work  # noqa: PLC0415 - torch, which a comparison that is over does not need

    work(recipe, folder, base, model)


def _outcome(comparison: Comparison, job: Job, exitcode: int | None, *, stopped: bool) -> tuple[Outcome, str]:
    if exitcode == 0 and job.finished:
        return "finished", ""
    if stopped and exitcode in (ExitCode.INTERRUPTED, -signal.SIGTERM):
        return "stopped", ""
    return "failed", _reason(log_of(comparison.folder, job), exitcode)


def log_of(folder: Path, job: Job) -> Path:
    """Where a run prints to."""
    return folder / "logs" / (f"{job.name}.txt" if job.method.model else f"{job.name}-seed-{job.seed}.txt")


def _reason(log: Path, exitcode: int | None) -> str:
    """The last line that a failed run has printed."""
    if exitcode is not None and exitcode < 0:
        return f"killed by signal {-exitcode}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].strip() if lines else f"it ended with exit code {exitcode} and printed nothing"
