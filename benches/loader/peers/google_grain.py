"""grain: a shuffled, repeated MapDataset for each domain, MapDataset.mix, batch; workers are its reading threads."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import grain
import numpy as np

from tokens import BATCH, MIXTURE, WEIGHTS, rows

VERSION = version("grain")


def prepare(data: Path, seq_len: int) -> None:
    """Reads the token files as they are."""


class Rows:
    """A random-access source of int64 rows."""

    def __init__(self, data: Path, name: str, seq_len: int) -> None:
        self.rows = np.asarray(rows(data, name, seq_len))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.rows[row].astype(np.int64)


class Loader:
    """An iterator of the mixed dataset."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        domains = [
            grain.MapDataset.source(Rows(data, name, seq_len)).seed(number).shuffle().repeat()
            for number, name in enumerate(MIXTURE)
        ]
        mixed = grain.MapDataset.mix(domains, weights=WEIGHTS).batch(BATCH, drop_remainder=True)
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
        self.batches = iter(mixed.to_iter_dataset(options))
        if state is not None:
            self.batches.set_state(state)

    def __next__(self) -> np.ndarray:
        return next(self.batches)

    def state(self) -> Any:
        """The next index."""
        return self.batches.get_state()
