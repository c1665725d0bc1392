"""Kill a preparation at random moments and compare the bytes of the corpus: `python benches/prepare/crash_recovery.py`.

The corpus is prepared with 1, 2 and 8 workers, then with 2 workers whose processes are killed together `--kills` times.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drpruning.prepare.tokenize.tokenizer import train_tokenizer

PROGRAM = """
import sys
import tokenizers
from drpruning.prepare import prepare, preparation
from drpruning.prepare.readers import divide_files
from drpruning.prepare.tokenize.tokenizer import END_TOKEN, DocumentTokenizer, make_saver


def load(name, end_token):  # importing transformers is slow: most kills would hit the import
    backend = tokenizers.Tokenizer.from_file(name + "/tokenizer.json")
    return DocumentTokenizer(name, backend, END_TOKEN, make_saver(backend, END_TOKEN))


preparation.load_tokenizer = load
divide_files.__defaults__ = (1 << 16,)  # small blocks, so that there is much to interrupt
folder, out, workers = sys.argv[1:]
prepare(out, {name: f"{folder}/{name}.jsonl" for name in ("a", "b", "c")}, f"{folder}/tokenizer", workers=int(workers),
        shard_tokens=1 << 16)
"""


def checksum(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(f"{path.relative_to(folder)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--megabytes", type=float, default=3)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from speed import texts

    chosen = random.Random(11)  # noqa: S311
    documents = texts(int(arguments.megabytes * 1e6))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train_tokenizer(documents[:500], 8000).save(folder / "tokenizer")
        for number, name in enumerate("abc"):  # every tenth document is in two domains
            part = [text for at, text in enumerate(documents) if at % 3 == number or at % 30 == (number + 1) % 3]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))

        def start(out: Path, workers: int) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", PROGRAM, str(folder), str(out), str(workers)]
            return subprocess.Popen(command, start_new_session=True)

        sums = {}
        for workers in (1, 2, 8):
            begun = time.monotonic()
            assert start(folder / f"workers{workers}", workers).wait() == 0
            seconds = time.monotonic() - begun
            sums[workers] = checksum(folder / f"workers{workers}")
            print(f"{workers} workers: {sums[workers][:16]}, {seconds:.0f} s", flush=True)
        out, killed, through = folder / "killed", 0, 0
        while killed < arguments.kills:
            process = start(out, 2)
            try:
                process.wait(chosen.uniform(0.2, 1.0) * seconds)
                through += 1
                assert checksum(out) == sums[1]
                shutil.rmtree(out)  # again from the beginning
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
        assert start(out, 2).wait() == 0
        sums[0] = checksum(out)
        print(f"after {killed} kills and {through} complete runs between them: {sums[0][:16]}")
        assert len(set(sums.values())) == 1, "the bytes differ"
        print("all corpora have the same bytes")


if __name__ == "__main__":
    main()
