"""Trace the network calls of commands that need no network: `python -m benches.hardening.network` (needs strace).

Each command runs under ``strace --follow-forks``, with a new folder as home and cache. A call is counted if it
names an address of the internet, or opens a socket for one: connect, bind, sendto and socket with AF_INET or AF_INET6.
Exits with 1 if there is one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benches.crash_recovery import SHORT

INTERNET = re.compile(r"\b(?:connect|bind|sendto|sendmsg|socket)\(.*\bAF_INET6?\b")


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of each command, in an order in which later ones find the files of earlier ones."""
    run, corpus, short = str(folder / "run"), str(folder / "corpus"), []
    for setting in (*SHORT, "training.device=cpu"):
        short += ["--set", setting]
    return {
        "prepare --demo": ["prepare", corpus, "--demo"],
        "inspect": ["inspect", corpus],
        "train quickstart": ["train", "quickstart", "--out", run, "--set", f"data.corpus={corpus}", *short],
        "sample": ["sample", corpus, "--show", "3"],
        "report": ["report", run, "--out", str(folder / "report.html")],
        "export hf": ["export", "hf", f"{run}/export", str(folder / "model"), "--dtype", "bfloat16"],
        "plan cost": ["plan", "cost", "llama2-7b-to-2.7b"],
    }


def internet_calls(arguments: list[str], folder: Path) -> tuple[int, list[str], str]:
    """Run one command; return its exit code, the traced calls, and its output."""
    trace = folder / "trace"
    own = {"HOME": str(folder), "DRPRUNING_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    tracer = ["strace", "--follow-forks", "--trace=%network", "--output", str(trace)]
    result = subprocess.run(
        [*tracer, sys.executable, "-m", "drpruning", *arguments],
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [line for line in trace.read_text(errors="replace").splitlines() if INTERNET.search(line)]
    return result.returncode, calls, result.stdout + result.stderr


def main() -> None:
    """Trace every command and print a row for each."""
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| command | exit code | internet calls |\n|---|---|---|")
        for title, arguments in commands(folder).items():
            code, calls, output = internet_calls(arguments, folder)
            print(f"| {title} | {code} | {len(calls)} |", flush=True)
            if code or calls:
                failed = True
                print("\n".join([*calls[:5], output[-500:]]), file=sys.stderr)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
