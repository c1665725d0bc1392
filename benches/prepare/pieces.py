"""What a worker adds to the tokenizer's own time: `python benches/prepare/pieces.py`.

In one process and in turn: `encode_batch` and `encode_batch_fast` of texts in memory, and a worker's whole way from
JSON lines to a piece on the disk (reading, parsing, hashing, tokenising, writing, flushing).
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from speed import texts

from drpruning.prepare.fields import Fields
from drpruning.prepare.sources import source_files
from drpruning.prepare.tokenise import train_tokenizer
from drpruning.prepare.units import units_of
from drpruning.prepare.work import Settings, Station, UnitTask

ROUNDS = 9


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    documents = texts(1_000_000)
    size = sum(len(text.encode()) for text in documents) / 1e6
    tokenizer = train_tokenizer(documents, 32_000)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        (unit,) = units_of(source_files([folder / "a.jsonl"]))

        def encode(fast: bool) -> None:
            call = tokenizer.backend.encode_batch_fast if fast else tokenizer.backend.encode_batch
            for start in range(0, len(documents), 1000):
                call(documents[start : start + 1000], add_special_tokens=False)

        def piece(number: int) -> None:
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
            Station(settings, tokenizer.encoder).perform(UnitTask(unit, Fields()))

        encode(fast=False)
        seconds: dict[str, list[float]] = {"encode_batch": [], "encode_batch_fast": [], "piece": []}
        for number in range(ROUNDS):
            for name, found in seconds.items():
                begun = time.process_time()
                if name == "piece":
                    piece(number)
                else:
                    encode(name == "encode_batch_fast")
                found.append(time.process_time() - begun)
    for name, found in seconds.items():
        ratios = sorted(one / own for one, own in zip(found, seconds["piece"], strict=True))
        middle, low, high = statistics.median(ratios), ratios[ROUNDS // 4], ratios[-1 - ROUNDS // 4]
        print(
            f"{name}: {size / statistics.median(found):.2f} MB/s; piece at {middle:.2f} ({low:.2f} to {high:.2f}) of it"
        )


if __name__ == "__main__":
    main()
