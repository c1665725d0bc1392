"""Schedule the runs of a comparison, several at a time; a failed or interrupted run does not stop the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, parent_process, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from drpruning.comparison.runs import Comparison, Job
from drpruning.errors import DrpruningError, ExitCode, StateError
from drpruning.files import check_unix, create_file
from drpruning.train.signals import SCHEDULER_SIGNALS

POLL_SECONDS = 0.2
Outcome = Literal["finished", "existing", "failed", "interrupted"]


class JobCallback(Protocol):
    """Called when a run ends."""

    def __call__(self, job: Job, outcome: Outcome, detail: str) -> None:
        """Receive the outcome of ``job``; ``detail`` is the reason of a failure, otherwise empty."""


@dataclass
class ScheduleResult:
    """How far a comparison is.

    Attributes:
        failed: The reason by failed run, in the order of the failures.
        interrupted: Whether ``stop`` became true before every run had finished.
    """

    failed: dict[Job, str] = field(default_factory=dict)
    interrupted: bool = False


def run_jobs(comparison: Comparison, *, parallel: int, on_end: JobCallback, stop: Callable[[], bool]) -> ScheduleResult:
    """Start every run that is not finished, in order, at most ``parallel`` at a time.

    If the recipe trains its base, the first run that needs a base starts before the other runs with the same base. A
    run that takes reference losses or its mixture from other runs waits for them.

    Args:
        comparison: The runs.
        parallel: Maximum number of runs at a time.
        on_end: Called for each run that ends.
        stop: Polled; once true, running processes write a checkpoint, and no other run starts.

    Raises:
        StateError: The remaining runs wait for each other.
    """
    check_unix()
    result = ScheduleResult()
    waiting: list[Job] = []
    bases: set[int | None] = {None}  # seeds whose base exists; None is the seed of runs that need no base
    for job in comparison.jobs():
        if job.finished:
            bases.add(comparison.base(job))
            on_end(job, "existing", "")
        else:
            waiting.append(job)
    context = _fork_server()
    running: dict[Job, BaseProcess] = {}
    while running or (waiting and not result.interrupted):
        if stop() and not result.interrupted:
            result.interrupted = True
            for process in running.values():
                process.terminate()  # a run then finishes its step and writes a checkpoint
        for job in [job for job, process in running.items() if process.exitcode is not None]:
            outcome, detail = _outcome(comparison, job, running.pop(job).exitcode, interrupted=result.interrupted)
            if outcome == "finished":
                bases.add(comparison.base(job))
            elif outcome == "failed":
                result.failed[job] = detail
            on_end(job, outcome, detail)
        while not result.interrupted and len(running) < parallel:
            ready = _next_job(comparison, waiting, running, bases)
            if ready is None:
                break
            waiting.remove(ready)
            try:
                running[ready] = _start(context, comparison, ready)
            except DrpruningError as error:
                result.failed[ready] = " ".join(error.message.split())
                on_end(ready, "failed", result.failed[ready])
        time.sleep(POLL_SECONDS)
    return result


def log_path(folder: Path, job: Job) -> Path:
    """Return the file with the output of a run."""
    return folder / "logs" / (f"{job.name}.txt" if job.method.model else f"{job.name}-seed-{job.seed}.txt")


def _next_job(
    comparison: Comparison, waiting: Sequence[Job], running: Collection[Job], bases: set[int | None]
) -> Job | None:
    """Return the first run that can start now, or that never can and raises the reason when it starts.

    Raises:
        StateError: The waiting runs wait for each other.
    """
    unfinished = {*waiting, *running}
    in_training = {comparison.base(job) for job in running} - bases
    for job in waiting:
        if comparison.base(job) not in in_training and not comparison.waits_for(job) & unfinished:
            return job
    if waiting and not running:
        others = sorted(other.label for other in comparison.waits_for(waiting[0]) & unfinished)
        raise StateError(
            f"no run can start: {waiting[0].label} waits for {', '.join(others)}, which cannot start either"
        )
    return None


def _fork_server() -> ForkServerContext:
    """Start the process that forks the runs' processes: it loads torch once, and a crash ends one run only.

    A scheduler, or ``timeout``, signals the whole process group. The fork server blocks these signals: if it ended, the
    exit codes of the runs would be lost. A Python process has one fork server, so all its processes, also those that
    others start, unblock them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drpruning.comparison.unblock_signals", "drpruning.comparison.worker"])
    resource_tracker.ensure_running()  # its start unblocks SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SCHEDULER_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _start(context: ForkServerContext, comparison: Comparison, job: Job) -> BaseProcess:
    config = comparison.config(job, comparison.references(job), comparison.average(job), comparison.budget(job))
    base = comparison.folder / "bases" / f"seed-{job.seed}.json"
    process = context.Process(
        target=_work,
        args=(config.to_dict(), job.folder, base, job.method.model, log_path(comparison.folder, job)),
        name=job.label,
    )
    process.start()
    return process


def _work(recipe: dict[str, Any], folder: Path, base: Path, model: str | None, log: Path) -> None:
    """Run in the process of a run; all output, of C libraries and tracebacks too, goes to ``log``."""
    os.setpgid(0, 0)  # signals to the group reach only the comparison's process, which terminates this one
    threading.Thread(target=_stop_with_scheduler, daemon=True).start()
    log.parent.mkdir(parents=True, exist_ok=True)
    with create_file(log) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from drpruning.comparison.worker import work  # noqa: PLC0415 - torch, which a finished comparison does not need

    work(recipe, folder, base, model)


def _stop_with_scheduler() -> None:
    """Terminate this process, which then writes a checkpoint, if the comparison's process is killed.

    Otherwise the run would continue, and the same command, which resumes it, would find its folder locked.
    """
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _outcome(comparison: Comparison, job: Job, exitcode: int | None, *, interrupted: bool) -> tuple[Outcome, str]:
    if exitcode == 0 and job.finished:
        return "finished", ""
    if interrupted and exitcode in (ExitCode.RESUMABLE, ExitCode.INTERRUPTED, -signal.SIGTERM):
        return "interrupted", ""
    return "failed", _reason(log_path(comparison.folder, job), exitcode)


def _reason(log: Path, exitcode: int | None) -> str:
    """Return the last line that a failed run printed."""
    if exitcode is not None and exitcode < 0:
        return f"killed by signal {-exitcode}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].strip() if lines else f"the run ended with exit code {exitcode} and printed nothing"
