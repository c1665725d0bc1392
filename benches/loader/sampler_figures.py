"""Figures of drpruning's sampler that other loaders lack: changing weights, and resuming at any step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import drpruning as dp
from tokens import BATCH, MIXTURE, SEQ_LENS, WEIGHTS, path


def sampler_figures(data: Path) -> dict[str, float]:
    """Measure seconds of each operation, and bytes of a state."""

    def make() -> dp.DomainSampler:
        corpus = dp.Corpus({name: path(data, name) for name in MIXTURE})
        return dp.DomainSampler(corpus, MIXTURE, seq_len=SEQ_LENS[0], batch_size=BATCH)

    def median_of(call: Callable[[], object], count: int) -> float:
        taken = []
        for _ in range(count):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
        return float(np.median(taken))

    sampler = make()
    even = dict.fromkeys(MIXTURE, 1.0)

    def change() -> None:
        sampler.set_weights(even)
        sampler.set_weights(MIXTURE)

    def resume(state: dict[str, Any]) -> None:
        sampler.load_state_dict(state)
        next(sampler)

    start = sampler.state_dict()
    far = far_state(sampler)
    return {
        "open": median_of(lambda: next(make()), 20),
        "set_weights": median_of(change, 200) / 2,
        "resume_start": median_of(lambda: resume(start), 50),
        "resume_far": median_of(lambda: resume(far), 50),
        "state_bytes": len(json.dumps(far)),
    }


def far_state(sampler: dp.DomainSampler) -> dict[str, Any]:
    """Return a state after 10^12 rows, drawn in the mixture's proportions, with credits of 0."""
    step = 10**12 // BATCH
    rows = [round(step * BATCH * weight) for weight in WEIGHTS]
    rows[0] += step * BATCH - sum(rows)
    return {**sampler.state_dict(), "step": step, "rows": rows}
