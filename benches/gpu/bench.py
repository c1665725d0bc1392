"""Training on one GPU: speed, utilisation, memory, and what masks, skipping and checkpoints cost.

    python bench.py --minutes 45 --out gpu.json
    python bench.py --table gpu.json

Needs torch with CUDA, transformers and drpruning, and no network: models are random, and so are the tokens. It drives
the package's own stages and loop and reads their records. README.md beside it says what the cases and figures are.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from cases import TINY_CASES, Case, cases, config_of, largest_source
from random_corpus import write_corpus
from table import GIB, derived, table

from drpruning.files import write_text


def describe(*, tiny: bool) -> dict[str, Any]:
    """The machine and the versions on it."""
    import torch

    from drpruning import __version__

    packages = {"drpruning": __version__} | {name: version(name) for name in ("torch", "transformers", "numpy")}
    found = {"card": platform.machine(), "card_bytes": None, "cuda": None}
    if not tiny:
        if not torch.cuda.is_available():
            raise click.ClickException("torch finds no GPU here; --tiny tries everything on the CPU")
        found = {
            "card": torch.cuda.get_device_name(),
            "card_bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
        }
    return {**found, **packages, "python": platform.python_version(), "platform": platform.platform(), "tiny": tiny}


def described_aside() -> dict[str, Any]:
    """The same from a process of its own: one that has asked a card keeps some of its memory."""
    command = [sys.executable, str(Path(__file__).resolve()), "--describe"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise click.ClickException(told.stderr.strip().splitlines()[-1].removeprefix("Error: "))
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def run_case(case: Case, corpus: Path, work: Path, seconds: float, patience: float, *, tiny: bool) -> dict[str, Any]:
    """Measures a case in a process of its own; what goes wrong there is its outcome, and the others go on."""
    folder = Path(tempfile.mkdtemp(dir=work))
    answer, log = folder / "result.json", folder / "log"
    asked = {"case": asdict(case), "corpus": str(corpus), "seconds": seconds, "tiny": tiny, "answer": str(answer)}
    began = time.perf_counter()
    try:
        with log.open("wb") as file:
            command = [sys.executable, str(Path(__file__).resolve()), "--case", json.dumps(asked)]
            done = subprocess.run(command, stdout=file, stderr=file, timeout=patience, check=False)
        result = json.loads(answer.read_text()) if answer.is_file() else {"outcome": f"ended with {done.returncode}"}
    except subprocess.TimeoutExpired:
        result = {"outcome": f"not done after {patience:.0f} s"}
    if result["outcome"] != "measured":
        result["said"] = log.read_text(errors="replace").splitlines()[-20:]
    shutil.rmtree(folder)
    return {"name": case.name, **asdict(case), **result, "process_seconds": time.perf_counter() - began}


def answer_case(asked: dict[str, Any]) -> None:
    """What the process of a case does: measures it and writes the answer."""
    import torch
    from measure import measure

    answer = Path(asked["answer"])
    run = answer.with_name("run")
    run.mkdir()
    try:
        measured = measure(Case(**asked["case"]), Path(asked["corpus"]), run, asked["seconds"], tiny=asked["tiny"])
        result = {"outcome": "measured", **measured}
    except torch.OutOfMemoryError as error:
        result = {"outcome": "out of memory", "error": str(error).splitlines()[0]}
    except Exception as error:  # one case must not cost the others theirs
        import traceback

        traceback.print_exc()
        result = {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
    answer.write_text(json.dumps(result))


@click.command()
@click.option("--minutes", default=45.0, show_default=True, help="For all cases together, about.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("gpu.json"), show_default=True)
@click.option("--only", multiple=True, help="Cases whose name has this in it; repeatable.")
@click.option("--work", type=click.Path(path_type=Path), help="A folder for tokens and checkpoints, 40 GB.")
@click.option("--tiny", is_flag=True, help="Small models on the CPU, to try the script.")
@click.option("--table", "shown", type=click.Path(path_type=Path, exists=True), help="Print a result as a table.")
@click.option("--case", "asked", hidden=True)
@click.option("--describe", "describing", is_flag=True, hidden=True)
def main(
    minutes: float,
    out: Path,
    only: tuple[str, ...],
    work: Path | None,
    tiny: bool,
    shown: Path | None,
    asked: str | None,
    describing: bool,
) -> None:
    """Measures every case that is not in OUT yet, and writes OUT after each."""
    if shown is not None:
        click.echo(table(json.loads(shown.read_text())), nl=False)
        return
    if asked is not None:
        answer_case(json.loads(asked))
        return
    if describing:
        click.echo(json.dumps(describe(tiny=False)))
        return
    with tempfile.TemporaryDirectory(dir=work) as folder:
        measure_all(minutes, out, only, Path(folder), tiny=tiny)


def measure_all(minutes: float, out: Path, only: tuple[str, ...], work: Path, *, tiny: bool) -> None:
    """Measures every case that is not in ``out`` yet."""
    machine = describe(tiny=True) if tiny else described_aside()
    body = json.loads(out.read_text()) if out.is_file() else {"machine": machine, "cases": []}
    if body["machine"] != machine:
        raise click.ClickException(f"{out} is of another machine or of other versions; give another --out")
    body.setdefault("started", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    reserve = 3 * GIB  # as `drpruning plan` leaves free
    pruned = "7B to 2.7B" if tiny else largest_source(machine["card_bytes"] - reserve)
    known = {each["name"] for each in body["cases"] if each["outcome"] == "measured"}
    listed = [case for case in cases(pruned) if not only or any(part in case.name for part in only)]
    if tiny:
        listed = [case for case in listed if case.name.endswith(TINY_CASES)]
    if not listed:
        raise click.ClickException(f"no case has {' or '.join(only)} in its name")
    left = [case for case in listed if case.name not in known]
    corpus = work / "corpus"
    corpus.mkdir()
    example = config_of(cases(pruned)[0], corpus, tiny=tiny)
    write_corpus(corpus, example, 2**16 if tiny else 2**23)
    seconds = 60 * minutes / max(1, len(listed))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number, case in enumerate(left, 1):
        click.echo(f"{number} of {len(left)}: {case.name}", err=True)
        # Half of its time is for loading, compiling and warming up
        result = run_case(case, corpus, work, seconds / 2, max(600.0, 4 * seconds), tiny=tiny)
        said = f"{result['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in result else result["outcome"]
        click.echo(f"  {said}: {result['error']}" if "error" in result else f"  {said}", err=True)
        body["cases"] = [each for each in body["cases"] if each["name"] != case.name] + [result]
        body["derived"] = derived(body["cases"], example.prune.target_warmup)
        write_text(out, json.dumps(body, indent=1) + "\n")
    click.echo(table(body), nl=False)


if __name__ == "__main__":
    main()
