"""Tries mutated states of strategies: an update is refused with a typed error, or yields a mixture and strict JSON.

    python -m benches.hardening.states --cases 2000 --seed 1

Prints a row for each strategy; exits with 1 if a case ends otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benches.hardening.mutations import mutate

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


def try_update(strategy: Strategy, state: Any) -> str:
    """Return ``refused`` for a typed error, ``mixture`` for a valid update, and otherwise what happened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            after, update = strategy.update(state, observe(60_000))
            json.dumps(after, allow_nan=False)
            strategy.next_stage(after)  # the state is one that the strategy itself accepts
    except DrpruningError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "mixture" if is_mixture(update.weights) else f"no mixture: {update.weights}"


def main() -> None:
    """Try ``--cases`` mutations of each strategy's state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="mutations of each strategy's state")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = False
    print("| strategy | cases | refused | valid mixture | other |\n|---|---|---|---|---|")
    for strategy in STRATEGIES_TRIED:
        generator, state = random.Random(options.seed), saved_state(strategy)  # noqa: S311 - repeatable cases
        counted = Counter(try_update(strategy, mutate(state, generator)) for _ in range(options.cases))
        refused, valid = counted.pop("refused", 0), counted.pop("mixture", 0)
        print(f"| {strategy.name} | {options.cases} | {refused} | {valid} | {counted.total()} |", flush=True)
        for outcome, count in counted.most_common(5):
            print(f"{count} x {outcome[:200]}", file=sys.stderr)
        failed |= bool(counted)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
