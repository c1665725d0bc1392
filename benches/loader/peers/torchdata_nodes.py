"""torchdata.nodes: a shuffled sampler for each domain, MultiNodeWeightedSampler over them, rows read batch by batch."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler
from torchdata.nodes import (
    Batcher,
    Mapper,
    MultiNodeWeightedSampler,
    ParallelMapper,
    SamplerWrapper,
)
from torchdata.nodes import (
    Loader as NodeLoader,
)

from tokens import BATCH, MIXTURE, rows

VERSION = version("torchdata")


def prepare(data: Path, seq_len: int) -> None:
    """Do nothing: the loader reads the flat token files."""


class Loader:
    """Workers are threads, which copying rows leaves free to run."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        maps = {name: np.asarray(rows(data, name, seq_len)) for name in MIXTURE}

        def read(picks: list[tuple[str, int]]) -> torch.Tensor:
            batch = np.empty((BATCH, seq_len), np.int64)
            for place, (name, row) in enumerate(picks):
                batch[place] = maps[name][row]
            return torch.from_numpy(batch)

        domains = {
            name: Mapper(SamplerWrapper(RandomSampler(range(len(maps[name])))), partial(_pick, name))
            for name in MIXTURE
        }
        picks = MultiNodeWeightedSampler(domains, MIXTURE, stop_criteria="CYCLE_FOREVER", rank=0, world_size=1, seed=0)
        batches = Batcher(picks, BATCH)
        node = ParallelMapper(batches, read, num_workers=workers, method="thread") if workers else Mapper(batches, read)
        self.loader = NodeLoader(node)
        if state is not None:
            self.loader.load_state_dict(state)
        self.batches = iter(self.loader)

    def __next__(self) -> torch.Tensor:
        return next(self.batches)

    def state(self) -> Any:
        """Return the states of all nodes."""
        return self.loader.state_dict()


def _pick(name: str, row: int) -> tuple[str, int]:
    return name, row
