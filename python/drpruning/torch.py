"""The sampler for other people's torch loops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from drpruning.errors import ConfigError
from drpruning.sampler import DomainSampler


class DomainDataset(IterableDataset[dict[str, torch.Tensor]]):
    """A :class:`~drpruning.DomainSampler` as an endless ``IterableDataset`` of whole batches.

    Each item is a dict of tensors: ``tokens`` int64 ``[rows, seq_len]``, ``domains`` int32 ``[rows]``, ``rows`` int64
    ``[rows]``. Give it to ``DataLoader(dataset, batch_size=None)``, or to torchdata's ``StatefulDataLoader``, which
    saves and loads the state by itself. Workers of a loader would each draw the same stream, so more than one is an
    error; the sampler needs none to be quick.

    Args:
        sampler: The stream. Iterating goes on where it is, so a new iteration does not start over.

    Example:
        >>> import numpy as np, tempfile
        >>> from torch.utils.data import DataLoader
        >>> import drpruning as dp
        >>> folder = tempfile.TemporaryDirectory()
        >>> np.arange(1000, dtype="uint16").tofile(f"{folder.name}/web.bin")
        >>> corpus = dp.Corpus({"web": f"{folder.name}/web.bin"}, dtype="uint16")
        >>> sampler = dp.DomainSampler(corpus, {"web": 1.0}, seq_len=16, batch_size=4)
        >>> batch = next(iter(DataLoader(dp.torch.DomainDataset(sampler), batch_size=None)))
        >>> batch["tokens"].shape
        torch.Size([4, 16])
        >>> folder.cleanup()
    """

    def __init__(self, sampler: DomainSampler) -> None:
        super().__init__()
        self.sampler = sampler

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches from here on.

        Raises:
            ConfigError: More than one worker of a ``DataLoader`` would draw the same batches.
        """
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigError(
                f"the loader has {worker.num_workers} workers, which would all draw the same batches",
                next_step="Use num_workers=0.",
            )
        for batch in self.sampler:
            yield {
                "tokens": torch.from_numpy(batch.tokens),
                "domains": torch.from_numpy(batch.domains),
                "rows": torch.from_numpy(batch.rows),
            }

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``; see :meth:`drpruning.DomainSampler.load_state_dict`."""
        self.sampler.load_state_dict(state)
