"""The sampler beside other loaders and a C program that only copies, in one run: `make bench-sampler`.

Contenders take turns, a slice of a second each, round after round, all on the same tokens in the page cache. The
table and the plot go into benches/README.md, between two marks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from own import own_figures
from page import Result, Setting, write_page
from tokens import SEQ_LENS, write_tokens

HERE = Path(__file__).parent
AHEAD = "ours_prefetch"
LIMITS = {"mmap": "C, mapped files", "pread": "C, read calls"}
CONTENDERS = {
    "ours": "drpruning",
    AHEAD: "drpruning, reading ahead",
    "torchdata_nodes": "torchdata nodes",
    "numpy_rows": "NumPy memmap, one copy",
    "numpy_memmap": "NumPy memmap, nanoGPT",
    "hf_datasets": "HF datasets",
    "google_grain": "grain",
    "lightning_litdata": "litdata",
    "megatron_core": "Megatron blended",
    "mosaicml_streaming": "MosaicML streaming",
}
MIXTURE_BATCHES = 313  # 10,016 rows
RESUME_BATCHES = 1000


class Process:
    """A contender in its own process; see contender.py."""

    def __init__(self, name: str, data: Path, seq_len: int, workers: int) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        command = [sys.executable, str(HERE / "contender.py"), name, str(data), str(seq_len), str(workers)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def ask(self, request: str) -> dict[str, Any]:
        """Its answer, or why there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.log.seek(0)
            last = self.log.read().strip().splitlines()[-1:]
            return {"error": f"its process ended: {' '.join(last)}"}
        return answer


class Limit:
    """The C program, compiled here."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.program, self.tokens = folder / "limit", data / "tokens"
        flags = ["-O3", "-march=native", "-pthread"]
        subprocess.run(["cc", *flags, "-o", str(self.program), str(HERE / "limit.c")], check=True)

    def rate(self, seq_len: int, threads: int, seconds: float, how: str) -> float:
        """Rows per second."""
        command = [str(self.program), str(self.tokens), str(seq_len), str(threads), str(seconds), how]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


@dataclass
class Rates:
    """Slices of one setting, by contender."""

    slices: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def medians(self) -> dict[str, float]:
        """Rows per second."""
        return {name: float(np.median(rates)) for name, rates in self.slices.items()}

    def spread(self) -> float:
        """Half the distance between quartiles, relative to the median; the median over contenders."""
        quartiles = [np.quantile(rates, [0.25, 0.5, 0.75]) for rates in self.slices.values()]
        return float(np.median([(high - low) / 2 / middle for low, middle, high in quartiles]))


def measure(
    names: list[str], data: Path, limit: Limit, setting: Setting, rounds: int, seconds: float, result: Result
) -> None:
    """All contenders in turn at one row length and number of workers (0: one thread; else so many)."""
    seq_len, workers = setting
    rates = Rates()
    with ExitStack() as stack:
        running = started(names, data, setting, stack, result)
        for number in range(rounds):
            for how in LIMITS:
                rates.slices[how].append(limit.rate(seq_len, max(1, workers), seconds, how))
            for name, process in list(running.items()):
                said = process.ask(f"rate {seconds}")
                if "rate" in said:
                    rates.slices[name].append(said["rate"])
                else:
                    result.absent.setdefault(name, str(said))
                    del running[name]
            print(f"  round {number + 1} of {rounds}", file=sys.stderr)
    result.rates[setting] = rates.medians()
    result.spreads.append(rates.spread())


def started(names: list[str], data: Path, setting: Setting, stack: ExitStack, result: Result) -> dict[str, Process]:
    """The contenders that have given a first batch; what is measured once is measured at the first setting."""
    seq_len, workers = setting
    running = {}
    for name in names:
        if name == AHEAD and not workers:
            continue  # it has two threads
        process = stack.enter_context(Process(name, data, seq_len, workers))
        said = process.ask("prepare")
        said = said if said else process.ask("start")
        print(f"  {name}: {said}", file=sys.stderr)
        if "first" not in said:
            result.absent.setdefault(name, str(said.get("missing", said.get("error"))))
            continue
        running[name] = process
        result.versions[name] = said["version"]
        if setting == (SEQ_LENS[0], 0):
            resumed = process.ask(f"resume {RESUME_BATCHES}")
            result.once[name] = {**said, **process.ask(f"mixture {MIXTURE_BATCHES}"), **resumed}
    return running


def machine() -> str:
    """Processor, cores and load, in words."""
    cpus = Path("/proc/cpuinfo")
    named = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
    return (
        f"{os.cpu_count()} cores of {(named or [platform.machine()])[0]}, {platform.system()}, "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )


def main() -> None:
    """Writes data where it is missing, measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "target" / "bench-sampler")
    parser.add_argument("--tokens", type=int, default=2**28, help="tokens of all domains (default: 2^28, 512 MiB)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a slice")
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--page", type=Path, default=HERE.parent / "README.md")
    arguments = parser.parse_args()
    data = arguments.data / str(arguments.tokens)
    result = Result(
        names=LIMITS | {name: CONTENDERS[name] for name in arguments.only},
        machine=machine(),
        date=datetime.now(UTC).date().isoformat(),
        tokens=arguments.tokens,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    )
    if not (data / "tokens.done").exists():
        write_tokens(data, arguments.tokens)
        (data / "tokens.done").touch()
    with tempfile.TemporaryDirectory() as folder:
        limit = Limit(data, Path(folder))
        for seq_len in SEQ_LENS:
            for workers in (0, 2):
                print(f"rows of {seq_len}, {workers} workers", file=sys.stderr)
                setting = (seq_len, workers)
                measure(arguments.only, data, limit, setting, arguments.rounds, arguments.seconds, result)
    result.own = own_figures(data)
    write_page(arguments.page, result)


if __name__ == "__main__":
    main()
