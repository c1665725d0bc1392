"""megatron-core: a GPTDataset for each domain under a BlendedDataset, read by a DataLoader as Megatron trains."""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

warnings.filterwarnings("ignore")
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder  # noqa: E402
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig  # noqa: E402

from tokens import BATCH, MIXTURE, WEIGHTS, path  # noqa: E402

VERSION = version("megatron-core")
ROWS = 1_000_000  # Megatron fixes the length of the run before it starts


def prepare(data: Path, seq_len: int) -> None:
    """Reads the token files and their indexes as they are; builds its own indexes when it is first opened."""


class Tokenizer:
    """What the dataset asks of one."""

    vocab_size, eod, pad = 1 << 15, 0, -1
    unique_identifiers = {"name": "none"}  # noqa: RUF012


class Loader:
    """A state is the number of samples consumed."""

    def __init__(self, data: Path, seq_len: int, workers: int, state: Any = None) -> None:
        if not torch.distributed.is_initialized():
            store = f"file://{tempfile.mktemp()}"  # noqa: S306 - gloo wants a name that does not exist
            torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        config = GPTDatasetConfig(
            random_seed=0,
            sequence_length=seq_len,
            blend=([str(path(data, name).with_suffix("")) for name in MIXTURE], WEIGHTS),
            split="1,0,0",
            path_to_cache=str(data / "megatron-cache"),
            tokenizer=Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        self.dataset = BlendedMegatronDatasetBuilder(GPTDataset, [ROWS, 0, 0], lambda: True, config).build()[0]
        self.workers = workers
        self.done = state or 0
        self._start()

    def _start(self) -> None:
        order = range(self.done, len(self.dataset))
        loader = DataLoader(
            self.dataset, BATCH, sampler=order, collate_fn=_tokens, num_workers=self.workers, drop_last=True
        )
        self.batches = iter(loader)

    def __next__(self) -> torch.Tensor:
        try:
            batch = next(self.batches)
        except StopIteration:
            self.done = 0
            self._start()
            batch = next(self.batches)
        self.done += BATCH
        return batch

    def state(self) -> int:
        """Samples consumed."""
        return self.done


def _tokens(items: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([item["tokens"] for item in items])
