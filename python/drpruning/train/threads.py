"""The number of CPU threads, measured on the model itself, since two threads can be slower than one."""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any

import torch

from drpruning.hf.models import text_config
from drpruning.train.base_model import build
from drpruning.train.losses import token_losses

STEPS = 3


def choose_threads(source: Any, *, rows: int, seq_len: int) -> int:
    """Return the fastest of 1, 2, 4, ... threads for a training step, by a short measurement.

    With a GPU, or for a large model, which may not fit twice, return torch's default without a measurement.

    Args:
        source: transformers configuration of the model.
        rows: Rows in a batch.
        seq_len: Tokens in a row.
    """
    default = torch.get_num_threads()
    text = text_config(source)
    if torch.cuda.is_available() or text.hidden_size * text.num_hidden_layers > 64 * 1024:
        return default
    model = build(source, seed=0)
    tokens = torch.zeros((min(rows, 16), seq_len), dtype=torch.int64)
    cores = os.cpu_count() or 1
    counts = [count for count in (1, 2, 4, 8, 16, 32) if count <= cores]
    times = {}
    for count in counts:
        torch.set_num_threads(count)
        taken = []
        for _ in range(STEPS + 1):
            started = time.perf_counter()
            token_losses(model, tokens).mean().backward()
            taken.append(time.perf_counter() - started)
        times[count] = median(taken[1:])
    torch.set_num_threads(default)
    return min(times, key=lambda count: times[count])
