"""Train one small run in different surroundings, and compare weights and losses with those of the first.

    python -m benches.hardening.same_bits

Surroundings: other numbers of threads, other instruction sets of torch, oneDNN and MKL, and a clock that jumps by a
year, forwards and backwards, each time it is read. Prints a row for each; exits with 1 if the clock or a second run
changes a bit. Other threads and instruction sets add in another order, so that their bits may differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benches.hardening.file_faults import TRAIN

START = "import sys; from drpruning.cli import main; sys.exit(main(sys.argv[1:]))"
JUMPING = "import itertools, time; now, year = time.time, itertools.cycle((0, 1, -1, 2))\n"
JUMPING += "time.time = lambda: now() + 31_536_000 * next(year)\n"
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
SURROUNDINGS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "1 thread": (START, (), {}),
    "1 thread, again": (START, (), {}),
    "a clock that jumps": (JUMPING + START, (), {}),
    "2 threads": (START, ("training.threads=2",), {}),
    "4 threads": (START, ("training.threads=4",), {}),
    "AVX2": (START, (), dict(zip(LIMITS, ("avx2", "AVX2", "AVX2"), strict=True))),
    "SSE4": (START, (), dict(zip(LIMITS, ("default", "SSE41", "SSE4_2"), strict=True))),
}


def trained(name: str, folder: Path) -> tuple[str, list[float], list[dict[str, int] | None]]:
    """Train in one of the surroundings.

    Returns:
        Hash of the weights, the loss of each step, its tokens by domain.
    """
    start, settings, variables = SURROUNDINGS[name]
    words = [word for setting in (*TRAIN, "training.threads=1", *settings) for word in ("--set", setting)]
    command = [sys.executable, "-c", start, "train", "quickstart", "--out", str(folder), *words]
    # Threads that spin while they wait slow each other on a busy machine.
    passive = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    environment = {**os.environ, **passive, **variables, "DRPRUNING_CACHE": str(folder.parent / f"{folder.name}-cache")}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    weights = hashlib.sha256((folder / "export" / "model.safetensors").read_bytes()).hexdigest()
    return weights, [step["loss"] for step in steps], [step["domain_tokens"] for step in steps]


def main() -> None:
    """Train in all surroundings."""
    changed = 0
    print(
        "| surroundings | same weights | largest difference of a loss | same domains of each step |\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        first = None
        for number, name in enumerate(SURROUNDINGS):
            found = trained(name, Path(scratch) / str(number))
            first = first or found
            difference = max(abs(mine - its) for mine, its in zip(found[1], first[1], strict=True))
            print(f"| {name} | {found[0] == first[0]} | {difference:.1e} | {found[2] == first[2]} |", flush=True)
            changed += found != first and number <= list(SURROUNDINGS).index("a clock that jumps")
    sys.exit(int(changed > 0))


if __name__ == "__main__":
    main()
