"""Measure time and memory of opening a corpus, at any size: `python benches/open_corpus.py [FOLDER]`. Linux only.

Files are sparse: they use no disk space, and reading them costs as much as reading zeros. Each case runs in a separate
process. Memory is the growth of the resident set from before the corpus is opened until batches of 32 rows of 2048
tokens have been read from all parts of it. Creating the 200,000 files takes minutes.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import drpruning as dp

SEQ_LEN, BATCH, BATCHES = 2048, 32, 200


def sparse(path: Path, tokens: int) -> None:
    """Create a sparse file of uint16 zeros."""
    path.touch()
    os.truncate(path, 2 * tokens)


def index(path: Path, tokens: int) -> None:
    """Write Megatron's `.idx` for one document."""
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 1, 2)
    path.write_bytes(head + struct.pack("<iqqq", tokens, 0, 0, 1))


def resident() -> float:
    """Return the resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(domains: dict[str, str]) -> dict[str, float]:
    """Open the corpus, draw the first batch, draw more."""
    small = Path(tempfile.mkdtemp()) / "small.bin"
    sparse(small, 10**6)
    next(dp.DomainSampler(dp.Corpus({"x": small}, dtype="uint16"), {"x": 1}, seq_len=SEQ_LEN, batch_size=BATCH))
    before = resident()
    start = time.perf_counter()
    corpus = dp.Corpus(domains, dtype="uint16")
    opened = time.perf_counter()
    sampler = dp.DomainSampler(corpus, dict.fromkeys(domains, 1.0), seq_len=SEQ_LEN, batch_size=BATCH)
    next(sampler)
    first = time.perf_counter()
    for _ in range(BATCHES):
        next(sampler)
    return {
        "rows": sum(corpus.num_rows(SEQ_LEN).values()),
        "open_ms": 1e3 * (opened - start),
        "first_ms": 1e3 * (first - opened),
        "mib": resident() - before,
    }


def main(folder: Path) -> None:
    """Create the files and measure each case three times; print a table of medians."""
    (folder / "seven").mkdir()
    for number in range(7):
        sparse(folder / "seven" / f"{number}.bin", 10**9 * SEQ_LEN // 7 + SEQ_LEN)
    for kind in ("flat", "megatron"):
        (folder / kind).mkdir()
        for number in range(100_000):
            path = folder / kind / f"{number:06}.bin"
            sparse(path, 10_000_000)
            if kind == "megatron":
                index(path.with_suffix(".idx"), 10_000_000)
    cases = {
        "7 flat files of 4.1 TB in total": {str(n): str(folder / "seven" / f"{n}.bin") for n in range(7)},
        "100,000 flat shards of 10^7 tokens": {"x": str(folder / "flat")},
        "100,000 Megatron shards of 10^7 tokens": {"x": str(folder / "megatron")},
    }
    print("| corpus | rows of 2048 | open | then first batch | memory |\n|---|---|---|---|---|")
    for name, domains in cases.items():
        command = [sys.executable, __file__, "--measure", json.dumps(domains)]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)]
        middle = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        print(
            f"| {name} | {middle['rows']:.1e} | {middle['open_ms']:,.1f} ms | {middle['first_ms']:.1f} ms "
            f"| {middle['mib']:.1f} MiB |"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(json.loads(sys.argv[2]))))
    else:
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as folder:
            main(Path(folder))
