"""Process pool: worker processes that live for one preparation and end with it.

Workers are plain subprocesses that receive tasks over their pipes. multiprocessing would import the caller's main
module in each worker, which fails in a notebook or a script without a guard, and forking a process that has threads
can deadlock.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Hashable, Iterable, Iterator
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from drpruning.errors import CorpusError
from drpruning.prepare.pipeline.tasks import Result, Task, TaskRunner

Key = TypeVar("Key", bound=Hashable)

TASKS_PER_WORKER = 2
"""Tasks queued or running per worker: no worker waits while the next task is read, and few tasks are in memory."""

_WORKER_CODE = "from drpruning.prepare.pipeline.process_pool import run_worker; run_worker()"


class ProcessPool:
    """Runs tasks with a :class:`TaskRunner` in worker processes, or in this process for one worker.

    Args:
        runner: Runs the tasks. Each worker process loads the tokenizer separately.
        workers: Number of processes. One: no process is started.
    """

    def __init__(self, runner: TaskRunner, workers: int = 1) -> None:
        self.runner = runner
        self.workers = workers
        self.processes: list[_WorkerProcess] = []

    def run(self, tasks: Iterable[tuple[Key, Task]]) -> Iterator[tuple[Key, Result]]:
        """Yield the result of each task with its key, in the order of completion.

        Raises:
            CorpusError: A worker process ended during a task.
            Exception: An exception of a task.
        """
        if self.workers == 1:
            for key, task in tasks:
                yield key, self.runner.run(task)
            return
        todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        if not self.processes:
            settings = self.runner.settings
            self.processes = [_WorkerProcess(TaskRunner(settings)) for _ in range(self.workers)]
        threads = [threading.Thread(target=process.work, args=(todo, done), daemon=True) for process in self.processes]
        for thread in threads:
            thread.start()
        remaining = iter(tasks)
        pending, more = 0, True
        try:
            while more or pending:
                while more and pending < TASKS_PER_WORKER * self.workers:
                    item = next(remaining, None)
                    if item is None:
                        more = False
                    else:
                        todo.put(item)
                        pending += 1
                if pending:
                    key, result = done.get()
                    pending -= 1
                    if isinstance(result, BaseException):
                        raise result
                    yield key, result
        finally:
            for _ in threads:
                todo.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.end()


class _WorkerProcess:
    """A worker process and the thread that serves it."""

    def __init__(self, runner: TaskRunner) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TOKENIZERS_PARALLELISM": "false",  # a worker uses one core
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-c", _WORKER_CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._send(runner)

    def work(self, todo: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
        while (item := todo.get()) is not None:
            key, task = item
            try:
                self._send(task)
                assert self.process.stdout is not None
                done.put((key, pickle.load(self.process.stdout)))  # noqa: S301 - written by our worker process
            except (EOFError, OSError, ValueError, pickle.UnpicklingError):  # ValueError: `end` has closed the pipe
                done.put((key, self._exit_error()))
                return
            except Exception as error:  # a task that cannot be pickled; the caller of `run` must see it
                done.put((key, error))
                return

    def end(self) -> None:
        self.process.kill()  # complete blocks are on the disk; incomplete ones are tokenized again
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, value: object) -> None:
        assert self.process.stdin is not None
        pickle.dump(value, self.process.stdin, pickle.HIGHEST_PROTOCOL)
        self.process.stdin.flush()

    def _exit_error(self) -> CorpusError:
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        why = " (out of memory?)" if code == -signal.SIGKILL else ""
        return CorpusError(
            f"a worker process {how}{why} during a task",
            "Complete blocks are kept: rerun the same command to resume; --workers sets the number of workers.",
        )


def run_worker() -> None:
    """Serve as a worker process: receive a runner, then tasks, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which ends its workers
    results: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of a library must not mix with the results
    tasks = sys.stdin.buffer
    try:
        runner = pickle.load(tasks)  # noqa: S301 - written by the parent
        while True:
            task = pickle.load(tasks)  # noqa: S301 - written by the parent
            try:
                result: Any = runner.run(task)
            except Exception as error:  # raised again by the parent
                result = _picklable_error(error)
            pickle.dump(result, results, pickle.HIGHEST_PROTOCOL)
            results.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)


def _picklable_error(error: Exception) -> Exception:
    """Return ``error``, or a ``CorpusError`` with its message if pickling loses it."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled in this expression
    except Exception:  # whatever its constructor raises
        return CorpusError(f"{type(error).__name__}: {error}")
    return error
