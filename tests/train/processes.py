"""Runs in separate processes, to be killed: forked from one that has torch loaded, since loading takes seconds."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["drpruning.cli.train", "drpruning.train.run", "torch.distributed.fsdp", "tests.train.processes"]
)
Process = CONTEXT.Process().__class__
gc.freeze()  # in the fork server: the collector of a child skips the objects of imported modules
atexit.register(gc.unfreeze)


def command(
    arguments: list[str], log: Path, environment: dict[str, str], before: Callable[[], None] | None = None
) -> None:
    """Run a command of ``drpruning`` in a child process, with its output in ``log``; call ``before`` first."""
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    from drpruning.cli import main

    if before is not None:
        before()
    main(arguments)


def start(  # type: ignore[valid-type]
    arguments: list[str], log: Path, *, before: Callable[[], None] | None = None, **environment: str
) -> Process:
    """Start ``drpruning`` with ``arguments``; ``before`` is called in the process first, and can be pickled."""
    environment = {"DRPRUNING_CACHE": os.environ["DRPRUNING_CACHE"], **environment}
    process = CONTEXT.Process(target=command, args=(arguments, log, environment, before))
    process.start()
    return process


def start_ranks(  # type: ignore[valid-type]
    arguments: list[str],
    log: Path,
    world_size: int,
    *,
    before: Mapping[int, Callable[[], None]] | None = None,
    **environment: str,
) -> list[Process]:
    """Start ``drpruning`` in several processes of one run, with torchrun's environment variables.

    Args:
        arguments: Of the command.
        log: Where rank N writes, with the suffix ``.N``.
        world_size: Number of processes.
        before: By rank what its process calls first.
        environment: Variables of all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world_size), **environment}
    shared["LOCAL_WORLD_SIZE"] = shared["WORLD_SIZE"]
    return [
        start(
            arguments,
            log.with_suffix(f".{rank}"),
            before=(before or {}).get(rank),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **shared,
        )
        for rank in range(world_size)
    ]


def until(happened: Callable[[], bool], process: Process) -> None:  # type: ignore[valid-type]
    """Wait until a condition holds, or the process ends."""
    while process.is_alive() and not happened():
        time.sleep(0.002)


def lines(run: Path) -> int:
    """Return the number of records of a run."""
    records = run / "metrics.jsonl"
    return records.read_bytes().count(b"\n") if records.exists() else 0


def kill_at(arguments: list[str], run: Path, log: Path, *, records: int) -> None:
    """Start a run and kill it after some records."""
    process = start(arguments, log)
    until(lambda: lines(run) >= records, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, log.read_text()


def on_ranks(work: Callable[..., T], world_size: int, *arguments: object) -> list[T]:
    """Return what ``work(*arguments)`` returns on each rank of a gloo group; an exception of any is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with CONTEXT.Pool(world_size) as pool:
        calls = [(work, rank, world_size, port, arguments) for rank in range(world_size)]
        return pool.starmap(_on_rank, calls, chunksize=1)


def _on_rank(work: Callable[..., T], rank: int, world_size: int, port: int, arguments: tuple[object, ...]) -> T:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world_size, timeout=timedelta(seconds=600))
    try:
        return work(*arguments)
    finally:
        distributed.destroy_process_group()
