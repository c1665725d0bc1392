"""What a worker adds to the tokenizer's own time: `python benches/prepare/pieces.py`.

A worker's whole way from JSON lines to a piece on the disk (reading, parsing, hashing, tokenising, writing, flushing)
beside `encode_batch` and `encode_batch_fast` of the same texts in memory. All three are done batch by batch in turn, in
one process, since a machine that others use changes its speed from second to second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drpruning.prepare.units import units_of
from speed import texts

from drpruning.prepare.pipeline.tasks import Settings, Station, UnitTask
from drpruning.prepare.readers.field_mapping import Fields
from drpruning.prepare.readers.source_files import source_files
from drpruning.prepare.tokenize.encoder import Encoder
from drpruning.prepare.tokenize.tokenizer import train_tokenizer


class Beside(Encoder):
    """Encodes each batch twice more, by the library alone, and keeps the time that takes."""

    def batch(self, texts: Sequence[str]) -> Any:
        taken = list(texts)
        found: Any = None
        turns = list(SECONDS)
        turns = turns[ROUND[0] % len(turns) :] + turns[: ROUND[0] % len(turns)]  # nobody is always first
        for name in turns:
            begun = time.process_time()
            if name == "piece":
                found = super().batch(taken)
            else:
                getattr(self.backend, name)(taken, add_special_tokens=False)
                ALONE[0] += time.process_time() - begun
                SECONDS[name][-1] += time.process_time() - begun
        ROUND[0] += 1
        return found


SECONDS: dict[str, list[float]] = {"encode_batch": [], "encode_batch_fast": [], "piece": []}
ALONE = [0.0]
ROUND = [0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    documents = texts(int(arguments.megabytes * 1e6))
    size = sum(len(text.encode()) for text in documents) / 1e6
    tokenizer = train_tokenizer(documents[:250], 32_000)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        (unit,) = units_of(source_files([folder / "a.jsonl"]))
        beside = Beside(tokenizer.backend, tokenizer.end_id, tokenizer.vocab_size)
        tokenizer.backend.encode_batch(documents[:250], add_special_tokens=False)
        for number in range(arguments.rounds):
            settings = Settings(
                pieces=folder / str(number),
                tokenizer=folder,
                tokenizer_name="",
                end_token="",
                tokenizer_sha256="",
                end_id=tokenizer.end_id,
                vocab_size=tokenizer.vocab_size,
                dtype="uint16",
            )
            for found in SECONDS.values():
                found.append(0.0)
            ALONE[0] = 0.0
            begun = time.process_time()
            Station(settings, beside).perform(UnitTask(unit, Fields()))
            SECONDS["piece"][-1] = time.process_time() - begun - ALONE[0]
            print(number, {name: round(found[-1], 3) for name, found in SECONDS.items()}, file=sys.stderr, flush=True)
    for name, found in SECONDS.items():
        ratios = sorted(one / own for one, own in zip(found, SECONDS["piece"], strict=True))
        print(
            f"{name}: {size / statistics.median(found):.2f} MB/s; piece at {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}) of it"
        )
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
