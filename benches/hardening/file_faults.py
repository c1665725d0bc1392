"""Kill a command, or fail, at each of its file operations; run it again, and compare its files with an undisturbed run.

    python -m benches.hardening.file_faults                                  # kills, every operation of every command
    python -m benches.hardening.file_faults train export --faults ENOSPC EIO short --stride 5

The operations of Python, Rust and torch pass through ``file_faults.c``, which is compiled here and loaded by
``LD_PRELOAD``. At the k-th operation that creates, writes, flushes, renames, truncates or removes a file of the
command's folder, the process is killed (``kill``; a write writes one half before), or the operation fails with an
error number, once (``EIO``) or from there on (``ENOSPC+``), or it writes one half and reports that (``short``). Each
case runs the command with one fault, checks exit code and output, runs it again without faults unless the results are
complete, and compares every byte of the results. A process that imported the package once forks the cases.
``docs/reliability.md`` has the results.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import gc
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHIM = Path(__file__).with_name("file_faults.c")
VARIABLE = "DRPRUNING_FILE_FAULTS"
OFF, KILL, FAIL, SHORT = range(4)
"""Modes of the shim."""
TRAIN = (
    "pretrain.steps=4", "pretrain.eval_every=2", "prune.steps=4", "prune.eval_every=2",
    "continue.steps=4", "continue.eval_every=2", "training.checkpoint_every=2", "training.eval_tokens=64",
    "training.final_eval_tokens=64", "training.device=cpu", "also_run=[]", "data.seq_len=32",
    "pretrain.batch_size=2", "prune.batch_size=2", "continue.batch_size=2", "prune.calibration.tokens=512",
    "model.architecture.layers=2", "model.architecture.hidden=32", "model.architecture.heads=4",
    "model.architecture.kv_heads=2", "model.architecture.intermediate=48",
    "prune.target.layers=2", "prune.target.hidden=24", "prune.target.heads=2", "prune.target.intermediate=32",
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One kind of fault: the shim's mode, the error number, and whether all later operations fail too."""

    mode: int
    number: int = 0
    rest: bool = False

    @classmethod
    def parse(cls, name: str) -> Fault:
        """Return the fault of a name: ``kill``, ``short``, or an error name with an optional ``+``."""
        if name in ("kill", "short"):
            return cls(KILL if name == "kill" else SHORT)
        return cls(FAIL, getattr(errno, name.removesuffix("+")), name.endswith("+"))


NO_FAULT = Fault(OFF)


@dataclass(frozen=True)
class Command:
    """A command under test.

    Attributes:
        arguments: Of the command line, given the folder for its files.
        results: Files whose bytes are compared, as globs in that folder.
        atomic: Whether the results exist completely or not at all after a fault.
        workers: Whether the command starts processes that write; a kill may end one of them, or all.
    """

    arguments: Callable[[Path], list[str]]
    results: tuple[str, ...]
    atomic: bool = True
    workers: bool = False


@dataclass
class Outcome:
    """Counts of the cases of one command and one fault."""

    operations: int
    cases: int = 0
    failures: list[str] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)


def commands(source: Path, corpora: Path) -> dict[str, Command]:
    """Return the commands by name; ``source`` has text, a tokenizer and a finished run, ``corpora`` the demo corpus."""
    demo = next(path.parent for path in sorted(corpora.glob("demo-*/corpus.json")))
    train = [word for setting in TRAIN for word in ("--set", setting)]
    return {
        "train": Command(
            lambda out: ["train", "quickstart", "--out", str(out / "run"), "--resume", *train],
            ("run/export/*.safetensors", "run/recipe.yaml"),
            atomic=False,
        ),
        "train, 120 steps": Command(
            lambda out: [
                "train", "quickstart", "--out", str(out / "run"), "--resume", *train,
                *(word for stage in ("pretrain", "prune", "continue") for word in (
                    "--set", f"{stage}.steps=40", "--set", f"{stage}.eval_every=8",
                )),
            ],
            ("run/export/*.safetensors", "run/recipe.yaml"),
            atomic=False,
        ),
        "compare": Command(
            lambda out: [
                "compare", "quickstart", "--strategies", "constant,sheared", "--seeds", "1",
                "--out", str(out / "compare"), *train,
            ],
            (
                "compare/runs/*/*/export/*.safetensors", "compare/runs/*/*/recipe.yaml",
                "compare/runs/*/*/documents.json", "compare/bases/*.json", "compare/primary.json",
            ),
            atomic=False,
            workers=True,
        ),
        "prepare": Command(
            lambda out: [
                "prepare", str(out / "corpus"), "--tokenizer", str(source / "run" / "export"), "--workers", "1",
                "--domain", f"a={source / 'a.jsonl'}", "--domain", f"b={source / 'b.jsonl'}",
            ],
            ("corpus/**/*",),
        ),
        "export": Command(
            lambda out: ["export", "hf", str(source / "run" / "export"), str(out / "model"), "--dtype", "bfloat16"],
            ("model/**/*",),
        ),
        "report": Command(
            lambda out: ["report", str(source / "run"), "--out", str(out / "report.html")],
            ("report.html",),
        ),
        "teach": Command(
            lambda out: [
                "teach", str(demo), "--model", str(source / "run" / "export"), "--out", str(out / "teacher"),
                "--rows", "6", "--block-rows", "2", "--seq-len", "32", "--device", "cpu", "--resume",
            ],
            ("teacher/**/*",),
            atomic=False,
        ),
        "benchmark build": Command(
            lambda out: [
                "benchmark", "build", str(demo), str(out / "benchmark"), "--domain", "readme", "--per-domain", "12",
            ],
            ("benchmark/**/*",),
            atomic=False,
        ),
    }  # fmt: skip


def file_sums(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """Return the hash of each file by its name."""
    files = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def checksum(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return the hash of names and contents of the files; empty if there are none."""
    sums = file_sums(folder, patterns)
    return hashlib.sha256(repr(sums).encode()).hexdigest() if sums else ""


class Runner:
    """Runs a command in a forked child, with or without a fault.

    Args:
        shim: The loaded library.
        log: File for the output of the children.
    """

    def __init__(self, shim: ctypes.CDLL, log: Path) -> None:
        self.shim, self.log = shim, log

    def start(self, arguments: list[str], folder: Path, fault: Fault, at: int) -> tuple[int, int]:
        """Run the command line in a child; the fault is at operation ``at`` from 1, 0 for none.

        Returns:
            Process id, and the pipe for :meth:`finish`.
        """
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            self._child(arguments, folder, fault, at, write)
        os.close(write)
        return child, read

    def finish(self, child: int, read: int) -> tuple[int, int]:
        """Wait for a child.

        Returns:
            Exit code (minus the signal if it was killed), and number of file operations (0 if it was killed).
        """
        with os.fdopen(read, "rb") as pipe:
            counted = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(counted or 0)

    def run(self, arguments: list[str], folder: Path, fault: Fault, at: int) -> tuple[int, int]:
        """Run the command line in a child and wait for it: :meth:`start`, :meth:`finish`."""
        return self.finish(*self.start(arguments, folder, fault, at))

    def _child(self, arguments: list[str], folder: Path, fault: Fault, at: int, write: int) -> None:
        from drpruning.cli import main
        from drpruning.comparison import scheduler

        code = 99
        try:
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ["DRPRUNING_CACHE"] = str(folder / "cache")
            fork: Any = multiprocessing.get_context("fork")  # has imported torch, and counts
            scheduler._fork_server = lambda: fork
            self.shim.faults_arm(f"{folder}/".encode(), fault.mode, at, fault.number, int(fault.rest))
            try:
                code = main(arguments) or 0
            except SystemExit as error:
                code = int(error.code or 0)
        except BaseException:  # a case must never return into the loop of the parent
            traceback.print_exc()
        finally:
            count = self.shim.faults_count()
            self.shim.faults_arm(b"", OFF, 0, 0, 0)
            os.write(write, str(count).encode())
            os._exit(code)


def new_place(parent: Path, corpora: Path) -> Path:
    """Return an empty folder whose cache holds the demo corpus alone."""
    place = parent / "place"
    if place.exists():
        shutil.rmtree(place)
    (place / "cache").mkdir(parents=True)
    (place / "cache" / "corpora").symlink_to(corpora)
    return place


def check(command: Command, place: Path, code: int, log: str, expected: str, fault: Fault) -> Iterator[str]:
    """Yield what is wrong after a run with a fault."""
    if fault.mode == KILL and code not in (-signal.SIGKILL, 0):
        yield f"exit code {code} instead of a kill"
    if fault.mode == FAIL and code not in (0, 3):
        yield f"exit code {code}"
    if fault.mode == SHORT and code != 0:
        yield f"exit code {code} after a short write"
    if "Traceback" in log:
        yield f"traceback: {log.strip().splitlines()[-1][:200]}"
    if command.atomic and checksum(place, command.results) not in ("", expected):
        yield "a part of the results has their name"


def campaign(
    runner: Runner, command: Command, scratch: Path, corpora: Path, fault: Fault, first: int, stride: int
) -> Outcome:
    """Run the cases of one command and one fault: operations ``first``, ``first + stride``, and so on."""
    place = new_place(scratch, corpora)
    code, operations = runner.run(command.arguments(place), place, NO_FAULT, 0)
    expected = checksum(place, command.results)
    if code or not expected:
        raise SystemExit(f"the undisturbed command fails ({code}):\n{runner.log.read_text()}")
    outcome = Outcome(operations)
    for at in range(first, operations + 1, stride):
        place = new_place(scratch, corpora)
        code, _ = runner.run(command.arguments(place), place, fault, at)
        outcome.cases += 1
        outcome.codes[code] = outcome.codes.get(code, 0) + 1
        log = runner.log.read_text(errors="replace")
        wrong = list(check(command, place, code, log, expected, fault))
        complete = checksum(place, command.results) == expected
        if not complete or (code != 0 and not command.atomic):
            again, _ = runner.run(command.arguments(place), place, NO_FAULT, 0)
            if again != 0:
                wrong.append(f"does not run again: {runner.log.read_text(errors='replace').strip()[-300:]}")
            if left := [path.name for path in place.rglob(".*.partial")]:
                wrong.append(f"left behind: {', '.join(left)}")
        if checksum(place, command.results) != expected:
            wrong.append("other bytes than the undisturbed command")
        outcome.failures += [f"operation {at}: {text}" for text in wrong]
        print(f"{at}: {code}", *wrong, file=sys.stderr, flush=True)
    return outcome


def make_source(runner: Runner, source: Path, corpora: Path) -> None:
    """Train the run that the other commands read, and write text for two domains."""
    settings = [word for setting in TRAIN for word in ("--set", setting)]
    source.mkdir()
    place = new_place(source, corpora)
    code, _ = runner.run(["train", "quickstart", "--out", str(source / "run"), *settings], place, NO_FAULT, 0)
    if code:
        raise SystemExit(runner.log.read_text())
    for name, word in (("a", "left"), ("b", "right")):
        lines = (f'{{"text": "document {number} of {name} {word} {number * 7919}"}}\n' for number in range(400))
        (source / f"{name}.jsonl").write_text("".join(lines))


def load_shim(program: str = "file_faults") -> ctypes.CDLL:
    """Return the shim that is loaded into this process; start the program of this folder again with it if it is not.

    Raises:
        SystemExit: It cannot be compiled.
    """
    if VARIABLE not in os.environ:
        folder = tempfile.mkdtemp(prefix="drpruning-file-faults-")
        library = Path(folder) / "file_faults.so"
        build = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
        if subprocess.run(build, check=False).returncode:
            raise SystemExit("cannot compile file_faults.c: install a C compiler")
        os.environ |= {VARIABLE: str(library), "LD_PRELOAD": str(library)}
        again = [sys.executable, "-m", f"benches.hardening.{program}", *sys.argv[1:]]
        os.execv(sys.executable, again)  # noqa: S606
    library = Path(os.environ[VARIABLE])
    os.environ.pop("LD_PRELOAD", None)  # programs that a command starts are not counted
    shim = ctypes.CDLL(str(library))
    shim.faults_count.restype = ctypes.c_long
    shim.faults_record.argtypes = [ctypes.c_int]
    shim.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    return shim


def import_package() -> Path:
    """Import what the commands import, once, before the cases are forked; return the folder of the demo corpus."""
    import scipy.optimize  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import drpruning.comparison.tables
    import drpruning.comparison.worker
    import drpruning.evaluation.benchmark.build
    import drpruning.export.repair
    import drpruning.prepare.preparation
    import drpruning.report.page
    import drpruning.train.run
    import drpruning.train.teach  # noqa: F401
    from drpruning.files import cache_folder
    from drpruning.prepare.recipe_corpus import open_corpus
    from drpruning.recipes import load_recipe

    open_corpus(load_recipe("quickstart"))
    gc.collect()
    gc.freeze()  # or each child's collections would copy the objects of the imports
    return cache_folder().absolute() / "corpora"


def main() -> None:
    """Run the campaign of the command line; exit with 1 if a case fails."""
    parser = argparse.ArgumentParser(prog="python -m benches.hardening.file_faults", description=__doc__.split("\n")[0])
    parser.add_argument("commands", nargs="*", help="of those that the table lists; default: all")
    parser.add_argument(
        "--faults", nargs="+", default=["kill"], help="kill, short, or error names such as EIO, ENOSPC+"
    )
    parser.add_argument("--first", type=int, default=1, help="first operation")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th operation from there")
    options = parser.parse_args()
    shim = load_shim()

    corpora = import_package()
    failed = 0
    print(
        "| command | fault | file operations | cases | exit codes | failures |\n|---|---|---|---|---|---|", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        runner = Runner(shim, scratch / "log")
        make_source(runner, scratch / "source", corpora)
        known = commands(scratch / "source", corpora)
        for chosen in options.commands or known:
            for fault in options.faults:
                outcome = campaign(
                    runner, known[chosen], scratch, corpora, Fault.parse(fault), options.first, options.stride
                )
                codes = ", ".join(f"{code}: {count}" for code, count in sorted(outcome.codes.items()))
                row = f"| {chosen} | {fault} | {outcome.operations} | {outcome.cases} | {codes} "
                print(f"{row}| {len(outcome.failures)} |", flush=True)
                print("".join(f"  {failure}\n" for failure in outcome.failures), end="", file=sys.stderr, flush=True)
                failed += len(outcome.failures)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
