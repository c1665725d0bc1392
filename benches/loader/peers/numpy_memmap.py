"""NumPy memmaps, as nanoGPT's get_batch reads them, with an i.i.d. draw of the domain; workers are a DataLoader's."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tokens import BATCH, MIXTURE, WEIGHTS, path

VERSION = version("numpy")


def prepare(data: Path, seq_len: int) -> None:
    """Reads the token files as they are."""


class Batches(IterableDataset[torch.Tensor]):
    """Random crops of random domains."""

    def __init__(self, data: Path, seq_len: int) -> None:
        self.data, self.seq_len = data, seq_len

    def __iter__(self) -> Iterator[torch.Tensor]:
        maps = [np.memmap(path(self.data, name), np.uint16, "r") for name in MIXTURE]
        worker = get_worker_info()
        generator = np.random.default_rng(worker.id if worker else 0)
        while True:
            domains = generator.choice(len(maps), BATCH, p=WEIGHTS)
            starts = [generator.integers(len(maps[domain]) - self.seq_len) for domain in domains]
            rows = (
                maps[domain][start : start + self.seq_len].astype(np.int64)
                for domain, start in zip(domains, starts, strict=True)
            )
            yield torch.stack([torch.from_numpy(row) for row in rows])


class Loader:
    """Has no state: it never goes on."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        batches = Batches(data, seq_len)
        self.batches = iter(DataLoader(batches, batch_size=None, num_workers=workers) if workers else batches)

    def __next__(self) -> torch.Tensor:
        return next(self.batches)
