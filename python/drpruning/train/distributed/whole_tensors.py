"""Whole tensors of a sharded model for rank 0, one at a time: the other ranks send their rows on request.

Rank 0 runs ordinary code, such as an export, and reads tensors by name. No rank holds more than its shard and the
tensor that is read. Rows pass through the memory of the CPU and gloo, so a GPU needs no memory for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from drpruning.errors import DrpruningError
from drpruning.hf.models import local_shard
from drpruning.hf.tensor_stream import ReadTensor
from drpruning.train.distributed.ranks import Ranks

END = -1
"""Request after which the other ranks stop sending."""


def read_on_first(tensors: dict[str, Tensor], ranks: Ranks, action: Callable[[ReadTensor], object]) -> None:
    """Call ``action`` on rank 0 with a function that returns whole tensors by name; raise its error on every rank.

    Args:
        tensors: By name; sharded ones are of type DTensor, others are whole on rank 0. The same names on every rank.
        ranks: The processes of the run; each makes this call.
        action: Called on rank 0 only; reads each tensor as often as it likes. In a run of one process it reads the
            tensors themselves, otherwise copies in the memory of the CPU.

    Raises:
        DrpruningError, OSError: As ``action`` raises it.
    """
    if ranks.alone:
        action(lambda name: tensors[name].detach())
        return
    names = list(tensors)
    if not ranks.first:
        while (number := _request(ranks)) != END:
            _send_rows(tensors[names[number]], ranks)
        ranks.do(lambda: None)
        return
    numbers, error = {name: number for number, name in enumerate(names)}, None

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        if not isinstance(tensor, DTensor):
            return tensor.detach().cpu()
        _request(ranks, numbers[name])
        return _collect_rows(tensor, ranks)

    try:
        action(read)
    except (DrpruningError, OSError) as raised:
        error = raised
    finally:
        _request(ranks, END)

    def end() -> None:
        if error is not None:
            raise error

    ranks.do(end)


def _request(ranks: Ranks, number: int = END) -> int:
    """Send the number of a tensor from rank 0 to the others; return it on every rank."""
    sent = torch.tensor(number)
    ranks.mark()
    distributed.broadcast(sent, src=0, group=ranks.control)
    return int(sent)


def _holders(tensor: DTensor) -> Iterator[tuple[int, slice]]:
    """Yield the ranks that share rank 0's copy of a tensor, and the rows of each: FSDP2 shards like ``torch.chunk``."""
    ranks = tensor.device_mesh.mesh.reshape(-1, tensor.device_mesh.shape[-1])[0].tolist()
    rows = -(-tensor.shape[0] // len(ranks))
    for place, rank in enumerate(ranks):
        found = range(tensor.shape[0])[place * rows : (place + 1) * rows]
        if found:
            yield rank, slice(found.start, found.stop)


def _send_rows(tensor: Tensor, ranks: Ranks) -> None:
    """Send this rank's rows to rank 0, if it is one of those that share rank 0's copy and has any."""
    assert isinstance(tensor, DTensor)
    if ranks.rank in dict(_holders(tensor)):
        distributed.send(_bytes(local_shard(tensor)[0].cpu()), dst=0, group=ranks.control)
    ranks.mark()


def _collect_rows(tensor: DTensor, ranks: Ranks) -> Tensor:
    """Return a whole tensor on rank 0, in the memory of the CPU."""
    whole = torch.empty(tensor.shape, dtype=tensor.dtype)
    ranks.mark()
    for rank, rows in _holders(tensor):
        if rank == ranks.rank:
            whole[rows] = local_shard(tensor)[0]
        else:
            distributed.recv(_bytes(whole[rows]), src=rank, group=ranks.control)
    return whole


def _bytes(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor as bytes."""
    return tensor.view(-1).view(torch.uint8)
