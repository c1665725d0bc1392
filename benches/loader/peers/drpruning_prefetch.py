"""drpruning's sampler with a prefetch thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import drpruning as dp
from tokens import BATCH, MIXTURE, path

VERSION = dp.__version__


def prepare(data: Path, seq_len: int) -> None:
    """Do nothing: the loader reads the flat token files."""


class Loader:
    """The batches of a sampler; two threads, one of them prefetches."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        corpus = dp.Corpus({name: path(data, name) for name in MIXTURE})
        self.sampler = dp.DomainSampler(corpus, MIXTURE, seq_len=seq_len, batch_size=BATCH, prefetch=2)

    def __next__(self) -> np.ndarray:
        return next(self.sampler).tokens
