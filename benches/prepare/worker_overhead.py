"""Overhead of a worker over the tokenizer: `python benches/prepare/worker_overhead.py`.

Measures the whole work of a worker from JSON lines to a tokenized block on the disk (reading, parsing, hashing,
tokenizing, writing, flushing) against `encode_batch` and `encode_batch_fast` of the same texts in memory. The three
alternate batch by batch in one process, since the speed of a shared machine changes from second to second.
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

from speed import texts

from drpruning.prepare.pipeline.tasks import TaskRunner, UnitTask
from drpruning.prepare.readers import divide_files
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.source_files import source_files
from drpruning.prepare.tokenize.encoder import Encoder
from drpruning.prepare.tokenize.tokenized_blocks import TokenizeSettings
from drpruning.prepare.tokenize.tokenizer import train_tokenizer


class TimedEncoder(Encoder):
    """Also encodes each batch with the two functions of the library, and records their times."""

    def encode_batch(self, texts: Sequence[str]) -> Any:
        batch = list(texts)
        result: Any = None
        turns = list(SECONDS)
        turns = turns[ROUND[0] % len(turns) :] + turns[: ROUND[0] % len(turns)]  # rotate the order
        for name in turns:
            start = time.process_time()
            if name == "worker":
                result = super().encode_batch(batch)
            else:
                getattr(self.backend, name)(batch, add_special_tokens=False)
                ALONE[0] += time.process_time() - start
                SECONDS[name][-1] += time.process_time() - start
        ROUND[0] += 1
        return result


SECONDS: dict[str, list[float]] = {"encode_batch": [], "encode_batch_fast": [], "worker": []}
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
        (unit,) = divide_files(source_files([folder / "a.jsonl"]))
        encoder = TimedEncoder(tokenizer.backend, tokenizer.end_id, tokenizer.vocab_size)
        tokenizer.backend.encode_batch(documents[:250], add_special_tokens=False)
        for number in range(arguments.rounds):
            settings = TokenizeSettings(
                blocks=folder / str(number),
                tokenizer=folder,
                tokenizer_name="",
                end_token="",
                tokenizer_sha256="",
                end_id=tokenizer.end_id,
                vocab_size=tokenizer.vocab_size,
                dtype="uint16",
            )
            for seconds in SECONDS.values():
                seconds.append(0.0)
            ALONE[0] = 0.0
            start = time.process_time()
            TaskRunner(settings, encoder).run(UnitTask(unit, FieldMapping()))
            SECONDS["worker"][-1] = time.process_time() - start - ALONE[0]
            print(
                number, {name: round(seconds[-1], 3) for name, seconds in SECONDS.items()}, file=sys.stderr, flush=True
            )
    for name, seconds in SECONDS.items():
        ratios = sorted(library / worker for library, worker in zip(seconds, SECONDS["worker"], strict=True))
        print(
            f"{name}: {size / statistics.median(seconds):.2f} MB/s; worker at {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}) of it"
        )
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
