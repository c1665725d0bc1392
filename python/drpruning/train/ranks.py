"""The processes of one run: who this one is, and how they agree; a run of one process needs nobody.

Rank 0 alone reads and writes the run folder's small files and decides; the others are told. Tensors that each rank has
its own part of are summed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from drpruning.errors import DrpruningError, RankError

T = TypeVar("T")

RAISED_ELSEWHERE = "raised on rank 0"
"""Note on an error that rank 0 tells the user about."""

LOST = ("connection", "timed out", "timeout", "gloo", "nccl", "socket", "broken pipe", "peer")
"""Words of torch's errors when a rank is gone or silent: a RuntimeError, whatever the backend."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them.

    Args:
        rank: Number of this process.
        world_size: How many there are.
        local_rank: Number of this process on its machine: of the accelerator it uses.
        local_size: How many are on this machine.
        control: Carries decisions and checkpoints, over the CPU; None for one process.
        background: Another of the kind, for checkpoints that are written while training goes on.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: distributed.ProcessGroup | None = None
    background: distributed.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world_size == 1

    def agree(self, decide: Callable[[], T], group: distributed.ProcessGroup | None = None) -> T:
        """What ``decide`` returns on rank 0, on every rank; an error it raises there is raised on each.

        Args:
            decide: Called on rank 0 only. Its result can be pickled.
            group: Carries it; :attr:`control` where left out.
        """
        if self.alone:
            return decide()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = decide()
            except (DrpruningError, OSError) as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, src=0, group=group or self.control)
        if outcome[1] is not None:
            if not self.first:
                outcome[1].add_note(RAISED_ELSEWHERE)
            raise outcome[1]
        decided: T = outcome[0]
        return decided

    def do(self, action: Callable[[], Any]) -> None:
        """Lets rank 0 act while the others wait; an error it raises is raised on each."""

        def act() -> None:
            action()

        self.agree(act)

    def gather(self, value: T, group: distributed.ProcessGroup | None = None) -> list[T]:
        """The value of every rank, in the order of ranks, on every rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=group or self.control)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` summed over the ranks, in place; bit for bit the same on each."""
        if not self.alone:
            distributed.all_reduce(tensor)
        return tensor

    def sum_on_host(self, tensor: Tensor) -> Tensor:
        """The same for a tensor in the memory of the CPU."""
        if not self.alone:
            distributed.all_reduce(tensor, group=self.control)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        if self.alone:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self.control)
        return bool(flags)


@contextmanager
def joined(device: str = "auto", timeout: float = 1800.0) -> Iterator[Ranks]:
    """Joins the other processes that ``torchrun`` has started, if it has.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``, as in the recipe.
        timeout: Seconds after which an operation that waits for another rank gives up.

    Raises:
        RankError: Within the block another process died, or did not answer in time.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(local_rank)
    patience = timedelta(seconds=timeout)
    rank = int(os.environ["RANK"])
    try:
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=patience)
        yield Ranks(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            control=_over_the_cpu(patience),
            background=_over_the_cpu(patience),
        )
    except RuntimeError as error:
        if not is_loss_of_rank(error):
            raise
        raise RankError(
            f"rank {rank} of {world_size} lost another rank, or waited more than {timeout:g} s for it: "
            + (str(error).strip() or type(error).__name__).splitlines()[0],
            "The newest checkpoint is complete: start all ranks again with --resume.",
        ) from error
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _over_the_cpu(patience: timedelta) -> distributed.ProcessGroup:
    group = distributed.new_group(backend="gloo", timeout=patience)
    assert isinstance(group, distributed.ProcessGroup)  # a number stands for one without this process
    return group


def is_loss_of_rank(error: BaseException) -> bool:
    """Whether torch says, by ``error``, that another rank is gone or silent."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)


def told_elsewhere(error: BaseException | None) -> bool:
    """Whether rank 0 has this error, too: it tells the user."""
    while error is not None:
        if RAISED_ELSEWHERE in getattr(error, "__notes__", ()):
            return True
        error = error.__cause__
    return False
