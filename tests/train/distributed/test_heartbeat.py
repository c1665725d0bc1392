"""A rank is killed, stopped or stuck: the others name it and end with exit code 4, before NCCL's watchdog acts."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from drpruning.config import RunConfig, TrainingConfig
from drpruning.errors import RankError
from drpruning.train.distributed import ranks as module
from drpruning.train.distributed.heartbeat import Heartbeat, Position
from drpruning.train.distributed.ranks import Ranks, join_ranks
from tests.train.processes import start_ranks
from tests.train.test_run import Recipe

LIMIT = 3.0
RESUME = "The newest checkpoint is complete: start all ranks again with --resume."


PLACES = {
    "step": "step 1 of the pretrain stage",
    "evaluation": "the evaluation after step 2 of the pretrain stage",
    "checkpoint": "the checkpoint of step 2 of the pretrain stage",
}


def hasten(place: str, act: Callable[[], None] | None) -> None:
    """Make this process wait for others for ``LIMIT`` only from the mark of that name on; then call ``act``.

    Up to there a busy machine has time.
    """
    mark, done = Ranks.mark, False

    def passing(self: Ranks, name: str | None = None, **others: Any) -> None:
        nonlocal done
        mark(self, name, **others)
        if name == place and not done:
            done = True
            assert self.heartbeat is not None
            self.heartbeat.timeout, self.heartbeat.interval = LIMIT, LIMIT / 10
            groups = (distributed.group.WORLD, self.control, self.background)
            replace(self, timeout=timedelta(seconds=LIMIT)).set_timeout(
                [group for group in groups if group is not None]
            )
            if act is not None:
                act()

    Ranks.mark = passing  # type: ignore[method-assign]


def signal_itself(number: int) -> None:
    os.kill(os.getpid(), number)


def sleep() -> None:
    """Sleep like a stuck rank, or one that waits for a kernel of NCCL, which no timeout of gloo ends."""
    time.sleep(600)


def sleep_in_writes() -> None:
    """Sleep in writes of checkpoints, like a disk that does not answer."""
    from drpruning.train import checkpoint

    checkpoint.write_tensors = lambda path, parts: time.sleep(600)


def fail() -> None:
    raise ZeroDivisionError("a defect of this rank")


def change_a_gate(step: int) -> None:
    """Make this rank's first gate larger by the last bit before the evaluation after that step of the prune stage."""
    from drpruning.train import loop

    evaluate = loop.evaluate

    def changing(stage: Any, context: Any) -> None:
        if stage.masked is not None and stage.step == step:
            gate = next(iter(stage.masked.gates.values())).data.view(-1)
            gate[0] = torch.nextafter(gate[0], torch.tensor(torch.inf))
        evaluate(stage, context)

    loop.evaluate = changing


@pytest.fixture
def short(recipe: Recipe) -> RunConfig:
    """Return a recipe for two or three ranks, with a checkpoint and an evaluation after step 2 of each stage."""
    stage = {"steps": 4, "batch_size": 6, "eval_every": 2}
    return recipe(
        pretrain=stage,
        prune=stage,
        training={"checkpoint_every": 2, "distributed_timeout_s": 240, "final_eval_tokens": 256, "micro_batch_size": 2},
        **{"continue": stage},
    )


def lose(
    config: RunConfig,
    folder: Path,
    where: str,
    acts: Mapping[int, Callable[[], None]],
    *,
    lost: int,
    world_size: int = 3,
) -> dict[int, str]:
    """Run a recipe in which ranks act at a place, by which ``lost`` is lost; what each of the others printed.

    The others end with exit code 4.
    """
    (folder / "tiny.yaml").write_text(config.to_yaml())
    arguments = ["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]
    before = {rank: partial(hasten, PLACES[where], acts.get(rank)) for rank in range(world_size)}
    processes = start_ranks(arguments, folder / "log", world_size, before=before, DRPRUNING_CACHE=str(folder / "cache"))
    others = [rank for rank in range(world_size) if rank != lost]
    try:
        for rank in others:
            processes[rank].join(300)
        printed = {rank: (folder / f"log.{rank}").read_text() for rank in others}
        assert [processes[rank].exitcode for rank in others] == [4] * len(others), printed
        return printed
    finally:
        for process in processes:
            process.kill()  # SIGKILL also ends a stopped process
            process.join()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("where", PLACES)
def test_the_others_name_a_rank_that_is_killed_or_stopped(
    where: str, number: signal.Signals, short: RunConfig, tmp_path: Path
) -> None:
    printed = lose(short, tmp_path, where, {2: partial(signal_itself, number)}, lost=2)
    for rank, text in printed.items():
        error, next_step = text.splitlines()[-2:]
        assert error.startswith("RankError: rank 2 of 3 "), text
        assert f"rank {rank} waited in {PLACES[where]} (limit: training.distributed_timeout_s, 3 s)" in error
        assert next_step == RESUME


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_others_name_the_host_of_the_store(number: signal.Signals, short: RunConfig, tmp_path: Path) -> None:
    printed = lose(short, tmp_path, "step", {0: partial(signal_itself, number)}, lost=0)
    for text in printed.values():
        assert text.splitlines()[-2].startswith("RankError: rank 0 of 3, the host of the store, does not answer"), text


@pytest.mark.parametrize(("where", "act"), [("evaluation", sleep), ("checkpoint", sleep_in_writes)])
def test_the_others_name_a_rank_that_is_alive_but_stuck(
    where: str, act: Callable[[], None], short: RunConfig, tmp_path: Path
) -> None:
    printed = lose(short, tmp_path, where, {1: act}, lost=1)
    for text in printed.values():
        assert f"rank 1 of 3 sends heartbeats but did not arrive in time: it is in {PLACES[where]}" in text


def test_the_others_name_a_rank_that_ends_with_an_error(short: RunConfig, tmp_path: Path) -> None:
    printed = lose(short, tmp_path, "step", {2: fail}, lost=2)
    for text in printed.values():
        assert "RankError: rank 2 of 3 ended with ZeroDivisionError: a defect of this rank; rank " in text


def test_a_rank_that_waits_for_a_device_ends_too(short: RunConfig, tmp_path: Path) -> None:
    acts = {0: sleep, 1: partial(signal_itself, signal.SIGSTOP)}
    text = lose(short, tmp_path, "step", acts, lost=1, world_size=2)[0]
    error, next_step = text.splitlines()[-2:]
    assert error.startswith("RankError: rank 1 of 2 sends no heartbeat")
    assert "rank 0 waited in step 1 of the pretrain stage" in error
    assert next_step == RESUME


def test_gates_that_differ_are_an_error_that_names_the_rank(short: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(short.to_yaml())
    arguments = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    processes = start_ranks(arguments, tmp_path / "log", 3, before={1: partial(change_a_gate, 2)})
    for process in processes:
        process.join(300)
    text = (tmp_path / "log.0").read_text()
    assert [process.exitcode for process in processes] == [4, 4, 4], text
    assert "RankError: gates and multipliers after step 2 of the prune stage: 'layer' of rank 1 differs" in text
    assert "RankError" not in (tmp_path / "log.2").read_text()


def test_a_rank_behind_is_judged_by_later_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a rank when the wait begins: when it ends, fewer beats are missed than count as silence."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    store = distributed.HashStore()
    waiting, other = (Heartbeat(store, rank, 2, timeout=4.0) for rank in (0, 1))

    def exchange(heartbeat: Heartbeat) -> None:
        heartbeat._publish()
        heartbeat._read()

    other._publish()
    waiting._positions["main"] = Position(2, "step 2 of the prune stage", since=now)
    for tick in range(30):  # beats of 0.4 s: the other rank stops at once, 12 s pass
        now = 0.4 * tick
        exchange(waiting)
        loss = waiting.find()
        assert loss is None or "sends no heartbeat" in loss.how
        assert (loss is None) == (tick <= 10)
    other._positions["main"] = Position(1, "step 1 of the prune stage", since=now)
    exchange(other)
    exchange(waiting)
    alive = waiting.find()
    assert alive is not None
    assert alive.how == "rank 1 of 2 sends heartbeats but did not arrive in time: it is in step 1 of the prune stage"


def test_nccl_waits_longer_than_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(
        distributed, "init_process_group", lambda backend, timeout: limits.update({backend: timeout.total_seconds()})
    )

    def new_group(*, backend: str, timeout: timedelta) -> distributed.ProcessGroup:
        limits.setdefault(backend, timeout.total_seconds())
        assert limits[backend] == timeout.total_seconds()
        return distributed.ProcessGroup(0, 2)

    monkeypatch.setattr(distributed, "new_group", new_group)
    heartbeats = []

    def heartbeat(control: object, rank: int, world_size: int, limit: float) -> Heartbeat:
        heartbeats.append(Heartbeat(distributed.HashStore(), rank, world_size, limit))
        heartbeats[-1].start()
        heartbeats[-1]._store.set("0", json.dumps({"beat": 1, "positions": {}, "end": "", "loss": None}))
        return heartbeats[-1]

    monkeypatch.setattr(module, "_heartbeat", heartbeat)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with join_ranks("auto", timeout=60.0) as ranks:
        assert ranks.timeout == timedelta(seconds=360)
    assert limits == {"nccl": 360.0, "gloo": 60.0}
    assert heartbeats[0].timeout == 60.0


def test_groups_of_copies_get_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the groups of a mesh of copies and shards: torch creates them with its default, 600 s for NCCL."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from drpruning.train.distributed import fsdp

    found: dict[str, timedelta] = {}
    setter = "set_timeout" if hasattr(distributed, "set_timeout") else "_set_pg_timeout"
    owner = distributed if setter == "set_timeout" else distributed.distributed_c10d
    monkeypatch.setattr(owner, setter, lambda limit, group: found.update({group.group_name: limit}))
    monkeypatch.setattr(fsdp, "shard_model", lambda model, mesh, dtype: None)
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        ranks = Ranks(rank=0, world_size=4, local_size=2, timeout=timedelta(seconds=360))
        fsdp.place_model(torch.nn.Linear(2, 2), torch.device("cpu"), ranks, TrainingConfig(fsdp_shard="node"))
    finally:
        distributed.destroy_process_group()
    assert len(found) == 2
    assert set(found.values()) == {timedelta(seconds=360)}


def test_ranks_that_cannot_join_are_an_error_with_advice(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RankError, match=f"rank 0 of 2 cannot listen at localhost:{port}: the port is in use"):
            join_ranks("cpu", 1.0).__enter__()
    with pytest.raises(RankError, match=r"rank 0 of 2 cannot join the others .* 1/2 clients joined") as caught:
        join_ranks("cpu", 1.0).__enter__()
    assert "GLOO_SOCKET_IFNAME" in str(caught.value)
    capfd.readouterr()  # torch prints the stack of its error
