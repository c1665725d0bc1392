"""Training on one GPU: speed, utilisation, memory by phase, compilation, resuming, and the parts of a step.

    python bench.py --minutes 9 --out gpu.json    # repeat until complete, also on another machine of the same kind
    python bench.py --report results --out gpu.json

Needs torch with CUDA, transformers and drpruning, and no network: models and tokens are random. It runs the package's
own stages and loop and reads their records. README.md in this folder has the instructions, docs/benchmarks/gpu.md the
cases and metrics.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from cases import GIB, Case, cases, config_of, largest_source, unknown_setting
from plots import write_plots
from random_corpus import write_corpus
from table import derived, table

from drpruning.files import write_text

RESERVE = 3 * GIB  # of the card's memory, as `drpruning plan cost` leaves free
TINY_SECONDS = 60  # estimate for a case of --tiny
TRIES = 2  # of a case during which the machine went away
CUT_OFF = "cut off"
LAST_SECONDS = 10.0  # of the time limit, in which a case is ended and the result written


def describe(*, tiny: bool) -> dict[str, Any]:
    """Return what results of two machines must have in common: card, torch, CUDA, versions of packages."""
    import torch

    from drpruning import __version__

    packages = {"drpruning": __version__} | {name: version(name) for name in ("torch", "transformers", "numpy")}
    found = {"card": platform.machine(), "card_bytes": None, "cuda": None}
    if not tiny:
        if not torch.cuda.is_available():
            raise click.ClickException("torch finds no GPU here; --tiny runs all cases on the CPU")
        found = {
            "card": torch.cuda.get_device_name(),
            "card_bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
        }
    return {**found, **packages, "python": platform.python_version(), "tiny": tiny}


def describe_in_subprocess() -> dict[str, Any]:
    """Describe the machine in another process: this one would keep some of the card's memory."""
    command = [sys.executable, str(Path(__file__).resolve()), "--describe"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise click.ClickException(answer.stderr.strip().splitlines()[-1].removeprefix("Error: "))
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def measure(case: Case, corpus: Path, run: Path, *, tiny: bool) -> dict[str, Any]:
    """Measure a case in this process; ``run`` is an empty folder."""
    if case.kind == "steps":
        from steps import measure_steps as measuring
    elif case.kind == "phases":
        from phases import measure_phases as measuring
    elif case.kind == "resumed phases":
        from phases import measure_resumed_phases as measuring
    elif case.kind == "compiled run":
        from whole_runs import measure_compiled_run as measuring
    elif case.kind == "stopped run":
        from whole_runs import measure_stopped_run as measuring
    elif case.kind == "miniature":
        from whole_runs import measure_miniature as measuring
    elif case.kind == "optimizer":
        from parts import measure_optimizer as measuring
    else:
        from parts import measure_loader as measuring
    return measuring(case, corpus, run, tiny=tiny)


def measure_request(request: dict[str, Any]) -> None:
    """Measure a case in its process and write the result; an exception is a result too."""
    import torch

    answer, case = Path(request["answer"]), Case.from_dict(request["case"])
    run = answer.with_name("run")
    run.mkdir()
    try:
        if (setting := unknown_setting(case)) is not None:
            result: dict[str, Any] = {"outcome": f"no setting training.{setting} in this version"}
        else:
            measured = measure(case, Path(request["corpus"]), run, tiny=request["tiny"])
            result = {"outcome": "measured", **measured}
    except torch.OutOfMemoryError as error:
        result = {"outcome": "out of memory", "error": str(error).splitlines()[0]}
    except Exception as error:  # the other cases must still run
        import traceback

        traceback.print_exc()
        result = {"outcome": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
    answer.write_text(json.dumps(result))


def run_case(case: Case, corpus: Path, work: Path, patience: float, *, tiny: bool) -> dict[str, Any]:
    """Measure a case in another process, for at most ``patience`` seconds."""
    folder = Path(tempfile.mkdtemp(dir=work))
    answer, log = folder / "result.json", folder / "log"
    request = {"case": case.to_dict(), "corpus": str(corpus), "tiny": tiny, "answer": str(answer)}
    environment = {"TOKENIZERS_PARALLELISM": "false", "DRPRUNING_CACHE": str(work / "cache"), **os.environ}
    if search := os.environ.get("PYTHONPATH"):  # a case runs in another folder
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in search.split(os.pathsep))
    began = time.perf_counter()
    try:
        with log.open("wb") as file:
            command = [sys.executable, str(Path(__file__).resolve()), "--case", json.dumps(request)]
            done = subprocess.run(
                command, stdout=file, stderr=file, timeout=patience, check=False, env=environment, cwd=folder
            )
        result = json.loads(answer.read_text()) if answer.is_file() else {"outcome": f"ended with {done.returncode}"}
    except subprocess.TimeoutExpired:
        result = {"outcome": f"not done after {patience:.0f} s"}
    if result["outcome"] != "measured":
        result["log"] = log.read_text(errors="replace").splitlines()[-20:]
    shutil.rmtree(folder)
    return {**case.to_dict(), **result, "process_seconds": time.perf_counter() - began, "on": platform.platform()}


class Results:
    """The file of results: of one kind of machine, completed in several calls.

    Args:
        path: The file; made if it is not there.
        machine: As :func:`describe` returns it.

    Raises:
        click.ClickException: The file is of another kind of machine.
    """

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self.path = path
        self.body: dict[str, Any] = {"machine": machine, "started": time.strftime("%Y-%m-%d"), "cases": []}
        if path.is_file():
            self.body = json.loads(path.read_text())
            known = self.body["machine"]
            if differing := [name for name in machine if known.get(name) != machine[name]]:
                name = differing[0]
                raise click.ClickException(
                    f"{path} has {name} {known.get(name)}, this machine {machine[name]}; give another --out"
                )

    def pruned(self) -> str:
        """Return the largest source model that fits the card, planned once."""
        if "pruned" not in self.body:
            room = self.body["machine"]["card_bytes"]
            self.body["pruned"] = "7B to 2.7B" if room is None else largest_source(room - RESERVE)
        return str(self.body["pruned"])

    def is_over(self, case: Case, *, again: bool) -> bool:
        """Return whether a case is finished: it has a result, or was cut off too often."""
        known = next((each for each in self.body["cases"] if each["name"] == case.name), None)
        if known is None:
            return False
        if known["outcome"] == CUT_OFF:
            return known["tries"] >= TRIES and not again
        return known["outcome"] == "measured" or not again

    def begin(self, case: Case) -> None:
        """Write that a case has started; this outcome stays if the machine disappears meanwhile."""
        known = next((each for each in self.body["cases"] if each["name"] == case.name), {})
        self._put({**case.to_dict(), "outcome": CUT_OFF, "tries": known.get("tries", 0) + 1})

    def end(self, result: dict[str, Any]) -> None:
        """Write the result of a case."""
        self._put(result)

    def _put(self, result: dict[str, Any]) -> None:
        others = [each for each in self.body["cases"] if each["name"] != result["name"]]
        order = {case.name: place for place, case in enumerate(cases(self.pruned()))}
        self.body["cases"] = sorted([*others, result], key=lambda each: order.get(each["name"], len(order)))
        self.body["derived"] = derived(self.body["cases"])
        write_text(self.path, json.dumps(self.body, indent=1) + "\n")


@click.command()
@click.option("--minutes", default=9.0, show_default=True, help="Time limit of this call.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("gpu.json"), show_default=True)
@click.option("--only", multiple=True, help="Run only cases whose name contains this; repeatable.")
@click.option("--again", is_flag=True, help="Run cases that failed again.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for tokens and checkpoints, up to 60 GB.")
@click.option("--tiny", is_flag=True, help="Run all cases on small models on the CPU.")
@click.option("--list", "listing", is_flag=True, help="Print the cases and whether they have a result.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the table and the plots of OUT to this folder.")
@click.option("--case", "request", hidden=True)
@click.option("--describe", "describing", is_flag=True, hidden=True)
def main(
    minutes: float,
    out: Path,
    only: tuple[str, ...],
    again: bool,
    work: Path | None,
    tiny: bool,
    listing: bool,
    report: Path | None,
    request: str | None,
    describing: bool,
) -> None:
    """Measure the cases that OUT lacks, within the time limit, and write OUT after each."""
    if request is not None:
        measure_request(json.loads(request))
        return
    if describing:
        click.echo(json.dumps(describe(tiny=False)))
        return
    if report is not None:
        body = json.loads(out.read_text())
        report.mkdir(parents=True, exist_ok=True)
        (report / "table.md").write_text(table(body), encoding="utf-8")
        written = ["table.md", *write_plots(body, report)]
        click.echo(f"{report}: {', '.join(written)}")
        return
    started = time.monotonic()
    results = Results(out, describe(tiny=True) if tiny else describe_in_subprocess())
    listed = [case for case in cases(results.pruned()) if not only or any(part in case.name for part in only)]
    if not listed:
        raise click.ClickException(f"no case has {' or '.join(only)} in its name")
    left = [case for case in listed if not results.is_over(case, again=again)]
    if listing:
        for case in listed:
            click.echo(f"{'left' if case in left else 'done'}  {case.seconds:4d} s  {case.name}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the process of a case is ended as well
    measure_cases(left, results, work or Path(tempfile.gettempdir()) / "gpu-bench", started + 60 * minutes, tiny=tiny)
    over = sum(results.is_over(case, again=False) for case in listed)
    click.echo(table(results.body), nl=False)
    rest = "complete" if over == len(listed) else "rerun the same command for the others"
    click.echo(f"{over} of {len(listed)} cases have a result; {rest}", err=True)


def measure_cases(left: list[Case], results: Results, work: Path, deadline: float, *, tiny: bool) -> None:
    """Measure cases in order; skip those whose estimated time does not fit before ``deadline``."""
    corpus = work / f"corpus{'-tiny' * tiny}"
    if left and not (corpus / "corpus.json").is_file():
        shutil.rmtree(corpus, ignore_errors=True)
        corpus.mkdir(parents=True)
        example = config_of(cases(results.pruned())[0], corpus, tiny=tiny)
        vocabulary = example.model.architecture.vocabulary  # type: ignore[union-attr]
        size = {"tokens": 2**14, "document": 48} if tiny else {"tokens": 2**22}
        write_corpus(corpus, example.domains, vocabulary, **size)  # type: ignore[arg-type]
    for case in left:
        remaining = deadline - time.monotonic() - LAST_SECONDS
        if remaining < (TINY_SECONDS if tiny else case.seconds):
            continue
        patience = remaining if tiny else min(remaining, 2.0 * case.seconds)
        click.echo(f"{case.name}: at most {patience:.0f} s", err=True)
        results.begin(case)
        result = run_case(case, corpus, work, patience, tiny=tiny)
        results.end(result)
        error = f": {result['error']}" if "error" in result else ""
        click.echo(f"  {result['outcome']} in {result['process_seconds']:.0f} s{error}", err=True)


if __name__ == "__main__":
    main()
