"""Run the prefetch queue under schedules chosen by shuttle (crate `shuttle`, from the registry).

    python -m benches.hardening.interleavings --cases 10000

A copy of the Rust code gets shuttle's locks, condition variables and threads in place of those of the standard library,
by a change of four lines of `prefetch.rs`. `interleavings.rs` is its test: half of the schedules are random,
half by probabilistic concurrency testing with depth 3 (Burckhardt et al. 2010). A lost wake-up is a deadlock, which
shuttle reports with the schedule.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUBSTITUTES = {
    "use std::sync::atomic::{AtomicBool, Ordering};": "use shuttle::sync::atomic::{AtomicBool, Ordering};",
    "use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};": (
        "use std::sync::{Arc, PoisonError};\nuse shuttle::sync::{Condvar, Mutex, MutexGuard};"
    ),
    "use std::thread::{Builder, JoinHandle};": "use shuttle::thread::{Builder, JoinHandle};",
    " && !self.handle.is_finished()": "",  # shuttle has no such method; the thread ends only when it is stopped
}


def replace(path: Path, texts: dict[str, str]) -> None:
    """Replace texts of a file, each of which it has once."""
    content = path.read_text()
    for old, new in texts.items():
        if content.count(old) != 1:
            raise SystemExit(f"{path} has not exactly one {old!r}")
        content = content.replace(old, new)
    path.write_text(content)


def main() -> None:
    """Copy, change and test the code; exit as cargo does."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.hardening.interleavings", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--cases", type=int, default=1000, help="schedules of each of four kinds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "rust", copy / "rust")
        for name in ("Cargo.toml", "Cargo.lock"):
            shutil.copy(ROOT / name, copy / name)
        replace(copy / "Cargo.toml", {', "rust/python", "benches"]': "]"})
        replace(copy / "rust" / "core" / "Cargo.toml", {"[dependencies]\n": '[dependencies]\nshuttle = "0.9"\n'})
        replace(copy / "rust" / "core" / "src" / "prefetch.rs", SUBSTITUTES)
        shutil.copy(Path(__file__).with_suffix(".rs"), copy / "rust" / "core" / "tests" / "interleavings.rs")
        command = ["cargo", "test", "--release", "-p", "drpruning-core", "--test", "interleavings", "--", "--nocapture"]
        environment = {**os.environ, "DRPRUNING_CASES": str(options.cases)}
        sys.exit(subprocess.run(command, cwd=copy, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
