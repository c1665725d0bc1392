"""The sampler in other people's torch loops: as a dataset for their loaders, and as batches on their device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any, TypeAlias

import torch
from torch.utils.data import IterableDataset, get_worker_info

from drpruning.errors import ConfigError, StateError
from drpruning.sampler import Batch, DomainSampler

Item: TypeAlias = dict[str, Any]


class DomainDataset(IterableDataset[Item]):
    """A :class:`~drpruning.DomainSampler` as an endless ``IterableDataset`` of whole batches.

    Each item is a dict: ``tokens`` int32 or int64 ``[rows, seq_len]``, ``domains`` int32 ``[rows]`` and ``rows`` int64
    ``[rows]`` are tensors, ``step`` is the number of the batch in the stream. Give it to
    ``DataLoader(dataset, batch_size=None)`` or to torchdata's ``StatefulDataLoader``.

    The stream is the same with any ``num_workers``: worker w of W reads batches w, w + W, w + 2W, ..., and loaders ask
    their workers in turn. Rows are read in Rust without the GIL, and ahead of their use by a thread, so 0 workers is
    usually the fastest; in workers the sampler does not read ahead, since loaders do.

    A state, whatever the loader has fetched ahead, is that of the batches it gave out:

    ======================  ================================================================================
    loader                  what to save
    ======================  ================================================================================
    ``DataLoader``, 0       ``dataset.state_dict()``
    ``DataLoader``, W       ``dataset.state_at(item["step"] + 1)`` after the last item
    ``StatefulDataLoader``  ``loader.state_dict()``
    ======================  ================================================================================

    :meth:`load_state_dict` takes any of them and goes on with any loader and any number of workers.

    Args:
        sampler: The stream. Iterating goes on where it is, so a new iteration does not start over. Workers draw from
            copies of it: change its weights through :meth:`set_weights`, which knows when that cannot work.

    Example:
        >>> import numpy as np, tempfile
        >>> from torch.utils.data import DataLoader
        >>> import drpruning as dp
        >>> folder = tempfile.TemporaryDirectory()
        >>> np.arange(1000, dtype="uint16").tofile(f"{folder.name}/web.bin")
        >>> corpus = dp.Corpus({"web": f"{folder.name}/web.bin"}, dtype="uint16")
        >>> sampler = dp.DomainSampler(corpus, {"web": 1.0}, seq_len=16, batch_size=4)
        >>> item = next(iter(DataLoader(dp.torch.DomainDataset(sampler), batch_size=None)))
        >>> item["tokens"].shape, item["step"]
        (torch.Size([4, 16]), 0)
        >>> folder.cleanup()
    """

    def __init__(self, sampler: DomainSampler) -> None:
        super().__init__()
        self.sampler = sampler
        # Set once workers have the stream. A byte that they share, since their copies tell this process nothing else.
        self._with_workers = torch.zeros(1, dtype=torch.uint8).share_memory_()
        self._start = sampler.step
        self._resumed = False

    def __iter__(self) -> Iterator[Item]:
        """Batches from here on; in a worker, its share of them.

        Raises:
            StateError: Workers already have the stream, and where their loader is in it is not known here.
        """
        worker = get_worker_info()
        if worker is None:
            self._check_no_workers("a new iteration")
            return self._items(0, 1)
        resumed, self._resumed = self._resumed, False
        if not resumed:
            self._start = self.sampler.step
        self.sampler = _without_prefetch(self.sampler)
        if worker.id == 0:  # speaks for all, who start at the same time
            if self._with_workers and not resumed:
                return self._refused()
            self._with_workers.fill_(1)
        return self._items(worker.id, worker.num_workers)

    def _items(self, worker: int, num_workers: int) -> Iterator[Item]:
        while True:
            # Others' batches are passed over now and not after the last item: the state then stands right behind it.
            self.sampler.skip((worker - (self.sampler.step - self._start)) % num_workers)
            yield _item(next(self.sampler))

    def _refused(self) -> Iterator[Item]:
        # Raised with the first item: what is raised sooner kills a persistent worker instead of reaching the user.
        self._check_no_workers("a new iteration")
        yield from ()

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Draws by ``weights`` from the next item on; see :meth:`drpruning.DomainSampler.set_weights`.

        Raises:
            ConfigError: Workers have the stream. They read ahead from copies, and what is read cannot be drawn anew.
            WeightError: The weights are not usable.
        """
        if self._with_workers:
            raise ConfigError(
                "the loader's workers draw from copies of the sampler, which new weights do not reach",
                next_step='Use num_workers=0. Or load_state_dict(state_at(item["step"] + 1)), set the weights, and '
                "start a new loader.",
            )
        self.sampler.set_weights(weights)

    def state_at(self, step: int) -> dict[str, Any]:
        """The state from which the stream goes on with batch ``step``, at the weights of now.

        Costs some tens of nanoseconds for each row in between, and reads none.

        Raises:
            StateError: The sampler is already beyond ``step``.
        """
        if step < self.sampler.step:
            raise StateError(f"the sampler is at step {self.sampler.step}; it cannot go back to step {step}")
        here = self.sampler.state_dict()
        self.sampler.skip(step - self.sampler.step)
        there = self.sampler.state_dict()
        self.sampler.load_state_dict(here)
        return there

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state; in a worker with the worker's share, for ``StatefulDataLoader``.

        Raises:
            StateError: Workers have the stream, and where their loader is in it is not known here.
        """
        worker = get_worker_info()
        if worker is None:
            self._check_no_workers("dataset.state_dict()")
            return self.sampler.state_dict()
        share = {"worker": worker.id, "num_workers": worker.num_workers, "start": self._start}
        return {"sampler": self.sampler.state_dict(), **share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``: a sampler's, this dataset's, or a ``StatefulDataLoader``'s with any workers.

        Raises:
            StateError: It holds no state of such a sampler (see :meth:`drpruning.DomainSampler.load_state_dict`); or
                ``StatefulDataLoader.load_state_dict`` handed it to another number of workers than it had.
        """
        worker = get_worker_info()
        if worker is None:
            self._go_on_from(state)
            return
        if state.get("num_workers") != worker.num_workers:
            raise StateError(
                f"the loader's state is of {state.get('num_workers', 0)} workers; this loader has {worker.num_workers}",
                next_step="Give the loader's state to dataset.load_state_dict instead: it goes on with any number.",
            )
        self.sampler.load_state_dict(state["sampler"])
        self._start = state["start"]
        self._resumed = True

    def _go_on_from(self, state: Mapping[str, Any]) -> None:
        found = list(_sampler_states(state))
        if not found:
            raise StateError("there is no sampler's state in what was given; expected one of a sampler or a loader")
        # Loaders ask their workers in turn, so the one that is farthest gave the last item.
        self.sampler.load_state_dict(max(found, key=lambda inner: int(inner["step"])))
        # With snapshot_every_n_steps=n the states are up to n - 1 items old.
        self.sampler.skip(int(state.get("_steps_since_snapshot", 0)))
        self._with_workers.zero_()

    def _check_no_workers(self, what: str) -> None:
        if self._with_workers:
            raise StateError(
                f"{what} cannot know where the stream is: a loader's workers have it",
                next_step='Save StatefulDataLoader.state_dict(), or dataset.state_at(item["step"] + 1) after the last '
                "item, and go on with dataset.load_state_dict(state).",
            )


def to_device(sampler: DomainSampler, device: torch.device | str, *, buffers: int = 2) -> Iterator[Item]:
    """The batches of ``sampler`` on ``device``, endlessly: items as those of :class:`DomainDataset`.

    For a CUDA device rows come into pinned memory (what was read ahead is copied there; with ``prefetch=0`` they are
    read there straight) and are copied on a stream of their own. A training loop that does not wait for its kernels is
    a step behind the host, so reading and copying one batch overlap with computing on the one before. No batch is in
    flight between two items: ``sampler.state_dict()`` and ``sampler.set_weights()`` are exact there.

    Args:
        sampler: The stream.
        device: Where the tensors shall be.
        buffers: Pinned buffers, each for one batch, that are used in turn; reading waits until a buffer's last copy
            is done.

    Example:
        >>> import numpy as np, tempfile
        >>> import drpruning as dp
        >>> folder = tempfile.TemporaryDirectory()
        >>> np.arange(1000, dtype="uint16").tofile(f"{folder.name}/web.bin")
        >>> corpus = dp.Corpus({"web": f"{folder.name}/web.bin"}, dtype="uint16")
        >>> sampler = dp.DomainSampler(corpus, {"web": 1.0}, seq_len=16, batch_size=4)
        >>> for item in dp.torch.to_device(sampler, "cpu"):
        ...     if item["step"] == 2:
        ...         break
        >>> item["tokens"].device, sampler.step
        (device(type='cpu'), 3)
        >>> folder.cleanup()
    """
    if buffers < 1:
        raise ConfigError(f"buffers is {buffers}; it must be at least 1")
    device = torch.device(device)
    if device.type == "cuda":
        return _through_pinned_memory(sampler, device, buffers)
    return (_moved(_item(batch), device) for batch in sampler)


def _through_pinned_memory(sampler: DomainSampler, device: torch.device, buffers: int) -> Iterator[Item]:
    stream = torch.cuda.Stream(device)
    shape = (sampler.rows_per_rank, sampler.seq_len)
    pinned = [
        {
            "tokens": torch.empty(shape, dtype=getattr(torch, sampler.dtype), pin_memory=True),
            "domains": torch.empty(shape[0], dtype=torch.int32, pin_memory=True),
            "rows": torch.empty(shape[0], dtype=torch.int64, pin_memory=True),
        }
        for _ in range(buffers)
    ]
    for buffer, copied in cycle([(buffer, torch.cuda.Event()) for buffer in pinned]):
        copied.synchronize()
        batch = sampler.next_into(buffer["tokens"].numpy())
        buffer["domains"].numpy()[:] = batch.domains
        buffer["rows"].numpy()[:] = batch.rows
        with torch.cuda.stream(stream):
            item = _moved(buffer, device)
            copied.record(stream)
        user = torch.cuda.current_stream(device)
        user.wait_event(copied)
        for tensor in item.values():
            tensor.record_stream(user)  # its memory is not reused while the user's kernels may read it
        yield {**item, "step": batch.step}


def _without_prefetch(sampler: DomainSampler) -> DomainSampler:
    """The same stream for a worker: what it would read ahead are batches of the others."""
    if sampler.prefetch == 0:
        return sampler
    alone = DomainSampler(
        sampler.corpus,
        sampler.weights,
        seq_len=sampler.seq_len,
        batch_size=sampler.batch_size,
        seed=sampler.seed,
        rank=sampler.rank,
        world_size=sampler.world_size,
        draw=sampler.draw,
        dtype=sampler.dtype,
        prefetch=0,
    )
    alone.load_state_dict(sampler.state_dict())
    return alone


def _item(batch: Batch) -> Item:
    return {
        "tokens": torch.from_numpy(batch.tokens),
        "domains": torch.from_numpy(batch.domains),
        "rows": torch.from_numpy(batch.rows),
        "step": batch.step,
    }


def _moved(item: Item, device: torch.device) -> Item:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in item.items()
    }


def _sampler_states(state: Any) -> Iterator[Mapping[str, Any]]:
    """The states of samplers anywhere in ``state``."""
    if not isinstance(state, Mapping):
        return
    if "fingerprint" in state and "step" in state:
        yield state
        return
    for inner in state.values():
        yield from _sampler_states(inner)
