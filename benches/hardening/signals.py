"""Send signals to short quickstart runs at random moments; check exit code, message and, after --resume, the weights.

    python -m benches.hardening.signals --signals INT TERM USR1 --times 5
    python -m benches.hardening.signals --signals TERM KILL STOP --times 1 --ranks 2 --timeout 30

A run of one process is forked from one that has imported the package. With several ranks `torchrun` starts them, and a
random rank gets the signal. A row for each case has the record at
which it was sent, the seconds until all processes had ended, and the exit code (of torchrun: 1, whatever its ranks
exit with). Exits with 1 if a run does not resume to the weights of an undisturbed one, or prints a traceback.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benches.crash_recovery import CONTEXT, SHORT

EXPECTED = {"INT": 130, "TERM": 75, "USR1": 75}
"""Exit codes of a run of one process."""


def run_command(arguments: list[str], log: Path) -> None:
    """Run the command line in a forked process; its output is appended to a file."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from drpruning.cli import main

    sys.exit(main(arguments))


class ForkedRun:
    """A run of one process, with the methods of :class:`subprocess.Popen`."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.process = CONTEXT.Process(target=run_command, args=(arguments, log))
        self.process.start()
        self.pid = self.process.pid or 0

    @property
    def returncode(self) -> int | None:
        """Return the exit code, minus the signal that ended the process, or None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self.process.exitcode

    def wait(self) -> int | None:
        """Wait for the end, and return the exit code."""
        self.process.join()
        return self.process.exitcode


@dataclass(frozen=True)
class Campaign:
    """Where and how runs are started.

    Attributes:
        scratch: Folder of the runs.
        ranks: Number of processes.
        timeout: ``training.distributed_timeout_s``.
    """

    scratch: Path
    ranks: int
    timeout: float

    def start(self, folder: Path, log: Path, *, timeout: float = 600.0) -> subprocess.Popen[bytes] | ForkedRun:
        """Start or resume the run of a folder; the timeout is that of a case for the first start alone."""
        arguments = ["train", "quickstart", "--out", str(folder), "--resume"]
        settings = (*SHORT, f"training.distributed_timeout_s={timeout:g}", "training.device=cpu")
        arguments += [word for setting in settings for word in ("--set", setting)]
        if self.ranks == 1:
            return ForkedRun(arguments, log)
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks), "-m", "drpruning"]
        with log.open("ab") as file:
            return subprocess.Popen([sys.executable, "-m", *torchrun, *arguments], stdout=file, stderr=file)

    def target(self, process: subprocess.Popen[bytes] | ForkedRun, generator: random.Random) -> int:
        """Return the process to signal: a random rank."""
        if self.ranks == 1:
            return process.pid
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(generator.choice(children))


def num_records(folder: Path) -> int:
    """Return the number of records of a run."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def weights(folder: Path) -> str:
    """Return the hash of the final weights."""
    return hashlib.sha256((folder / "export" / "model.safetensors").read_bytes()).hexdigest()


def case(
    campaign: Campaign, name: str, at: int, number: int, generator: random.Random
) -> tuple[float, int | None, str, Path]:
    """Start a run, signal it at record ``at``, and resume it to its end.

    Returns:
        Seconds from the signal to the end of all processes, exit code, output up to there, folder.
    """
    folder = campaign.scratch / f"{name}-{number}"
    log = folder.with_suffix(".log")
    process = campaign.start(folder, log, timeout=campaign.timeout)
    while process.poll() is None and num_records(folder) < at:
        time.sleep(0.002)
    time.sleep(generator.uniform(0, 0.1))
    began = time.monotonic()
    if process.poll() is None:
        os.kill(campaign.target(process, generator), getattr(signal, f"SIG{name}"))
    process.wait()
    took, output = time.monotonic() - began, log.read_text(errors="replace")
    again = campaign.start(folder, log)
    if again.wait() != 0:
        raise SystemExit(f"{folder} does not resume:\n{log.read_text(errors='replace')}")
    return took, process.returncode, output, folder


def own_traceback(output: str) -> bool:
    """Return whether a rank printed a traceback; torchrun prints one as well."""
    blocks = re.findall(r"^Traceback .*?(?=^\S)", output + "\nend", re.DOTALL | re.MULTILINE)
    return any("torch/distributed/run.py" not in block for block in blocks)


def main() -> None:
    """Run ``--times`` cases of each signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", nargs="+", default=["INT", "TERM", "USR1"])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the folders here")
    options = parser.parse_args()
    generator = random.Random(options.seed)  # noqa: S311 - repeatable cases
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.keep or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(scratch, options.ranks, options.timeout)
        if campaign.start(scratch / "whole", scratch / "whole.log").wait() != 0:
            raise SystemExit((scratch / "whole.log").read_text())
        whole = num_records(scratch / "whole")
        print("| signal | ranks | record | seconds to the end | exit code | same weights | own traceback |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for name in options.signals:
            for number in range(options.times):
                at = generator.randrange(1, whole - 1)
                took, code, output, folder = case(campaign, name, at, number, generator)
                same, traceback = weights(folder) == weights(scratch / "whole"), own_traceback(output)
                expected = EXPECTED.get(name) if options.ranks == 1 else None
                failed += not same or traceback or (code not in (0, expected) if expected else False)
                print(
                    f"| SIG{name} | {options.ranks} | {at} | {took:.1f} | {code} | {same} | {traceback} |", flush=True
                )
                print("\n".join(line for line in output.splitlines() if "RankError" in line), file=sys.stderr)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
