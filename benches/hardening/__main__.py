"""Read mutated files with every reader of the package and print what each reader raised.

    python -m benches.hardening                       # 2,000 cases of each reader
    python -m benches.hardening recipe CSV --cases 100000 --seed 7 --keep failures

A case is valid (read), typed (an exception of ``drpruning.errors``), untyped (any other exception) or slow. Cases are a
function of reader, seed and number. ``docs/reliability.md`` has the results.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benches.hardening.readers import Reader, all_readers

from drpruning.errors import DrpruningError

SLOW = 2.0
"""Seconds of processor time; a valid file takes milliseconds."""


@dataclass
class Outcome:
    """What a reader did with its cases.

    Args:
        valid: Cases that were read.
        typed: Cases that ended in an exception of ``drpruning.errors``.
        untyped: Other exceptions by name, with the first case of each.
        slow: Cases above :data:`SLOW`.
        slowest: Processor time of the slowest case, seconds.
    """

    valid: int = 0
    typed: int = 0
    untyped: Counter[str] = field(default_factory=Counter)
    first: dict[str, bytes] = field(default_factory=dict)
    slow: list[bytes] = field(default_factory=list)
    slowest: float = 0.0


def campaign(reader: Reader, cases: int, seed: int) -> Outcome:
    """Read ``cases`` mutated files with one reader."""
    outcome = Outcome()
    with TemporaryDirectory() as name:
        folder = Path(name)
        reader.prepare(folder)
        path = folder / reader.path
        for number in range(cases):
            content = reader.case(random.Random(f"{reader.name} {seed} {number}"))  # noqa: S311 - no secret
            path.write_bytes(content)
            begin = time.process_time()
            try:
                reader.read(path)
                outcome.valid += 1
            except DrpruningError as error:
                str(error)
                outcome.typed += 1
            except Exception as error:
                kind = f"{type(error).__name__}: {str(error)[:80]}"
                outcome.untyped[kind] += 1
                outcome.first.setdefault(kind, content)
            seconds = time.process_time() - begin
            outcome.slowest = max(outcome.slowest, seconds)
            if seconds > SLOW:
                outcome.slow.append(content)
    return outcome


def main() -> None:
    """Run the campaign of the command line."""
    known = all_readers()
    parser = argparse.ArgumentParser(prog="python -m benches.hardening", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("readers", nargs="*", help=f"of: {', '.join(known)}; default: all")
    parser.add_argument("--cases", type=int, default=2000, help="mutated files of each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the first case of each untyped exception and slow cases")
    arguments = parser.parse_args()
    print("| reader | cases | valid | typed | untyped | slow | slowest, ms | peak memory, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.readers or known:
        outcome = campaign(known[name], arguments.cases, arguments.seed)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        untyped = sum(outcome.untyped.values())
        print(
            f"| {name} | {arguments.cases:,} | {outcome.valid:,} | {outcome.typed:,} | {untyped:,} "
            f"| {len(outcome.slow)} | {outcome.slowest * 1000:.0f} | {peak} |",
            flush=True,
        )
        for kind, count in outcome.untyped.most_common():
            print(f"  {count} x {kind!r}", flush=True)
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            for number, content in enumerate([*outcome.first.values(), *outcome.slow]):
                (arguments.keep / f"{name.replace(' ', '-')}-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
