"""Long use: memory and states after many rows and many evaluations.

    python -m benches.hardening.endurance
    python -m benches.hardening.endurance --planned 0 --rows 0 --strategies drpruning ado --evaluations 10000

Prints the resident memory in MiB (Linux) after a tenth of the work and at its end. 10^9 rows are passed over in 1,000
uneven leaps and in one, with equal states; 10^7 rows are read, with and without prefetch; each strategy gets 10^5
evaluations. Exits with 1 if the states differ, or if a strategy's state has more than doubled since a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from benches.hardening.states import RATIO, STRATEGIES_TRIED

from drpruning import Corpus, DomainSampler
from drpruning.mixture import Observation

BATCH = 1000


def resident() -> float:
    """Return the resident memory of this process, MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def leaps(corpus: Corpus, rows: int) -> bool:
    """Pass over rows in uneven leaps; print and return whether one leap leads to the same state and rows."""
    many, one = (DomainSampler(corpus, RATIO, seq_len=8, batch_size=BATCH, seed=3, prefetch=0) for _ in range(2))
    generator = random.Random(1)  # noqa: S311 - repeatable
    steps, began, left = rows // BATCH, resident(), rows // BATCH
    for leap in range(1000, 0, -1):
        step = left if leap == 1 else min(left, generator.randrange(2 * left // leap + 1))
        many.skip(step)
        left -= step
    one.skip(steps)
    same = many.state_dict() == one.state_dict() and (next(many).tokens == next(one).tokens).all()
    print(f"| rows passed over | {rows:,} | {began:.0f} | {resident():.0f} | one leap gives the same state: {same} |")
    return bool(same)


def read(corpus: Corpus, rows: int, prefetch: int) -> None:
    """Read rows; print the resident memory after a tenth of them, and after all."""
    sampler = DomainSampler(corpus, RATIO, seq_len=8, batch_size=BATCH, seed=3, prefetch=prefetch)
    early = 0.0
    for step in range(rows // BATCH):
        next(sampler)
        if step == rows // BATCH // 10:
            early = resident()
    print(f"| rows read, prefetch {prefetch} | {rows:,} | {early:.0f} | {resident():.0f} | |")


def evaluate(evaluations: int, names: list[str]) -> int:
    """Update each strategy; print the bytes of its state, and return how many states have grown."""
    grown = 0
    for strategy in STRATEGIES_TRIED:
        if names and strategy.name not in names:
            continue
        state, early, memory = strategy.init(list(RATIO), RATIO, reference_loss=dict.fromkeys(RATIO, 2.0)), 0, 0.0
        generator = np.random.default_rng(2)
        for number in range(1, evaluations + 1):
            tokens = 1000 * number
            noise = generator.normal(0, 0.01, len(RATIO))
            losses = {name: 2 + 9 * tokens**-0.4 + float(noise[at]) for at, name in enumerate(RATIO)}
            seen = Observation(step=number, tokens=tokens, params=1e6, losses=losses, final_tokens=2000 * evaluations)
            state, _ = strategy.update(state, seen)
            if number == evaluations // 10:
                early, memory = len(json.dumps(state)), resident()
        size = len(json.dumps(state))
        grown += size > 2 * early
        what = f"evaluations, {strategy.name}"
        print(
            f"| {what} | {evaluations:,} | {memory:.0f} | {resident():.0f} | state {early:,}, {size:,} bytes |",
            flush=True,
        )
    return grown


def main() -> None:
    """Run all; exit with 1 for a difference or a growing state."""
    parser = argparse.ArgumentParser(prog="python -m benches.hardening.endurance", description=__doc__.split("\n")[0])
    parser.add_argument("--planned", type=int, default=10**9, help="rows to pass over")
    parser.add_argument("--rows", type=int, default=10**7, help="rows to read")
    parser.add_argument("--evaluations", type=int, default=10**5, help="of each strategy")
    parser.add_argument("--strategies", nargs="+", default=[], help="default: all")
    options = parser.parse_args()
    print("| what | count | MiB after a tenth | MiB at the end | |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in RATIO:
            np.arange(1_000_000, dtype="uint16").tofile(f"{folder}/{name}.bin")
        corpus = Corpus({name: f"{folder}/{name}.bin" for name in RATIO}, dtype="uint16")
        same = options.planned == 0 or leaps(corpus, options.planned)
        for prefetch in (0, 2) if options.rows else ():
            read(corpus, options.rows, prefetch)
    sys.exit(int(not same or evaluate(options.evaluations, options.strategies) > 0))


if __name__ == "__main__":
    main()
