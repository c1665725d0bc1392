"""The sampler in a torch training loop: a dataset for data loaders, and an iterator of batches on a device."""

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
    ``[rows]`` are tensors, ``step`` is the number of the batch in the stream. Pass the dataset to
    ``DataLoader(dataset, batch_size=None)`` or to torchdata's ``StatefulDataLoader``.

    The stream is the same for any ``num_workers``: worker w of W reads batches w, w + W, w + 2W, ..., and a loader
    collects items from its workers in turn. A Rust thread prefetches batches without holding the GIL, so
    ``num_workers=0`` is usually fastest. Samplers in workers do not prefetch, because the loader prefetches items.

    A saved state resumes after the last item that the loader returned; batches that the loader has prefetched but not
    returned are read again:

    ==================================  ======================================================
    loader                              state to save
    ==================================  ======================================================
    ``DataLoader``, no workers          ``dataset.state_dict()``
    ``DataLoader``, workers             ``dataset.state_at(item["step"] + 1)`` of the last item
    ``StatefulDataLoader``              ``loader.state_dict()``
    ==================================  ======================================================

    :meth:`load_state_dict` accepts each of these states, for any loader and any number of workers.

    Args:
        sampler: The stream. A new iteration continues at the sampler's position; it does not start over. Workers draw
            from copies of the sampler, so change weights with :meth:`set_weights`, which raises when workers are
            running.

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
        # 1 when workers draw from copies of the sampler. In shared memory, so that a worker can set it.
        self._has_workers = torch.zeros(1, dtype=torch.uint8).share_memory_()
        self._start = sampler.step
        self._resumed = False

    def __iter__(self) -> Iterator[Item]:
        """Return an iterator from the sampler's position; in a worker, of the worker's share of the batches.

        Raises:
            StateError: Workers of an earlier iteration hold the stream position.
        """
        worker = get_worker_info()
        if worker is None:
            self._check_no_workers("a new iteration")
            return self._items(0, 1)
        resumed, self._resumed = self._resumed, False
        if not resumed:
            self._start = self.sampler.step
        self.sampler = _without_prefetch(self.sampler)
        if worker.id == 0:  # one check for all workers, which start at the same time
            if self._has_workers and not resumed:
                return self._raise_on_first_item()
            self._has_workers.fill_(1)
        return self._items(worker.id, worker.num_workers)

    def _items(self, worker: int, num_workers: int) -> Iterator[Item]:
        while True:
            # Skip the batches of other workers before each item, not after it: a state saved after an item then
            # resumes directly behind that item.
            self.sampler.skip((worker - (self.sampler.step - self._start)) % num_workers)
            yield _tensors(next(self.sampler))

    def _raise_on_first_item(self) -> Iterator[Item]:
        # An exception in `__iter__` ends a persistent worker; an exception in the first `next` is raised in the caller.
        self._check_no_workers("a new iteration")
        yield from ()

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Set the weights of the next item; see :meth:`drpruning.DomainSampler.set_weights`.

        Raises:
            ConfigError: Workers draw from copies of the sampler, which new weights do not reach.
            WeightError: A weight is negative or not finite, all are 0, or a domain has none.
        """
        if self._has_workers:
            raise ConfigError(
                "set_weights() does not reach DataLoader workers, which draw from copies of the sampler",
                next_step='Use num_workers=0, or call load_state_dict(state_at(item["step"] + 1)), then set_weights(), '
                "and start a new loader.",
            )
        self.sampler.set_weights(weights)

    def state_at(self, step: int) -> dict[str, Any]:
        """Return the state whose next batch is number ``step``, under the current weights. The sampler is unchanged.

        Takes the time of :meth:`drpruning.DomainSampler.skip`; reads no tokens.

        Raises:
            StateError: ``step`` is before the sampler's position.
        """
        if step < self.sampler.step:
            raise StateError(
                f"cannot return the state at step {step}: the sampler is already at step {self.sampler.step}"
            )
        current = self.sampler.state_dict()
        self.sampler.skip(step - self.sampler.step)
        later = self.sampler.state_dict()
        self.sampler.load_state_dict(current)
        return later

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state; in a worker also the worker's share, for ``StatefulDataLoader``.

        Raises:
            StateError: Workers hold the stream position.
        """
        worker = get_worker_info()
        if worker is None:
            self._check_no_workers("dataset.state_dict()")
            return self.sampler.state_dict()
        share = {"worker": worker.id, "num_workers": worker.num_workers, "start": self._start}
        return {"sampler": self.sampler.state_dict(), **share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the state of a sampler, of this dataset, or of a ``StatefulDataLoader`` with any workers.

        Raises:
            StateError: ``state`` contains no sampler state, or one that does not fit (see
                :meth:`drpruning.DomainSampler.load_state_dict`); or ``StatefulDataLoader.load_state_dict`` was called
                with a state of another number of workers.
        """
        worker = get_worker_info()
        if worker is None:
            self._restore_sampler(state)
            return
        if state.get("num_workers") != worker.num_workers:
            raise StateError(
                f"the state was saved by a loader with {state.get('num_workers', 0)} workers; this loader has "
                f"{worker.num_workers}",
                next_step="Pass the loader's state to dataset.load_state_dict(), which accepts any number of workers.",
            )
        self.sampler.load_state_dict(state["sampler"])
        self._start = state["start"]
        self._resumed = True

    def _restore_sampler(self, state: Mapping[str, Any]) -> None:
        states = [inner for inner in _find_sampler_states(state) if isinstance(inner["step"], int)]
        if not states:
            raise StateError(
                "no sampler state found",
                next_step="Pass DomainSampler.state_dict(), DomainDataset.state_dict() or "
                "StatefulDataLoader.state_dict().",
            )
        # A loader collects items from its workers in turn, so the largest step belongs to the last item.
        self.sampler.load_state_dict(max(states, key=lambda inner: inner["step"]))
        # With snapshot_every_n_steps=n the states are up to n - 1 items old.
        self.sampler.skip(state.get("_steps_since_snapshot", 0))
        self._has_workers.zero_()

    def _check_no_workers(self, operation: str) -> None:
        if self._has_workers:
            raise StateError(
                f"{operation} is unavailable with DataLoader workers, which hold the stream position",
                next_step='Save StatefulDataLoader.state_dict(), or dataset.state_at(item["step"] + 1) after the last '
                "item, and resume with dataset.load_state_dict(state).",
            )


def to_device(sampler: DomainSampler, device: torch.device | str, *, buffers: int = 2) -> Iterator[Item]:
    """Return an endless iterator of the batches of ``sampler`` on ``device``: items as in :class:`DomainDataset`.

    For a CUDA device a batch is written to pinned memory (a prefetched batch is copied there; with ``prefetch=0`` rows
    are read directly into it) and copied to the device on a separate stream. A training loop that does not synchronise
    is one step behind the host, so reading and copying a batch overlap with the computation on the batch before.
    Between two items no batch is in flight: ``sampler.state_dict()`` and ``sampler.set_weights()`` are exact there.

    Args:
        sampler: The stream.
        device: Device of the tensors.
        buffers: Number of pinned buffers, one batch each, used in turn. Reading waits until the last copy from a
            buffer has finished.

    Raises:
        ConfigError: ``buffers`` is less than 1.

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
        raise ConfigError(f"buffers is {buffers}; expected at least 1")
    device = torch.device(device)
    if device.type == "cuda":
        return _copy_through_pinned_memory(sampler, device, buffers)
    return (_copy_to(_tensors(batch), device) for batch in sampler)


def _copy_through_pinned_memory(sampler: DomainSampler, device: torch.device, buffers: int) -> Iterator[Item]:
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
            item = _copy_to(buffer, device)
            copied.record(stream)
        compute_stream = torch.cuda.current_stream(device)
        compute_stream.wait_event(copied)
        for tensor in item.values():
            tensor.record_stream(compute_stream)  # the allocator must not reuse memory that its kernels may still read
        yield {**item, "step": batch.step}


def _without_prefetch(sampler: DomainSampler) -> DomainSampler:
    """Return a sampler of the same stream without prefetch, for a worker: it would prefetch other workers' batches."""
    if sampler.prefetch == 0:
        return sampler
    copy = DomainSampler(
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
    copy.load_state_dict(sampler.state_dict())
    return copy


def _tensors(batch: Batch) -> Item:
    return {
        "tokens": torch.from_numpy(batch.tokens),
        "domains": torch.from_numpy(batch.domains),
        "rows": torch.from_numpy(batch.rows),
        "step": batch.step,
    }


def _copy_to(item: Item, device: torch.device) -> Item:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in item.items()
    }


def _find_sampler_states(state: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the sampler states nested anywhere in ``state``."""
    if not isinstance(state, Mapping):
        return
    if "fingerprint" in state and "step" in state:
        yield state
        return
    for inner in state.values():
        yield from _find_sampler_states(inner)
