"""drpruning's sampler without prefetch; with W workers, W ranks in separate threads."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import drpruning as dp
from tokens import BATCH, MIXTURE, path

VERSION = dp.__version__


def prepare(data: Path, seq_len: int) -> None:
    """Do nothing: the loader reads the flat token files."""


class Loader:
    """The batches of a sampler."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        corpus = dp.Corpus({name: path(data, name) for name in MIXTURE})
        ranks = max(1, workers)
        self.samplers = [
            dp.DomainSampler(
                corpus,
                MIXTURE,
                seq_len=seq_len,
                batch_size=BATCH * ranks,
                rank=rank,
                world_size=ranks,
                prefetch=0,
            )
            for rank in range(ranks)
        ]
        if state is not None:
            self.samplers[0].load_state_dict(state)

    def __next__(self) -> np.ndarray:
        return next(self.samplers[0]).tokens

    def state(self) -> Any:
        """Return the state: a few numbers."""
        return self.samplers[0].state_dict()

    def rate(self, seconds: float) -> float:
        """Measure rows per second with all threads reading at once."""

        def read(sampler: dp.DomainSampler) -> None:
            count = 0
            started = time.perf_counter()
            while (taken := time.perf_counter() - started) < seconds:
                next(sampler)
                count += BATCH
            rates.append(count / taken)

        rates: list[float] = []
        threads = [threading.Thread(target=read, args=(sampler,)) for sampler in self.samplers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(rates)
