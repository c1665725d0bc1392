"""Interrupt commands again and again, until they finish, and compare their files with an undisturbed run.

    python -m benches.hardening.interruptions train prepare --chains 20 --journal kills.jsonl
    python -m benches.hardening.interruptions train --signals TERM USR1 --chains 20 --journal signals.jsonl
    python -m benches.hardening.interruptions "train, 120 steps" --signals TERM --longest 100 --share 0.12 --chains 1
    python -m benches.hardening.interruptions --journal kills.jsonl --chains 0        # only print the table

A chain runs a command in an empty folder and interrupts it, runs it again and interrupts it again, and so on. SIGKILL
comes at a random file operation (see ``file_faults.py``) or after a random processor time, SIGTERM and SIGUSR1 after a
random processor time. A command that starts processes is interrupted after a random time: alone, with these processes,
or one of them alone; those that are left must end. When the command has finished, the bytes of its results must be
those of an undisturbed run. The exit codes must be documented ones, no run may print a traceback, and temporary files
must be gone. The journal has a line for each chain; the next invocation continues with the next seed, and the table
counts all lines. ``docs/reliability.md`` has the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benches.hardening.file_faults import (
    KILL,
    NO_FAULT,
    Command,
    Fault,
    Runner,
    checksum,
    commands,
    file_sums,
    import_package,
    load_shim,
    make_source,
    new_place,
)

RESUMABLE = 75
FAILED, WORKER_KILLED = 1, f"killed by signal {signal.SIGKILL}"
"""Exit code and output of a command that has lost a worker."""


@dataclass(frozen=True)
class Undisturbed:
    """What an undisturbed run of a command does: file operations, seconds, and the sum of its results.

    The seconds are those of the processor, or for a command with workers those of the clock.
    """

    operations: int
    seconds: float
    results: str


@dataclass
class Chain:
    """The interruptions of one chain.

    Attributes:
        command: Its name.
        signal: Name of the signal.
        seed: Seed of the moments.
        interruptions: Number of runs that the signal ended.
        at_operations: How many of them were kills at a file operation.
        within_saves: How many left a temporary file or folder unfinished.
        codes: Exit codes of the interrupted runs.
        slowest: Longest time from a signal to the end of the process, in processor seconds and in seconds.
        failures: What was wrong.
    """

    command: str
    signal: str
    seed: int
    interruptions: int = 0
    at_operations: int = 0
    within_saves: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    slowest: tuple[float, float] = (0.0, 0.0)
    failures: list[str] = field(default_factory=list)


def processor_seconds(child: int) -> float:
    """Return the processor time of a process, which may have ended but not been waited for (Linux)."""
    return time.clock_gettime((~child << 3) | 2)  # CPUCLOCK_SCHED of clock_getcpuclockid(3)


def signal_after(
    child: int, number: signal.Signals, seconds: float, _target: str = "alone"
) -> tuple[float, float] | None:
    """Send a signal when a child has used so much processor time; return both clocks, or None if it ended before."""
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if (used := processor_seconds(child)) >= seconds:
            os.kill(child, number)
            return used, time.monotonic()
        time.sleep(0.001)
    return None


def signal_later(child: int, number: signal.Signals, seconds: float, target: str) -> tuple[float, float] | None:
    """Send a signal so many seconds from now; return both clocks of the child, or None if it ended before.

    Args:
        child: Process id of the command.
        number: The signal.
        seconds: Time until then.
        target: ``alone``: the command's process; ``with workers``; or ``worker``: the first one, if there is one.
    """
    end = time.monotonic() + seconds
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() >= end:
            workers = [int(each) for each in Path(f"/proc/{child}/task/{child}/children").read_text().split()]
            targets = {"alone": [child], "with workers": [child, *workers], "worker": workers[:1] or [child]}
            for each in targets[target]:
                with suppress(ProcessLookupError):  # a worker that has just ended
                    os.kill(each, number)
            return processor_seconds(child), time.monotonic()
        time.sleep(0.001)
    return None


def temporary_files(place: Path) -> set[tuple[str, int]]:
    """Return names and inodes of the unfinished files and folders of a folder."""
    return {(path.name, path.lstat().st_ino) for path in place.rglob(".*.partial*")}


class Interrupter:
    """Runs chains of one command.

    Args:
        runner: Forks the runs.
        name: Name of the command.
        command: The command.
        scratch: Folder for its files.
        corpora: Corpora of the cache.
        longest: Interruptions of one chain, after which the command may finish.
        share: Latest moment, as a share of an undisturbed run's operations or processor time.
    """

    def __init__(
        self, runner: Runner, name: str, command: Command, scratch: Path, corpora: Path, longest: int, share: float
    ) -> None:
        self.runner, self.name, self.command, self.scratch, self.corpora = runner, name, command, scratch, corpora
        self.longest, self.share = longest, share
        place = new_place(scratch, corpora)
        began = time.monotonic()
        child, pipe = runner.start(command.arguments(place), place, NO_FAULT, 0)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        seconds = time.monotonic() - began if command.workers else processor_seconds(child)
        code, operations = runner.finish(child, pipe)
        if code:
            raise SystemExit(f"the undisturbed command {name} fails ({code}):\n{self.log()}")
        self.whole = Undisturbed(operations, seconds, checksum(place, command.results))
        self.files = file_sums(place, command.results)

    def log(self) -> str:
        """Return the output of the last run."""
        return self.runner.log.read_text(errors="replace")

    def chain(self, name: str, seed: int) -> Chain:
        """Run one chain with a signal."""
        generator = random.Random(f"{self.name} {name} {seed}")  # noqa: S311 - repeatable chains
        chain, place = Chain(self.name, name, seed), new_place(self.scratch, self.corpora)
        while chain.interruptions < self.longest:
            before = temporary_files(place)
            if name == "KILL" and generator.random() < 0.6:
                at = generator.randint(1, max(int(self.share * self.whole.operations), min(self.whole.operations, 16)))
                code, _ = self.runner.run(self.command.arguments(place), place, Fault(KILL), at)
                chain.at_operations += code != 0
            else:
                code = self._after_a_time(chain, place, generator)
            if code == 0:
                break
            chain.interruptions += 1
            chain.within_saves += bool(temporary_files(place) - before)
            chain.codes[str(code)] = chain.codes.get(str(code), 0) + 1
            chain.failures += self._wrong(chain, code, place)
        else:
            code, _ = self.runner.run(self.command.arguments(place), place, NO_FAULT, 0)
            if code:
                chain.failures.append(f"does not finish: exit code {code}: {self.log().strip()[-300:]}")
        if different := self.files.items() ^ file_sums(place, self.command.results).items():
            names = ", ".join(sorted({name for name, _ in different}))
            chain.failures.append(f"other bytes than the undisturbed command: {names}")
        if left := temporary_files(place):
            chain.failures.append(f"left behind: {', '.join(name for name, _ in sorted(left))}")
        return chain

    def _after_a_time(self, chain: Chain, place: Path, generator: random.Random) -> int:
        seconds, number = generator.uniform(0, self.share * self.whole.seconds), signal.Signals[f"SIG{chain.signal}"]
        target = generator.choice(("alone", "with workers", "worker")) if self.command.workers else "alone"
        child, pipe = self.runner.start(self.command.arguments(place), place, NO_FAULT, 0)
        sent = (signal_later if self.command.workers else signal_after)(child, number, seconds, target)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        used, now = processor_seconds(child), time.monotonic()
        code, _ = self.runner.finish(child, pipe)
        if sent is not None:
            chain.slowest = max(chain.slowest[0], used - sent[0]), max(chain.slowest[1], now - sent[1])
        return code

    def _wrong(self, chain: Chain, code: int, place: Path) -> list[str]:
        number, log = signal.Signals[f"SIG{chain.signal}"], self.log()
        wrong = [f"traceback: {log.strip().splitlines()[-1][:200]}"] if "Traceback" in log else []
        allowed = (-number,) if number == signal.SIGKILL else (-number, RESUMABLE)
        if code not in allowed and not (self.command.workers and code == FAILED and WORKER_KILLED in log):
            wrong.append(f"exit code {code}: {log.strip()[-300:]}")
        if self.command.atomic and checksum(place, self.command.results) not in ("", self.whole.results):
            wrong.append("a part of the results has their name")
        return [f"interruption {chain.interruptions}: {text}" for text in wrong]


def print_table(journal: Path) -> int:
    """Print a row for each command and signal of a journal; return the number of failures."""
    rows: dict[tuple[str, str], list[Chain]] = defaultdict(list)
    for line in journal.read_text().splitlines() if journal.exists() else ():
        chain = Chain(**json.loads(line))
        rows[chain.command, chain.signal].append(chain)
    print("| command | signal | chains | interruptions | at file operations | within saves | exit codes | failures |")
    print("|---|---|---|---|---|---|---|---|")
    for (command, name), chains in rows.items():
        codes = sum((Counter(chain.codes) for chain in chains), Counter[str]())
        failures = [f"  seed {chain.seed}: {text}" for chain in chains for text in chain.failures]
        numbers = [
            sum(getattr(chain, what) for chain in chains) for what in ("interruptions", "at_operations", "within_saves")
        ]
        counted = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
        print(
            f"| {command} | SIG{name} | {len(chains)} | {' | '.join(map(str, numbers))} | {counted} | {len(failures)} |"
        )
        slowest = [max(chain.slowest[which] for chain in chains) for which in (0, 1)]
        print(f"  slowest end: {slowest[0]:.2f} processor seconds, {slowest[1]:.1f} s", file=sys.stderr)
        print("\n".join(failures), file=sys.stderr, flush=True)
    return sum(len(chain.failures) for chains in rows.values() for chain in chains)


def main() -> None:
    """Run the chains of the command line; exit with 1 if one of the journal failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.hardening.interruptions", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "commands", nargs="*", help="train, compare, prepare, export, report, teach, 'benchmark build'; default: all"
    )
    parser.add_argument("--signals", nargs="+", default=["KILL"], help="KILL, TERM, USR1")
    parser.add_argument("--chains", type=int, default=10, help="of each command and signal, in this invocation")
    parser.add_argument("--longest", type=int, default=40, help="interruptions of a chain at most")
    parser.add_argument("--share", type=float, default=0.3, help="latest moment, as a share of an undisturbed run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no chain after this processor time")
    parser.add_argument("--journal", type=Path, default=Path("interruptions.jsonl"), help="file of the chains")
    options = parser.parse_args()
    if options.chains:
        shim = load_shim("interruptions")
        corpora, journal = import_package(), options.journal.absolute()
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            runner = Runner(shim, scratch / "log")
            make_source(runner, scratch / "source", corpora)
            known = commands(scratch / "source", corpora)
            lines = journal.read_text().splitlines() if journal.exists() else []
            done = Counter((chain["command"], chain["signal"]) for chain in map(json.loads, lines))
            for name in options.commands or known:
                interrupter = Interrupter(runner, name, known[name], scratch, corpora, options.longest, options.share)
                print(name, interrupter.whole, file=sys.stderr, flush=True)
                for kind in options.signals:
                    first = done[name, kind]
                    for seed in range(first, first + options.chains):
                        times = os.times()
                        if times.children_user + times.children_system > options.seconds:
                            break
                        with journal.open("a") as file:
                            file.write(json.dumps(asdict(interrupter.chain(kind, seed))) + "\n")
    sys.exit(int(print_table(options.journal) > 0))


if __name__ == "__main__":
    main()
