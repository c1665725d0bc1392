"""How fast text becomes tokens here and elsewhere: `python benches/prepare/speed.py [--megatron CHECKOUT] [--peaks]`.

Every contestant tokenises the same JSON lines with the same tokenizer, in a process of its own that has imported and
tried everything, all at the same time on one and the same core: the system gives each a few milliseconds in turn, so
all meet the same neighbours. Each takes a small and a large file, and what is compared is the processor time of the
difference, so that loading the tokenizer costs nobody anything. With `--peaks`, the
peak memory of the largest process of each on the large file, all that it imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Callable
from pathlib import Path

LAUNCHER = """
import resource, subprocess, sys  # a small process, since a child's peak begins with what its parent holds
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

OURS = "`drpruning prepare`"
MEGATRON_NAME = "Megatron `preprocess_data.py`"
DOCUMENT = 4000  # characters: about the mean of web text


def texts(size: int) -> list[str]:
    """Source code and docstrings of the installed packages, cut into documents."""
    from drpruning.prepare.demo.corpus import installed_text

    found: list[str] = []
    left = size
    packages = installed_text.package_sources(["numpy", "scipy", "sympy", "torch"])
    for path in [*installed_text.standard_library(), *packages]:
        text = path.read_bytes().decode(errors="replace")
        for start in range(0, len(text), DOCUMENT):
            found.append(text[start : start + DOCUMENT])
            left -= len(found[-1])
        if left <= 0:
            break
    return found


def run_raw(source: Path, _: Path, tokenizer: Path, fast: bool = False) -> float:
    """Only the encoding is counted."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    documents = [json.loads(line)["text"] for line in source.open()]
    encode = backend.encode_batch_fast if fast else backend.encode_batch
    begun = time.process_time()
    for start in range(0, len(documents), 1000):
        encode(documents[start : start + 1000], add_special_tokens=False)
    return time.process_time() - begun


def run_raw_fast(source: Path, out: Path, tokenizer: Path) -> float:
    return run_raw(source, out, tokenizer, fast=True)


def run_ours(source: Path, out: Path, tokenizer: Path) -> float:
    from drpruning.prepare import prepare

    begun = time.process_time()
    prepare(out, {"web": source}, str(tokenizer))
    return time.process_time() - begun


def run_datatrove(source: Path, out: Path, tokenizer: Path) -> float:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    begun = time.process_time()
    steps = [
        JsonlReader(str(source.parent), glob_pattern=source.name),
        DocumentTokenizer(str(out), str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>"),  # noqa: S106
    ]
    LocalPipelineExecutor(steps, tasks=1, logging_dir=str(out / "logs")).run()
    return time.process_time() - begun


def run_datasets(source: Path, out: Path, tokenizer: Path) -> float:
    from datasets import load_dataset
    from transformers import AutoTokenizer

    begun = time.process_time()
    loaded = AutoTokenizer.from_pretrained(tokenizer)

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": loaded(batch["text"], return_attention_mask=False)["input_ids"]}

    data = load_dataset("json", data_files=str(source), split="train", cache_dir=str(out))
    data.map(tokenise, batched=True, remove_columns=["text"])
    return time.process_time() - begun


def run_megatron(checkout: Path) -> Callable[[Path, Path, Path], float]:
    """Its script, in this process, so that what it imports is imported once; it starts workers of its own."""

    def spent() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    def run(source: Path, out: Path, tokenizer: Path) -> float:
        import typing_extensions

        typing.override = typing_extensions.override  # type: ignore[attr-defined] # it needs Python 3.12 for this name alone
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        out.mkdir()
        script = str(checkout / "tools" / "preprocess_data.py")
        before, begun = sys.argv, spent()
        sys.argv = [script, "--input", str(source), "--output-prefix", str(out / "web"), "--workers", "1"]
        sys.argv += ["--append-eod", "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer)]
        try:
            runpy.run_path(script, run_name="__main__")
        finally:
            sys.argv = before
        assert next(out.glob("web*.bin")).stat().st_size
        return spent() - begun

    return run


def contestants(megatron: Path | None) -> dict[str, Callable[[Path, Path, Path], float]]:
    """What is compared; the first two are the library alone, the third is ours."""
    found: dict[str, Callable[[Path, Path, Path], float]] = {
        "tokenizers `encode_batch`": run_raw,
        "tokenizers `encode_batch_fast`": run_raw_fast,
        OURS: run_ours,
        "datatrove `DocumentTokenizer`": run_datatrove,
        "`datasets.map`": run_datasets,
    }
    if megatron:
        found[MEGATRON_NAME] = run_megatron(megatron)
    return found


def peak(name: str, megatron: Path | None, *paths: Path) -> float:
    """MiB of the largest process when ``name`` alone runs."""
    command = [sys.executable, __file__, "--alone", name, *map(str, paths)]
    if megatron:
        command += ["--megatron", str(megatron)]
    found = subprocess.run([sys.executable, "-c", LAUNCHER, *command], stdout=subprocess.PIPE, check=True)
    return int(found.stdout) / 1024


def quartiles(ratios: list[float]) -> str:
    ratios = sorted(ratios)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def serve(contestant: Callable[[Path, Path, Path], float], folder: Path, name: str) -> None:
    """For each line on the standard input a round: the seconds of the large file less those of the small."""

    def seconds(size: str) -> float:
        out = folder / f"out-{name}"
        found = contestant(folder / f"{size}.jsonl", out, folder / "tokenizer")
        shutil.rmtree(out, ignore_errors=True)
        return found

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    seconds("small")
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        print(seconds("large") - seconds("small"), file=answers, flush=True)


def races(names: list[str], command: list[str], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with (folder / "errors").open("wb") as errors:
        running = {
            name: subprocess.Popen(
                [*command, "--serve", name, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            for name in names
        }
        found: dict[str, list[float]] = {name: [] for name in names}
        try:
            for process in running.values():
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n", (folder / "errors").read_text()[-2000:]
            for number in range(rounds):
                for process in running.values():
                    print("go", file=process.stdin, flush=True)
                for name, process in running.items():
                    assert process.stdout is not None
                    found[name].append(float(process.stdout.readline()))
                print(number, {name: round(each[-1], 2) for name, each in found.items()}, file=sys.stderr, flush=True)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megatron", type=Path, help="a checkout of Megatron-LM")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", type=float, default=0.2, help="megabytes of text, to be subtracted")
    parser.add_argument("--large", type=float, default=4, help="megabytes of text")
    parser.add_argument("--peaks", action="store_true", help="measure memory, not speed")
    parser.add_argument("--alone", nargs=4, metavar=("NAME", "SOURCE", "OUT", "TOKENIZER"), help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    running = contestants(arguments.megatron)
    if arguments.alone:
        running[arguments.alone[0]](*map(Path, arguments.alone[1:]))
        return
    if arguments.serve:
        name, where = arguments.serve
        serve(running[name], Path(where), name)
        return

    from drpruning.prepare.tokenize.tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        documents = texts(int(arguments.large * 1e6))
        train_tokenizer(documents[:1000], 32_000).save(folder / "tokenizer")
        sizes = {}
        for name, size in (("small", arguments.small), ("large", arguments.large)):
            taken = documents[: int(size * 1e6) // DOCUMENT]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in taken))
            sizes[name] = sum(len(text.encode()) for text in taken)
        if arguments.peaks:
            print("| what | peak, MiB |\n|---|---|")
            for name in running:
                found = peak(name, arguments.megatron, folder / "large.jsonl", folder / "out", folder / "tokenizer")
                print(f"| {name} | {found:.0f} |", flush=True)
                shutil.rmtree(folder / "out", ignore_errors=True)
            return
        command = [sys.executable, __file__]
        if arguments.megatron:
            command += ["--megatron", str(arguments.megatron)]
        seconds = races(list(running), command, folder, arguments.rounds)
    size = (sizes["large"] - sizes["small"]) / 1e6
    rates = {name: [size / each for each in found] for name, found in seconds.items()}
    raw = rates[next(iter(running))]
    print("| what | MB/s per core | of `encode_batch`, quartiles |\n|---|---|---|")
    for name, each in rates.items():
        ratios = [rate / base for rate, base in zip(each, raw, strict=True)]
        print(f"| {name} | {statistics.median(each):.2f} | {quartiles(ratios)} |")
    peers = [each for name, each in rates.items() if name not in (OURS, *list(rates)[:2])]
    best = max(peers, key=statistics.median)
    print("of the best peer:", quartiles([own / other for own, other in zip(rates[OURS], best, strict=True)]))


if __name__ == "__main__":
    main()
