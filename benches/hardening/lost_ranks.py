"""Kill or stop a random rank at a random moment; the others must end, name it, and the run resumes.

    python -m benches.hardening.lost_ranks --ranks 2 --signals KILL STOP --times 5 --journal ranks.jsonl

The ranks are forked from one process that has imported the package, and joined by the variables that `torchrun` sets;
no `torchrun` ends the others. A journal has a line for each case, and the next invocation continues with the next seed.
Prints a row for each signal, with the longest time until the others had ended; exits with 1 if none of the others names
the lost rank (or, before the ranks have joined, that some have not), or if the resumed run ends with other weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benches.hardening.file_faults import NO_FAULT, TRAIN, Runner, checksum, import_package, load_shim, new_place
from benches.hardening.interruptions import processor_seconds, signal_after

RESULTS = ("run/export/*.safetensors", "run/recipe.yaml")
LOST = 4
"""Exit code of a rank that has lost another one."""


class Ranks:
    """Starts all ranks of a run.

    Args:
        runners: One for each rank, with separate logs.
        timeout: ``training.distributed_timeout_s``.
    """

    def __init__(self, runners: list[Runner], timeout: float) -> None:
        self.runners, self.timeout = runners, timeout

    def start(self, place: Path) -> list[tuple[int, int]]:
        """Fork the ranks of the run of a folder; return their process ids and pipes."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = (
            *TRAIN,
            *(f"{stage}.batch_size={len(self.runners)}" for stage in ("pretrain", "prune", "continue")),
            f"training.distributed_timeout_s={self.timeout:g}",
            "training.threads=1",
        )
        words = [word for setting in settings for word in ("--set", setting)]
        started = []
        for rank, runner in enumerate(self.runners):
            size = str(len(self.runners))
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            arguments = ["train", "quickstart", "--out", str(place / "run"), "--resume", *words]
            started.append(runner.start(arguments, place, NO_FAULT, 0))
        return started

    def finish(self, started: list[tuple[int, int]]) -> list[int]:
        """Wait for all ranks; return their exit codes."""
        return [runner.finish(*child)[0] for runner, child in zip(self.runners, started, strict=True)]

    def logs(self) -> list[str]:
        """Return the output of each rank."""
        return [runner.log.read_text(errors="replace") for runner in self.runners]


def undisturbed(ranks: Ranks, place: Path) -> tuple[float, str]:
    """Run without a signal; return processor seconds of rank 0, and the sum of the results."""
    started = ranks.start(place)
    os.waitid(os.P_PID, started[0][0], os.WEXITED | os.WNOWAIT)
    seconds = processor_seconds(started[0][0])
    if any(codes := ranks.finish(started)):
        raise SystemExit(f"exit codes {codes}:\n" + "\n".join(ranks.logs()))
    return seconds, checksum(place, RESULTS)


def case(ranks: Ranks, place: Path, name: str, seed: int, whole: tuple[float, str]) -> dict[str, object]:
    """Signal a random rank at a random moment, wait for the others, and resume the run to its end."""
    generator = random.Random(f"{name} {seed}")  # noqa: S311 - repeatable cases
    started = ranks.start(place)
    lost = generator.randrange(len(started))
    sent = signal_after(started[lost][0], signal.Signals[f"SIG{name}"], generator.uniform(0, whole[0]))
    began = sent[1] if sent else time.monotonic()
    for rank, (child, _) in enumerate(started):
        if rank != lost:
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    took = time.monotonic() - began
    os.kill(started[lost][0], signal.SIGKILL)  # of a stopped rank
    codes, logs = ranks.finish(started), ranks.logs()
    others = [rank for rank in range(len(started)) if rank != lost]
    failures = ["traceback" for rank in others if "Traceback" in logs[rank]]
    if sent:
        failures += [f"exit code {codes[rank]}: {logs[rank][-300:]}" for rank in others if codes[rank] not in (0, LOST)]
        named = any(f"rank {lost}" in logs[rank] or "cannot join the others" in logs[rank] for rank in others)
        failures += (
            [] if named or all(codes[rank] == 0 for rank in others) else [f"not named: {logs[others[0]][-300:]}"]
        )
    if any(again := ranks.finish(ranks.start(place))):
        failures.append(f"does not resume: {again}: {' '.join(ranks.logs())[-300:]}")
    elif checksum(place, RESULTS) != whole[1]:
        failures.append("other bytes than the undisturbed run")
    return {"signal": name, "ranks": len(started), "sent": sent is not None, "seconds": took, "failures": failures}


def print_table(journal: Path) -> int:
    """Print a row for each signal and number of ranks; return the number of failures."""
    rows = defaultdict(list)
    for line in map(json.loads, journal.read_text().splitlines()):
        rows[line["signal"], line["ranks"]].append(line)
    print("| signal | ranks | cases | sent before the end | slowest end, s | failures |\n|---|---|---|---|---|---|")
    for (name, size), lines in rows.items():
        slowest = max(line["seconds"] for line in lines)
        failures = [text for line in lines for text in line["failures"]]
        print(f"| SIG{name} | {size} | {len(lines)} | {sum(line['sent'] for line in lines)} | {slowest:.1f} ", end="")
        print(f"| {len(failures)} |", flush=True)
        print("\n".join(failures), file=sys.stderr)
    return sum(bool(line["failures"]) for lines in rows.values() for line in lines)


def main() -> None:
    """Run the cases of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benches.hardening.lost_ranks", description=__doc__.split("\n")[0])
    parser.add_argument("--signals", nargs="+", default=["KILL", "STOP"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--times", type=int, default=5, help="cases of each signal, in this invocation")
    parser.add_argument("--timeout", type=float, default=30.0, help="training.distributed_timeout_s")
    parser.add_argument("--journal", type=Path, default=Path("lost_ranks.jsonl"), help="file of the cases")
    options = parser.parse_args()
    shim, corpora, journal = load_shim("lost_ranks"), import_package(), options.journal.absolute()
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        ranks = Ranks([Runner(shim, scratch / f"log-{rank}") for rank in range(options.ranks)], options.timeout)
        whole = undisturbed(ranks, new_place(scratch, corpora))
        for name in options.signals:
            first = sum(line["signal"] == name and line["ranks"] == options.ranks for line in done)
            for seed in range(first, first + options.times):
                line = case(ranks, new_place(scratch, corpora), name, seed, whole)
                with journal.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    sys.exit(int(print_table(journal) > 0))


if __name__ == "__main__":
    main()
