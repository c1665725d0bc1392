"""Compare memory allocators for the tokenizer: `python benches/prepare/allocators.py libmimalloc.so.2 ...`.

Each library is loaded by LD_PRELOAD in a separate process; one process uses the allocator of the C library. The
processes alternate in random order on the same texts; the comparison uses their processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import texts

from drpruning.prepare.tokenize.tokenizer import train_tokenizer

BATCH = 80

WORKER = """
import json, sys, time
import tokenizers
folder, batch = sys.argv[1], int(sys.argv[2])
documents = json.load(open(folder + "/texts.json"))
backend = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
for line in sys.stdin:
    begun = time.process_time()
    backend.encode_batch_fast(documents[int(line):int(line) + batch], add_special_tokens=False)
    print(time.process_time() - begun, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("libraries", nargs="+")
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    chosen = random.Random(3)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        documents = texts(2_000_000)
        train_tokenizer(documents[:400], 32_000).save(Path(folder))
        (Path(folder) / "texts.json").write_text(json.dumps(documents))
        workers = {
            name: subprocess.Popen(
                [sys.executable, "-c", WORKER, folder, str(BATCH)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"LD_PRELOAD": name},
            )
            for name in ("", *arguments.libraries)
        }

        def seconds(name: str, start: int) -> float:
            worker = workers[name]
            assert worker.stdin is not None
            assert worker.stdout is not None
            print(start, file=worker.stdin, flush=True)
            return float(worker.stdout.readline())

        spent: dict[str, list[float]] = {name: [] for name in workers}
        for name in workers:
            seconds(name, 0)
        end = time.monotonic() + arguments.seconds
        while time.monotonic() < end:
            start = chosen.randrange(len(documents) - BATCH)
            for name in chosen.sample(list(workers), len(workers)):
                spent[name].append(seconds(name, start))
        for worker in workers.values():
            worker.communicate()
    for name, found in spent.items():
        ratios = sorted(own / other for own, other in zip(spent[""], found, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        named = name or "the C library's"
        print(f"{named}: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) times as fast, {len(ratios)} turns")


if __name__ == "__main__":
    main()
