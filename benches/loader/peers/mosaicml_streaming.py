"""MosaicML streaming: local MDS shards of ready rows, a Stream with a proportion for each domain."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import streaming
import torch

from tokens import BATCH, MIXTURE, rows

VERSION = version("mosaicml-streaming")


def prepare(data: Path, seq_len: int) -> None:
    """Write rows as bytes, as LLM Foundry does."""
    for name in MIXTURE:
        with streaming.MDSWriter(out=str(data / f"mds-{seq_len}" / name), columns={"tokens": "bytes"}) as writer:
            for row in rows(data, name, seq_len):
                writer.write({"tokens": row.tobytes()})


class Rows(streaming.StreamingDataset):
    """Bytes to tensors."""

    def __getitem__(self, at: Any) -> Any:
        return torch.from_numpy(np.frombuffer(super().__getitem__(at)["tokens"], np.uint16).astype(np.int64))


class Loader:
    """StreamingDataLoader; starts the next epoch when one is over."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        streaming.base.util.clean_stale_shared_memory()
        streams = [
            streaming.Stream(local=str(data / f"mds-{seq_len}" / name), proportion=weight)
            for name, weight in MIXTURE.items()
        ]
        dataset = Rows(streams=streams, shuffle=True, shuffle_seed=0, batch_size=BATCH, num_canonical_nodes=1)
        self.loader = streaming.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)
        if state is not None:
            self.loader.load_state_dict(state)
        self.batches = iter(self.loader)

    def __next__(self) -> torch.Tensor:
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)

    def state(self) -> Any:
        """Return epoch and sample."""
        return self.loader.state_dict()
