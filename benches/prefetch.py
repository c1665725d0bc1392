"""Measure how long a loop waits for batches, by prefetch depth: `python benches/prefetch.py [FOLDER]`.

Samplers with different `prefetch` alternate, so that they see the same load. Prints Markdown tables: medians over
rounds, and the time of a step relative to `prefetch=0` in the same round, with quartiles. Linux only. Writes a
temporary file of 1 GiB into FOLDER (default: the current folder), which must be on the disk to measure.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import drpruning as dp

SEQ_LEN, BATCH = 2048, 32
ROWS = 2**18
DEPTHS = (0, 1, 2, 4)


def make_computation(seconds: float) -> Callable[[], object]:
    """Return a function that multiplies matrices with NumPy for about ``seconds``."""
    matrix = np.random.default_rng(0).random((256, 256), np.float32)
    started = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    products = max(1, round(20 * seconds / (time.perf_counter() - started)))
    return lambda: [matrix @ matrix for _ in range(products)]


def idle() -> None:
    """Compute nothing."""


def wait_for_device() -> None:
    """Wait, as the host does while a device computes."""
    time.sleep(0.02)


def measure_waits(sampler: dp.DomainSampler, compute: Callable[[], object], steps: int) -> tuple[list[float], float]:
    """Measure seconds in each `next`, and per step."""
    taken = []
    started = time.perf_counter()
    for _ in range(steps):
        requested = time.perf_counter()
        next(sampler)
        taken.append(time.perf_counter() - requested)
        compute()
    return taken, (time.perf_counter() - started) / steps


def drop_cache(path: Path) -> None:
    """Drop the file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: Path, compute: Callable[[], object], steps: int, rounds: int, cold: bool) -> None:
    """Print a row for each depth."""
    corpus = dp.Corpus({"web": path}, dtype="uint16")
    samplers = {
        depth: dp.DomainSampler(corpus, {"web": 1.0}, seq_len=SEQ_LEN, batch_size=BATCH, seed=depth, prefetch=depth)
        for depth in DEPTHS
    }
    nexts: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    a_step: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(rounds):
        for depth, sampler in samplers.items():
            sampler.set_weights(sampler.weights)  # discards batches that were prefetched during other samplers' turns
            if cold:
                drop_cache(path)
            measure_waits(sampler, compute, 2)
            taken, step = measure_waits(sampler, compute, steps)
            nexts[depth] += taken
            a_step[depth].append(step)
    for depth, taken in nexts.items():
        middle, high_wait = np.quantile(taken, [0.5, 0.95]) * 1000
        low, ratio, high = np.quantile(np.divide(a_step[depth], a_step[0]), [0.25, 0.5, 0.75])
        step = 1000 * float(np.median(a_step[depth]))
        print(f"| {depth} | {middle:.3f} | {high_wait:.3f} | {step:.2f} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")


def main() -> None:
    """Write the file, measure, and remove it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"Batches of {BATCH} rows of {SEQ_LEN} uint16 into int64; load {os.getloadavg()[0]:.1f}")
    compute = make_computation(0.02)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "tokens.bin"
        generator = np.random.default_rng(0)
        with path.open("wb") as file:
            for _ in range(64):
                generator.integers(0, 30_000, ROWS * SEQ_LEN // 64, np.uint16).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        for title, act, steps, cold in (
            ("in the page cache, no computation", idle, 400, False),
            ("in the page cache, 20 ms per step waiting for a device", wait_for_device, 10, False),
            ("in the page cache, 20 ms per step computing on one thread", compute, 10, False),
            ("on the disk, no computation", idle, 50, True),
            ("on the disk, 20 ms per step waiting for a device", wait_for_device, 10, True),
        ):
            print(f"\n{title}:\n")
            print("| prefetch | `next`, median ms | 95%, ms | ms a step | relative to prefetch 0 (quartiles) |")
            print("|---:|---:|---:|---:|---:|", flush=True)
            measure(path, act, steps, arguments.rounds, cold)


if __name__ == "__main__":
    main()
