"""A damaged state is refused with the name of its entry; what passes yields a mixture, and states are strict JSON."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from benches.hardening.state_mutations import mutate
from benches.hardening.states import STRATEGIES_TRIED, is_mixture, saved_state, try_update

from drpruning.errors import StateError, WeightError
from drpruning.mixture import ADO, STRATEGIES, DoReMi, DRPruning, Observation, Strategy
from tests.mixture.observed import DOMAINS, RATIO, curve_table, losses, observe, run

CASES = 60  # of each strategy


def test_every_registered_strategy_is_tried() -> None:
    assert {strategy.name for strategy in STRATEGIES_TRIED} == set(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES_TRIED, ids=lambda strategy: strategy.name)
def test_a_mutated_state_is_refused_or_yields_a_mixture(strategy: Strategy) -> None:
    generator, state = random.Random(strategy.name), saved_state(strategy)
    outcomes = [try_update(strategy, mutate(state, generator)) for _ in range(CASES)]
    assert [each for each in outcomes if each not in ("refused", "mixture")] == []
    assert outcomes.count("refused") > CASES / 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weights", [0.5, 0.5], "weights of the state: expected 3 numbers >= 0 with sum 1, got [0.5, 0.5]"),
        ("weights", [0.5, 0.6, -0.1], "weights of the state: expected 3 numbers >= 0 with sum 1"),
        ("weights", [0.5, 0.4, math.nan], "weights of the state: expected 3 numbers >= 0 with sum 1"),
        ("weights", {"web": 1}, "weights of the state: expected 3 numbers >= 0 with sum 1"),
        ("weights", [True, False, False], "weights of the state: expected 3 numbers >= 0 with sum 1"),
        ("reference_ratio", [1, 0, 0], "reference_ratio of the state: expected 3 positive numbers with sum 1"),
        ("reference_loss", [2.0, None, 1e9], "reference_loss of the state: expected 3 losses or null"),
        ("domains", ["web", "web", "code"], "domains of the state: expected a list of different names"),
        ("points", [[1, 2]], "points[0] of the state: expected [tokens > 0, parameters > 0, 3 losses or null"),
        ("points", 5, "points of the state: expected a list of at most 512 items, got 5"),
        ("trusted", None, "trusted of the state: expected 3 losses or null"),
    ],
)
def test_the_error_names_the_entry(key: str, value: Any, message: str) -> None:
    strategy = DRPruning()
    with pytest.raises(StateError) as refused:
        strategy.update(strategy.init(DOMAINS, RATIO) | {key: value}, observe(losses(2, 1, 3)))
    assert message in refused.value.message
    assert refused.value.next_step


@pytest.mark.parametrize("state", [None, 5, [], "state", {}, {"strategy": [], "version": math.nan}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(StateError):
        DRPruning().update(state, observe(losses(2, 1, 3)))
    with pytest.raises(StateError):
        ADO().next_stage(state)


def test_an_entry_too_many_or_too_few_is_refused() -> None:
    state = DoReMi().init(DOMAINS, RATIO)
    with pytest.raises(StateError, match="got 'more'"):
        DoReMi().next_stage(state | {"more": 1})
    del state["updates"]
    with pytest.raises(StateError, match="an entry 'updates', got none"):
        DoReMi().next_stage(state)


@pytest.mark.parametrize("strategy", STRATEGIES_TRIED, ids=lambda strategy: strategy.name)
def test_states_are_strict_json_whatever_is_measured(strategy: Strategy) -> None:
    """Also from numpy's numbers, and with every value that counts as missing."""
    state = strategy.init(DOMAINS, RATIO, reference_loss={"web": np.float32(2.0)})
    for k, table in enumerate(curve_table(12)):
        missing = [math.nan, math.inf, -math.inf, 1e300, None][k % 5]
        seen = observe(
            {**table.losses, "code": missing, "books": np.float32(3.0)},  # type: ignore[dict-item]
            tokens=np.int64(table.tokens),  # type: ignore[arg-type]
            step=np.int32(table.step),
            params=np.float32(1e6),
        )
        state, update = strategy.update(state, seen)
        assert is_mixture(update.weights)
        assert json.loads(json.dumps(state, allow_nan=False)) == state


@pytest.mark.parametrize(
    "change",
    [
        {"losses": {"web": "2.0"}},
        {"losses": {"web": [2.0]}},
        {"losses": None},
        {"losses": 2.0},
        {"consumed": {"web": math.nan}},
        {"consumed": {"web": -1}},
        {"domain_tokens": {"web": math.inf}},
        {"standard_errors": {"web": "small"}},
        {"tokens": "many"},
        {"tokens": 10**400},
        {"params": None, "step": None},
    ],
)
def test_an_observation_holds_numbers(change: dict[str, Any]) -> None:
    with pytest.raises(WeightError):
        Observation(**{"step": 1, "tokens": 1, "params": 1e6, "losses": {"web": 2.0}, **change})


@pytest.mark.parametrize("loss", [math.nan, math.inf, -1e6, "2.0", None])
def test_a_reference_loss_is_a_finite_number(loss: Any) -> None:
    with pytest.raises(WeightError, match='reference loss of domain "web"'):
        DRPruning().init(DOMAINS, RATIO, reference_loss={"web": loss})


def test_a_state_of_other_domains_meets_no_losses_of_these() -> None:
    strategy = DRPruning()
    with pytest.raises(WeightError, match='loss names domain "web"'):
        run(strategy, strategy.init(["a", "b"], {"a": 0.5, "b": 0.5}), [observe(losses(2, 1, 3))])
