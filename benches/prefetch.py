"""What a loop waits for its batches, with and without reading ahead: `python benches/prefetch.py [FOLDER]`.

Samplers with different `prefetch` take turns, so that they see the same machine. Prints Markdown tables: medians over
rounds, and the time of a step as a ratio to that without reading ahead in the same round, with quartiles. Linux only;
FOLDER (here if nothing is said) gets a file of 1 GiB for a while, and should be on the disk meant.
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


def computing(seconds: float) -> Callable[[], object]:
    """Matrix products on the threads that NumPy has, for about so long."""
    matrix = np.random.default_rng(0).random((256, 256), np.float32)
    started = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    products = max(1, round(20 * seconds / (time.perf_counter() - started)))
    return lambda: [matrix @ matrix for _ in range(products)]


def bare() -> None:
    """Nothing is computed."""


def waiting() -> None:
    """The host has nothing to do, as while a device computes."""
    time.sleep(0.02)


def waits(sampler: dp.DomainSampler, compute: Callable[[], object], steps: int) -> tuple[list[float], float]:
    """Seconds in each `next`, and in all for a step."""
    taken = []
    started = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        next(sampler)
        taken.append(time.perf_counter() - asked)
        compute()
    return taken, (time.perf_counter() - started) / steps


def drop_cache(path: Path) -> None:
    """Has the system forget the file's pages."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: Path, compute: Callable[[], object], steps: int, rounds: int, cold: bool) -> None:
    """Prints a row for each depth."""
    corpus = dp.Corpus({"web": path}, dtype="uint16")
    samplers = {
        depth: dp.DomainSampler(corpus, {"web": 1.0}, seq_len=SEQ_LEN, batch_size=BATCH, seed=depth, prefetch=depth)
        for depth in DEPTHS
    }
    nexts: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    a_step: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(rounds):
        for depth, sampler in samplers.items():
            sampler.set_weights(sampler.weights)  # what was read ahead in the meantime would be a gift
            if cold:
                drop_cache(path)
            waits(sampler, compute, 2)
            taken, step = waits(sampler, compute, steps)
            nexts[depth] += taken
            a_step[depth].append(step)
    for depth, taken in nexts.items():
        middle, most = np.quantile(taken, [0.5, 0.95]) * 1000
        low, ratio, high = np.quantile(np.divide(a_step[depth], a_step[0]), [0.25, 0.5, 0.75])
        step = 1000 * float(np.median(a_step[depth]))
        print(f"| {depth} | {middle:.3f} | {most:.3f} | {step:.2f} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")


def main() -> None:
    """Writes the file, measures, and removes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"Batches of {BATCH} rows of {SEQ_LEN} uint16 into int64; load {os.getloadavg()[0]:.1f}")
    compute = computing(0.02)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "tokens.bin"
        generator = np.random.default_rng(0)
        with path.open("wb") as file:
            for _ in range(64):
                generator.integers(0, 30_000, ROWS * SEQ_LEN // 64, np.uint16).tofile(file)
            file.flush()
            os.fsync(file.fileno())
        for title, act, steps, cold in (
            ("in the page cache, nothing else to do", bare, 400, False),
            ("in the page cache, 20 ms of waiting for a device a step", waiting, 10, False),
            ("in the page cache, 20 ms of computing on one thread a step", compute, 10, False),
            ("on the disk, nothing else to do", bare, 50, True),
            ("on the disk, 20 ms of waiting for a device a step", waiting, 10, True),
        ):
            print(f"\n{title}:\n")
            print("| prefetch | `next`, median ms | 95% within, ms | ms a step | to prefetch 0 (quartiles) |")
            print("|---:|---:|---:|---:|---:|", flush=True)
            measure(path, act, steps, arguments.rounds, cold)


if __name__ == "__main__":
    main()
