"""Hugging Face datasets: Arrow on disk, shuffled and interleaved with probabilities, whole batches fetched at once."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from tokens import BATCH, MIXTURE, WEIGHTS, rows

VERSION = version("datasets")


def prepare(data: Path, seq_len: int) -> None:
    """Writes rows as lists of uint16 of a fixed length."""
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"), length=seq_len)})
    for name in MIXTURE:
        tokens = pa.array(np.asarray(rows(data, name, seq_len)).reshape(-1))
        table = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(tokens, seq_len)})
        datasets.Dataset(table.cast(features.arrow_schema)).save_to_disk(str(data / f"arrow-{seq_len}" / name))


class Loader:
    """A DataLoader over the interleaved dataset; a state is the number of the next batch."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        datasets.disable_progress_bars()
        domains = [
            datasets.load_from_disk(str(data / f"arrow-{seq_len}" / name)).shuffle(seed=0).with_format("numpy")
            for name in MIXTURE
        ]
        self.dataset = datasets.interleave_datasets(
            domains, probabilities=WEIGHTS, seed=0, stopping_strategy="all_exhausted"
        ).with_format("numpy")
        self.workers = workers
        self.done = state or 0
        self._start()

    def _start(self) -> None:
        order = range(self.done * BATCH, len(self.dataset))
        sampler = BatchSampler(SequentialSampler(order), BATCH, drop_last=True)
        if self.done:
            sampler = [[order[place] for place in batch] for batch in sampler]
        loader = DataLoader(
            self.dataset, batch_size=None, sampler=sampler, collate_fn=_tokens, num_workers=self.workers
        )
        self.batches = iter(loader)

    def __next__(self) -> torch.Tensor:
        try:
            batch = next(self.batches)
        except StopIteration:
            self.done = 0
            self._start()
            batch = next(self.batches)
        self.done += 1
        return batch

    def state(self) -> int:
        """The next batch."""
        return self.done


def _tokens(batch: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(batch["tokens"]).astype(np.int64))
