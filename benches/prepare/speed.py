"""How fast text becomes tokens here and elsewhere: `python benches/prepare/speed.py [--megatron CHECKOUT]`.

Every contestant tokenises the same JSON lines with the same tokenizer, on one core, in a process of its own, for a
small and for a large file. What is compared is the processor time of the difference, so that starting up costs nobody
anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SMALL, LARGE = 1_000_000, 7_000_000
DOCUMENT = 4000  # characters: about the mean of web text

MEGATRON = """
import runpy, sys, typing, typing_extensions
typing.override = typing_extensions.override  # it needs Python 3.12 for this name alone
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def texts(size: int) -> list[str]:
    """Source code and docstrings of the installed packages, cut into documents."""
    from drpruning.prepare import installed

    found: list[str] = []
    left = size
    packages = installed.package_sources(["numpy", "scipy", "sympy", "torch"])
    for path in [*installed.standard_library(), *packages]:
        text = path.read_bytes().decode(errors="replace")
        for start in range(0, len(text), DOCUMENT):
            found.append(text[start : start + DOCUMENT])
            left -= len(found[-1])
        if left <= 0:
            break
    return found


def run_raw(source: Path, _: Path, tokenizer: Path, fast: bool = False) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    documents = [json.loads(line)["text"] for line in source.open()]
    encode = backend.encode_batch_fast if fast else backend.encode_batch
    begun = time.process_time()
    for start in range(0, len(documents), 1000):
        encode(documents[start : start + 1000], add_special_tokens=False)
    print(json.dumps({"seconds": time.process_time() - begun}))


def run_raw_fast(source: Path, out: Path, tokenizer: Path) -> None:
    run_raw(source, out, tokenizer, fast=True)


def run_ours(source: Path, out: Path, tokenizer: Path) -> None:
    from drpruning.prepare import prepare

    prepare(out, {"web": source}, str(tokenizer))


def run_datatrove(source: Path, out: Path, tokenizer: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [
        JsonlReader(str(source.parent), glob_pattern=source.name),
        DocumentTokenizer(str(out), str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>"),  # noqa: S106
    ]
    LocalPipelineExecutor(steps, tasks=1, logging_dir=str(out / "logs")).run()


def run_datasets(source: Path, out: Path, tokenizer: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": loaded(batch["text"], return_attention_mask=False)["input_ids"]}

    data = load_dataset("json", data_files=str(source), split="train", cache_dir=str(out))
    data.map(tokenise, batched=True, remove_columns=["text"])


CONTESTANTS = {
    "tokenizers encode_batch": run_raw,
    "tokenizers encode_batch_fast": run_raw_fast,
    "drpruning prepare": run_ours,
    "datatrove DocumentTokenizer": run_datatrove,
    "datasets.map": run_datasets,
}


def measure(name: str, source: Path, tokenizer: Path, megatron: Path | None) -> tuple[float, float]:
    """Processor seconds, all processes together, and peak memory of the tree in MiB."""
    out = Path(tempfile.mkdtemp(dir=source.parent, prefix="out"))
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if name == "Megatron preprocess_data.py":
        assert megatron is not None
        command = [sys.executable, "-c", MEGATRON, str(megatron / "tools" / "preprocess_data.py")]
        command += ["--input", str(source), "--output-prefix", str(out / "web"), "--workers", "1", "--append-eod"]
        command += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer)]
        environment["PYTHONPATH"] = f"{megatron}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    else:
        command = [sys.executable, __file__, "--run", name, str(source), str(out / "corpus"), str(tokenizer)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    stdout, stderr = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name} failed:\n{stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if stdout.startswith('{"seconds"'):
        seconds = json.loads(stdout)["seconds"]
    return seconds, peak[0]


def _watch(pid: int, peak: list[float]) -> None:
    """Keeps the largest sum of proportional set sizes over a process and its descendants."""
    while Path(f"/proc/{pid}").exists():
        total, waiting = 0, [pid]
        while waiting:
            one = waiting.pop()
            try:
                for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
                for task in Path(f"/proc/{one}/task").iterdir():
                    waiting += [int(child) for child in (task / "children").read_text().split()]
            except (OSError, ValueError):
                pass
        peak[0] = max(peak[0], total / 1024)
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megatron", type=Path, help="a checkout of Megatron-LM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, source, out, tokenizer = arguments.run
        CONTESTANTS[name](Path(source), Path(out), Path(tokenizer))
        return

    from drpruning.prepare.tokenise import train_tokenizer

    names = [*CONTESTANTS, *(["Megatron preprocess_data.py"] if arguments.megatron else [])]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        documents = texts(LARGE)
        train_tokenizer(documents[:2000], 32_000).save(folder / "tokenizer")
        sizes = {}
        for name, size in (("small", SMALL), ("large", LARGE)):
            left, lines = size, []
            for document in documents:
                lines.append(json.dumps({"text": document}) + "\n")
                left -= len(document)
                if left <= 0:
                    break
            (folder / f"{name}.jsonl").write_text("".join(lines))
            sizes[name] = sum(len(json.loads(line)["text"].encode()) for line in lines)
        rates: dict[str, list[float]] = {name: [] for name in names}
        peaks = dict.fromkeys(names, 0.0)
        for _ in range(arguments.rounds):
            for name in names:
                small, _ = measure(name, folder / "small.jsonl", folder / "tokenizer", arguments.megatron)
                large, peak = measure(name, folder / "large.jsonl", folder / "tokenizer", arguments.megatron)
                rates[name].append((sizes["large"] - sizes["small"]) / 1e6 / (large - small))
                peaks[name] = max(peaks[name], peak)
                print(f"{name}: {rates[name][-1]:.2f} MB/s, {peak:.0f} MiB", file=sys.stderr)
    raw = statistics.median(rates["tokenizers encode_batch"])
    print("| what | MB/s per core | of encode_batch | peak memory |\n|---|---|---|---|")
    for name in names:
        rate = statistics.median(rates[name])
        print(f"| {name} | {rate:.2f} | {rate / raw:.2f} | {peaks[name]:.0f} MiB |")


if __name__ == "__main__":
    main()
