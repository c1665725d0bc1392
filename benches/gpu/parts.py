"""Parts of a step alone: the optimizer, and the loader."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cases import Case, config_of

from drpruning.corpus import Corpus
from drpruning.planning.model_shape import transformers_config
from drpruning.planning.recipe import source_shape
from drpruning.pruning import Target
from drpruning.sampler import DomainSampler
from drpruning.torch import to_device
from drpruning.train.base_model import build
from drpruning.train.optimizers.build import make_optimizer
from drpruning.train.optimizers.quantized_moments import BLOCK

STEPS = 8
BATCHES, LONGEST = 200, 20.0  # batches that are read, and seconds for them
READ_AND_WRITTEN = {"float32": 4.0, "bfloat16": 2.0, "bfloat16+low16": 4.0, "int8": 1 + 4 / BLOCK}
"""Bytes of a stored number: a weight, or one of the two moments."""
LARGE = 6_738_415_616
"""Parameters of Llama-2-7B, for which the time of a step is also given."""


def measure_optimizer(case: Case, corpus: Path, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Steps on random gradients, next to the rate at which this device copies memory.

    ``bytes_per_number`` are those that have to be moved: each weight and moment read and written once, each gradient
    read once.
    """
    config = config_of(case, corpus, tiny=tiny)
    shape, training = source_shape(config), config.training
    assert config.prune is not None
    sizes = Target(**config.prune.target.model_dump()).resolve(shape).sizes()  # type: ignore[arg-type]
    device = torch.device("cpu" if tiny else "cuda")
    with device:
        model = build(transformers_config(shape, sizes), 0)
    optimizer = make_optimizer(model, config.stage("continue"), training)
    optimizer.found_inf = torch.zeros((), device=device)  # type: ignore[attr-defined] # as the loop sets it
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    taken = [_seconds(optimizer.step, device) for _ in range(STEPS)]
    seconds = median(taken[2:])
    gradients = 4.0 if training.weight_format == "float32" else 2.0
    moved = (
        2 * READ_AND_WRITTEN[training.weight_format] + 4 * READ_AND_WRITTEN[training.optimizer_state_format] + gradients
    )
    rate = _copy_rate(device, 2**22 if tiny else 2**32)
    return {
        "parameters": numbers,
        "step_seconds": seconds,
        "first_step_seconds": taken[0],
        "step_seconds_at_7b": seconds * LARGE / numbers,
        "bytes_per_number": moved,
        "bytes_per_second": moved * numbers / seconds,
        "copy_bytes_per_second": rate,
        "share_of_copy_rate": moved * numbers / seconds / rate,
    }


def measure_loader(case: Case, corpus: Path, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Batches of a stage, put on the device, as fast as they come."""
    config = config_of(case, corpus, tiny=tiny)
    device = torch.device("cpu" if tiny else "cuda")
    rows, length = config.stage(case.stage).batch_size, config.data.seq_len
    opened = Corpus.open(corpus)
    sampler = DomainSampler(opened, config.data.reference_ratio, seq_len=length, batch_size=rows, seed=0)
    batches = to_device(sampler, device)
    next(batches)
    if not tiny:
        torch.cuda.synchronize()
    started, count = time.perf_counter(), 0
    while count < BATCHES and time.perf_counter() - started < LONGEST:
        next(batches)
        count += 1
    if not tiny:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {"batches": count, "tokens_per_second": count * rows * length / seconds, "batch_seconds": seconds / count}


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time of a call until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _copy_rate(device: torch.device, size: int) -> float:
    """Bytes read and written by a copy within the device's memory, per second."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median(_seconds(lambda: target.copy_(source), device) for _ in range(5))
