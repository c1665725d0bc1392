"""Mutated states of strategies, of `drpruning advise --state` and of the sampler.

    python -m benches.hardening.states --cases 2000 --seed 1

Each is refused with a typed error, or yields a mixture and strict JSON. Prints a row for each kind of state; exits with
1 if a case ends otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benches.hardening.state_mutations import mutate

from drpruning import Corpus, DomainSampler, LossTable, read_losses
from drpruning.advice import Advice
from drpruning.errors import DrpruningError
from drpruning.mixture import ADO, STRATEGIES, Bounds, DRPruning, Observation, Schedule, State, Strategy

RATIO = {"web": 0.7, "code": 0.2, "books": 0.1}
FINAL_TOKENS = 100_000
CHANGED: dict[str, Strategy] = {
    "schedule": Schedule.of([(100, {"web": 0.2, "code": 0.3, "books": 0.5})]),
    "drpruning": DRPruning(min_points=6, bounds=Bounds(max_share={"web": 0.9})),
    "ado": ADO(min_points=6),
}
STRATEGIES_TRIED = tuple(CHANGED.get(name) or cls() for name, cls in STRATEGIES.items())
"""Every registered strategy, with laws from few points."""


def observe(tokens: int) -> Observation:
    """Return an evaluation of three domains on known curves."""
    curves = {"web": 2 + 9 * tokens**-0.4, "code": 1 + 3 * tokens**-0.15, "books": 3 + 9 * tokens**-0.5}
    return Observation(step=tokens // 100, tokens=tokens, params=1e6, losses=curves, final_tokens=FINAL_TOKENS)


def saved_state(strategy: Strategy, evaluations: int = 9) -> State:
    """Return the state after some evaluations, as a file has it."""
    state = strategy.init(list(RATIO), RATIO, reference_loss={"web": 2.0})
    for k in range(evaluations):
        state, _ = strategy.update(state, observe(5000 * (k + 1)))
    loaded: State = json.loads(json.dumps(state, allow_nan=False))
    return loaded


def is_mixture(weights: Mapping[str, float]) -> bool:
    """Return whether weights are finite, not negative, and sum to one."""
    values = list(weights.values())
    return all(math.isfinite(w) and w >= 0 for w in values) and abs(math.fsum(values) - 1) <= 1e-6


def try_state(use: Callable[[Any], Mapping[str, float]], state: Any) -> str:
    """Return ``refused`` for a typed error of ``use``, ``mixture`` for a valid answer, and otherwise what happened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            weights = use(state)
    except DrpruningError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "mixture" if is_mixture(weights) else f"no mixture: {weights}"


def try_update(strategy: Strategy, state: Any) -> str:
    """Return the outcome, as of :func:`try_state`, of an update."""

    def use(state: Any) -> Mapping[str, float]:
        after, update = strategy.update(state, observe(60_000))
        json.dumps(after, allow_nan=False)
        strategy.next_stage(after)  # the strategy accepts its own state
        return update.weights

    return try_state(use, state)


def advice_case(folder: Path) -> tuple[Any, Callable[[Any], Mapping[str, float]]]:
    """Return the content of a file of `drpruning advise`, without checksum, and a function that uses such a file."""
    path = folder / "mixture.json"
    table = folder / "losses.csv"
    advice = Advice.new(DRPruning(min_points=4), RATIO, final_tokens=FINAL_TOKENS, learning_rates="cosine")

    def losses(upto: int) -> LossTable:
        rows = [observe(tokens) for tokens in range(5000, upto + 1, 5000)]
        lines = [f"{seen.tokens}," + ",".join(map(repr, seen.losses.values())) for seen in rows]
        table.write_text("\n".join(["tokens,web,code,books", *lines]) + "\n")
        return read_losses(str(table))

    advice.take(losses(30_000))
    advice.write(path)
    new = losses(40_000)

    def use(body: Any) -> Mapping[str, float]:
        if isinstance(body, dict):
            body = {**body, "sha256": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}
        path.write_text(json.dumps(body))
        read = Advice.read(path)
        read.take(new)
        read.write(path)
        return read.update.weights if read.update is not None else {}

    return {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}, use


def sampler_case(folder: Path) -> tuple[Any, Callable[[Any], Mapping[str, float]]]:
    """Return the state of a sampler of three domains, and a function that loads such a state and draws a batch."""
    for name in RATIO:
        np.arange(5000, dtype="uint16").tofile(folder / f"{name}.bin")
    corpus = Corpus({name: str(folder / f"{name}.bin") for name in RATIO}, dtype="uint16")
    sampler = DomainSampler(corpus, RATIO, seq_len=16, batch_size=8, prefetch=0)
    for _ in range(5):
        next(sampler)

    def use(state: Any) -> Mapping[str, float]:
        sampler.load_state_dict(state)
        next(sampler)
        return sampler.weights

    return sampler.state_dict(), use


def main() -> None:
    """Try ``--cases`` mutations of each kind of state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="mutations of each kind of state")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = False
    print("| state | cases | refused | valid mixture | other |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        kinds = {strategy.name: (saved_state(strategy), partial(try_update, strategy)) for strategy in STRATEGIES_TRIED}
        for name, (state, use) in (("advise", advice_case(Path(folder))), ("sampler", sampler_case(Path(folder)))):
            kinds[name] = (state, partial(try_state, use))
        for name, (state, outcome) in kinds.items():
            generator = random.Random(options.seed)  # noqa: S311 - repeatable cases
            counted = Counter(outcome(mutate(state, generator)) for _ in range(options.cases))
            refused, valid = counted.pop("refused", 0), counted.pop("mixture", 0)
            print(f"| {name} | {options.cases} | {refused} | {valid} | {counted.total()} |", flush=True)
            for other, count in counted.most_common(5):
                print(f"{count} x {other[:200]}", file=sys.stderr)
            failed |= bool(counted)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
