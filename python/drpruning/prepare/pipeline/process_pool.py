"""Several processes that do tasks: started for one preparation, ended with it, whatever happens to either.

They are plain subprocesses that speak over their pipes. multiprocessing would import the caller's main module again,
which a notebook or a script without a guard does not survive, and forking a process that has threads can hang.
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
from drpruning.prepare.work import Result, Station, Task

Key = TypeVar("Key", bound=Hashable)

WAITING = 2
"""Tasks under way or waiting for each worker: none is idle while the next is read, and few are in memory."""

_START = "from drpruning.prepare.workers import serve; serve()"


class Pool:
    """Does tasks with a :class:`Station`, in this process if one worker is enough, else in others.

    Args:
        station: What every worker works with; each loads the tokenizer by itself.
        workers: Processes. One: no other process is started.
    """

    def __init__(self, station: Station, workers: int = 1) -> None:
        self.station = station
        self.workers = workers
        self.children: list[_Child] = []

    def run(self, tasks: Iterable[tuple[Key, Task]]) -> Iterator[tuple[Key, Result]]:
        """The result of each task with its key, in the order in which they are done.

        Raises:
            CorpusError: A worker ended before its task.
            Exception: What a task raised.
        """
        if self.workers == 1:
            for key, task in tasks:
                yield key, self.station.perform(task)
            return
        todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        if not self.children:
            settings = self.station.settings
            self.children = [_Child(Station(settings)) for _ in range(self.workers)]
        threads = [threading.Thread(target=child.work, args=(todo, done), daemon=True) for child in self.children]
        for thread in threads:
            thread.start()
        coming = iter(tasks)
        under_way, more = 0, True
        try:
            while more or under_way:
                while more and under_way < WAITING * self.workers:
                    item = next(coming, None)
                    if item is None:
                        more = False
                    else:
                        todo.put(item)
                        under_way += 1
                if under_way:
                    key, result = done.get()
                    under_way -= 1
                    if isinstance(result, BaseException):
                        raise result
                    yield key, result
        finally:
            for _ in threads:
                todo.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for child in self.children:
            child.end()


class _Child:
    """A process that serves one thread."""

    def __init__(self, station: Station) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TOKENIZERS_PARALLELISM": "false",  # a worker is one core
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._send(station)

    def work(self, todo: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
        while (item := todo.get()) is not None:
            key, task = item
            try:
                self._send(task)
                assert self.process.stdout is not None
                done.put((key, pickle.load(self.process.stdout)))  # noqa: S301 - of our own child
            except (EOFError, OSError, ValueError, pickle.UnpicklingError):  # ValueError: `end` has closed the pipe
                done.put((key, self._died()))
                return
            except Exception as error:  # a task that cannot be pickled; who waits for it must hear of it
                done.put((key, error))
                return

    def end(self) -> None:
        self.process.kill()  # what is finished is on the disk, what is not will be made again
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, what: object) -> None:
        assert self.process.stdin is not None
        pickle.dump(what, self.process.stdin, pickle.HIGHEST_PROTOCOL)
        self.process.stdin.flush()

    def _died(self) -> CorpusError:
        code = self.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        why = " (out of memory?)" if code == -signal.SIGKILL else ""
        return CorpusError(
            f"a worker {how}{why} before its task was done",
            "Nothing finished is lost: the same command goes on from there; --workers takes fewer at once.",
        )


def serve() -> None:
    """What a worker does: a station comes, then tasks, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    tasks = sys.stdin.buffer
    try:
        station = pickle.load(tasks)  # noqa: S301 - of the parent
        while True:
            task = pickle.load(tasks)  # noqa: S301 - of the parent
            try:
                result: Any = station.perform(task)
            except Exception as error:  # raised again by the parent
                result = _portable(error)
            pickle.dump(result, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)


def _portable(error: Exception) -> Exception:
    """``error``, or if that does not survive pickling, its words."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:  # whatever its constructor raises
        return CorpusError(f"{type(error).__name__}: {error}")
    return error
