"""drpruning's sampler with a thread that reads ahead of the one that takes batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import drpruning as dp
from tokens import BATCH, MIXTURE, path

VERSION = dp.__version__


def prepare(data: Path, seq_len: int) -> None:
    """Reads the token files as they are."""


class Loader:
    """The batches of a sampler; two threads, one of them ours."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        corpus = dp.Corpus({name: path(data, name) for name in MIXTURE})
        self.sampler = dp.DomainSampler(corpus, MIXTURE, seq_len=seq_len, batch_size=BATCH, prefetch=2)

    def __next__(self) -> np.ndarray:
        return next(self.sampler).tokens
