"""The processes of one run, and the operations between them; without effect in a run of one process.

Rank 0 alone reads and writes the small files of the run folder and decides; the decisions are broadcast. Tensors of
which each rank has a part are summed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # documented there

from drpruning.errors import DrpruningError, RankError
from drpruning.train.distributed.heartbeat import BACKGROUND, MAIN, Heartbeat

T = TypeVar("T")

RAISED_ON_RANK_0 = "raised on rank 0"
"""Note on an error that rank 0 reports to the user."""

LOST = ("connection", "timed out", "timeout", "gloo", "nccl", "socket", "broken pipe", "peer")
"""Words in the RuntimeErrors that torch raises for a dead or silent rank, whatever the backend."""

NCCL_MARGIN = 300.0
"""Seconds by which the timeout of NCCL exceeds that of gloo and of the heartbeats.

NCCL's watchdog ends the process with SIGABRT and does not name the rank. It counts from the enqueueing of an operation,
which is at most one step before the main thread begins to wait, and the heartbeats take up to 7 s more (GRACE, two
rounds). So our error comes first if a step takes less than 280 s.
"""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, from the view of one of them.

    Args:
        rank: Rank of this process.
        world_size: Number of processes.
        local_rank: Rank of this process on its node: the index of its GPU.
        local_size: Number of processes on this node.
        control: Process group for decisions and checkpoints, over the CPU; None for one process.
        background: Another one for checkpoints that are written while training continues.
        heartbeat: Finds the rank that the others wait for.
        timeout: Timeout of an operation on the device; for process groups created later.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: distributed.ProcessGroup | None = None
    background: distributed.ProcessGroup | None = None
    heartbeat: Heartbeat | None = None
    timeout: timedelta | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which decides and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world_size == 1

    def mark(self, place: str | None = None, *, group: distributed.ProcessGroup | None = None, count: int = 1) -> None:
        """Pass marks, as every rank does at this point; an error then names the rank that others wait for.

        Args:
            place: Name of the point, e.g. ``step 5 of the prune stage``; None: the name of the mark before.
            group: :attr:`background` in the thread that writes checkpoints.
            count: Number of marks.
        """
        if self.heartbeat is not None:
            in_background = group is not None and group is self.background
            self.heartbeat.mark(place, thread=BACKGROUND if in_background else MAIN, count=count)

    def agree(self, decide: Callable[[], T], group: distributed.ProcessGroup | None = None) -> T:
        """Call ``decide`` on rank 0, and return its result or raise its error on every rank.

        Args:
            decide: Called on rank 0 only; returns an object that can be pickled.
            group: The process group; None: :attr:`control`.
        """
        if self.alone:
            return decide()
        outcome: list[Any] = [None, None]
        self.mark(group=group, count=1 if self.first else 2)  # the others are ahead of rank 0 until it has decided
        if self.first:
            try:
                outcome[0] = decide()
            except (DrpruningError, OSError) as error:
                outcome[1] = error
            self.mark(group=group)
        distributed.broadcast_object_list(outcome, src=0, group=group or self.control)
        if outcome[1] is not None:
            if not self.first:
                outcome[1].add_note(RAISED_ON_RANK_0)
            raise outcome[1]
        decided: T = outcome[0]
        return decided

    def do(self, action: Callable[[], Any]) -> None:
        """Call ``action`` on rank 0 while the others wait; raise its error on every rank."""

        def act() -> None:
            action()

        self.agree(act)

    def gather(self, value: T, group: distributed.ProcessGroup | None = None) -> list[T]:
        """Return the values of all ranks, in their order, on every rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.world_size
        self.mark(group=group)
        distributed.all_gather_object(values, value, group=group or self.control)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` over the ranks, in place, and return it; bit for bit the same on each."""
        if not self.alone:
            distributed.all_reduce(tensor)
        return tensor

    def sum_on_host(self, tensor: Tensor) -> Tensor:
        """Sum a tensor in the memory of the CPU over the ranks, in place, and return it."""
        if not self.alone:
            self.mark()
            distributed.all_reduce(tensor, group=self.control)
        return tensor

    def set_timeout(self, groups: Iterable[distributed.ProcessGroup]) -> None:
        """Set the timeout of the process groups of a mesh, which torch creates with its default: 600 s for NCCL."""
        set_timeout = getattr(distributed, "set_timeout", distributed.distributed_c10d._set_pg_timeout)
        for group in groups:
            if self.timeout is not None:
                set_timeout(self.timeout, group)

    def check_equal(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Compare replicated tensors over the ranks, bit for bit, by their hashes.

        Args:
            tensors: Small tensors, by name; copied to the host.
            what: Their name in the error.

        Raises:
            RankError: A rank holds other bits than most ranks; the error names the ranks and the first such tensor.
        """
        if self.alone:
            return
        hashes = self.gather({name: _hash(tensor) for name, tensor in tensors.items()})
        for name in tensors:
            of_ranks = [each[name] for each in hashes]
            usual = max(of_ranks, key=of_ranks.count)  # of equally many the one of the lowest rank
            if odd := tuple(rank for rank, each in enumerate(of_ranks) if each != usual):
                error = RankError(
                    f"{what}: {name!r} of rank {', '.join(map(str, odd))} differs from that of the other ranks "
                    f"(of {self.world_size}), expected the same bits on each",
                    "Start all ranks again with --resume: each loads the newest checkpoint, which holds one copy.",
                    ranks=odd,
                )
                if not self.first:
                    error.add_note(RAISED_ON_RANK_0)
                raise error

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on any rank."""
        if self.alone:
            return flag
        flags = torch.tensor(int(flag))
        self.mark()
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self.control)
        return bool(flags)


@contextmanager
def join_ranks(device: str = "auto", timeout: float = 1800.0) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; without torchrun the run has one process.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``, as in the recipe.
        timeout: Seconds after which an operation that waits for another rank fails.

    Raises:
        RankError: The ranks cannot connect, or within the block another rank died or did not answer in time. Where the
            main thread waits for a device, the process prints this error and ends with its exit code.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    ranks = _join(device, timeout, world_size)
    assert ranks.heartbeat is not None
    try:
        yield ranks
    except RuntimeError as error:
        if not is_rank_loss(error):
            ranks.heartbeat.leave(error)
            raise
        lost = ranks.heartbeat.explain(error)
        ranks.heartbeat.leave(lost)
        raise lost from error
    except BaseException as error:
        ranks.heartbeat.leave(error)
        raise
    ranks.heartbeat.leave()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _join(device: str, timeout: float, world_size: int) -> Ranks:
    """Connect this process with the others: a process group of the device, two of gloo, and heartbeats."""
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(local_rank)
    patience = timedelta(seconds=timeout)
    device_timeout = patience + timedelta(seconds=NCCL_MARGIN) if on_gpu else patience
    try:
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=device_timeout)
        control, background = _over_the_cpu(patience), _over_the_cpu(patience)
        heartbeat = _heartbeat(control, rank, world_size, timeout)
    except RuntimeError as error:
        if not is_rank_loss(error):
            raise
        raise _not_joined(error, rank, world_size, timeout) from error
    return Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        control=control,
        background=background,
        heartbeat=heartbeat,
        timeout=device_timeout,
    )


def _over_the_cpu(patience: timedelta) -> distributed.ProcessGroup:
    group = distributed.new_group(backend="gloo", timeout=patience)
    assert isinstance(group, distributed.ProcessGroup)  # an int for a group without this process
    return group


def _heartbeat(control: distributed.ProcessGroup, rank: int, world_size: int, timeout: float) -> Heartbeat:
    """Start the heartbeats over a separate connection to torch's store: requests on one connection are serial."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=timeout)
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=patience)
    hosted_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    heartbeat = Heartbeat(
        PrefixStore("drpruning/heartbeat", store),
        rank,
        world_size,
        timeout,
        host=None if hosted_by_torchrun else 0,
    )
    heartbeat.start()
    distributed.barrier(group=control)  # now each rank has published
    heartbeat.meet()
    return heartbeat


def _not_joined(error: BaseException, rank: int, world_size: int, timeout: float) -> RankError:
    """Return the error of ranks that cannot connect, with advice."""
    first_line = re.sub(r"^\[enforce fail at [^]]*\] *", "", str(error).strip().splitlines()[0])
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return RankError(
            f"rank {rank} of {world_size} cannot listen at {address}: the port is in use",
            "Start torchrun with --standalone on one node, or give another port.",
        )
    return RankError(
        f"rank {rank} of {world_size} cannot join the others at {address} (limit {timeout:g} s): {first_line}",
        "Start all ranks; between nodes set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to their common interface.",
    )


def _hash(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def is_rank_loss(error: BaseException) -> bool:
    """Return whether ``error`` is torch's error for a dead or silent rank."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)


def reported_by_rank_0(error: BaseException | None) -> bool:
    """Return whether rank 0 has the same error, and reports it to the user."""
    while error is not None:
        if RAISED_ON_RANK_0 in getattr(error, "__notes__", ()):
            return True
        error = error.__cause__
    return False
