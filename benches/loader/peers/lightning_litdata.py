"""litdata: an optimised stream of tokens for each domain (TokensLoader), CombinedStreamingDataset over them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch

from tokens import BATCH, MIXTURE, WEIGHTS, path

VERSION = version("litdata")
PIECE = 1 << 16


def prepare(data: Path, seq_len: int) -> None:
    """Writes chunks of tokens; any row length can be read from them, so the first call does for all."""
    for name in MIXTURE:
        out = data / "litdata" / name
        if not (out / "index.json").exists():
            litdata.optimize(
                _pieces,
                inputs=[str(path(data, name))],
                output_dir=str(out),
                chunk_size=1 << 25,
                item_loader=litdata.TokensLoader(),
                num_workers=1,
            )


def _pieces(file: str) -> Iterator[torch.Tensor]:
    tokens = np.memmap(file, np.uint16, "r")
    for start in range(0, len(tokens), PIECE):
        yield torch.from_numpy(np.array(tokens[start : start + PIECE]))


class Loader:
    """StreamingDataLoader; starts the next epoch when one is over."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        domains = [
            litdata.StreamingDataset(
                str(data / "litdata" / name),
                item_loader=litdata.TokensLoader(block_size=seq_len),
                shuffle=True,
                drop_last=True,
            )
            for name in MIXTURE
        ]
        mixed = litdata.CombinedStreamingDataset(domains, weights=WEIGHTS, iterate_over_all=False)
        self.loader = litdata.StreamingDataLoader(
            mixed, batch_size=BATCH, num_workers=workers, collate_fn=_stacked, drop_last=True
        )
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
        """Numbers of all streams."""
        return self.loader.state_dict()


def _stacked(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(row) for row in rows]).to(torch.int64)
