"""NumPy memmaps: the rows of each domain in a separate random order, copied once into a new batch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tokens import BATCH, MIXTURE, WEIGHTS, rows

VERSION = version("numpy")


def prepare(data: Path, seq_len: int) -> None:
    """Do nothing: the loader reads the flat token files."""


class Batches(IterableDataset[torch.Tensor]):
    """Rows of random domains, each domain in a separate order."""

    def __init__(self, data: Path, seq_len: int) -> None:
        self.data, self.seq_len = data, seq_len

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        generator = np.random.default_rng(worker.id if worker else 0)
        maps = [np.asarray(rows(self.data, name, self.seq_len)) for name in MIXTURE]
        orders = [generator.permutation(len(domain)).tolist() for domain in maps]
        places = [0] * len(maps)
        while True:
            batch = np.empty((BATCH, self.seq_len), np.int64)
            for k, domain in enumerate(generator.choice(len(maps), BATCH, p=WEIGHTS).tolist()):
                batch[k] = maps[domain][orders[domain][places[domain]]]
                places[domain] = (places[domain] + 1) % len(orders[domain])
            yield torch.from_numpy(batch)


class Loader:
    """An iterator over batches; it has no state to resume from."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        batches = Batches(data, seq_len)
        self.batches = iter(DataLoader(batches, batch_size=None, num_workers=workers) if workers else batches)

    def __next__(self) -> torch.Tensor:
        return next(self.batches)
