"""ODM and Aioli against the mixtures that their public code computed, written by ``tests/golden/make_mixers.py``.

Both sides compute in float64. The numbers are sums and products of at most 100 terms of one sign and exponentials of
numbers below 10; ``TOLERANCE`` is a thousand times the rounding of such a chain.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drpruning.mixture import ODM, Aioli, Observation, State
from drpruning.mixture.strategies.odm import exploration, softmax

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mixers.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-10


def of_class(name: str) -> list[dict[str, Any]]:
    return [case for case in GOLDEN["odm"] if case["class"] == name]


@pytest.mark.parametrize(
    "case", of_class("SmoothedMeanWeightUpdater"), ids=lambda case: f"{len(case['start'])} domains"
)
def test_odm_as_published_is_the_class_that_the_authors_name(case: dict[str, Any]) -> None:
    names, rows = [str(d) for d in range(len(case["start"]))], case["rows"]
    strategy = ODM.published(update_after_fraction=(case["warmup"] + 1) / len(rows))
    state = strategy.init(names, dict(zip(names, case["start"], strict=True)))
    for step, row in enumerate(rows, 1):
        seen = Observation(
            step=step, tokens=step, params=1.0, losses={}, final_tokens=len(rows), training_losses=row["losses"]
        )
        state, update = strategy.update(state, seen)
        assert update.status == ("bandit" if "weights" in row else "waiting")
        np.testing.assert_allclose(list(update.weights.values()), row.get("weights", case["start"]), rtol=TOLERANCE)


@pytest.mark.parametrize("case", of_class("Exp3WeightUpdater"), ids=lambda case: f"{len(case['start'])} domains")
def test_the_policy_of_exp3_is_the_public_one_for_the_same_rewards(case: dict[str, Any]) -> None:
    count = len(case["start"])
    for turn, row in enumerate(case["rows"], 1):
        if "weights" not in row:
            continue
        before, after = row["exploration"]
        assert after == pytest.approx(exploration(count, turn), rel=1e-15)
        policy = (1 - count * after) * softmax(before * np.array(row["rewards"])) + after
        np.testing.assert_allclose(policy, row["weights"], rtol=TOLERANCE)


@pytest.mark.parametrize("case", GOLDEN["aioli"], ids=lambda case: "-".join(map(str, case["settings"].values())))
def test_aioli_is_the_public_loop_on_the_same_losses(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given = case["settings"]
    strategy = Aioli(
        eta=given["eta"],
        ema=given["ema"] or 0.0,
        cumulative=given["ema"] is None,
        sweeps=given["lp_rounds"],
        probe_steps=given["lp_steps"],
        probe_share=given["one_hot_factor"],
        round_fraction=0.0,
    )
    names = [str(d) for d in range(len(case["rounds"][0]["losses"][0]))]
    state = strategy.init(names, dict.fromkeys(names, 1 / len(names)))
    step = 0

    def update(state: State, losses: list[float]) -> tuple[State, Any]:
        seen = Observation(
            step=step, tokens=step, params=1.0, losses=dict(zip(names, losses, strict=True)), final_tokens=10**6
        )
        return strategy.update(state, seen)

    for row in case["rounds"]:
        monkeypatch.setattr(Aioli, "_order", lambda self, state, row=row: list(row["order"]))
        state, answer = update(state, row["losses"][0])
        for losses in row["losses"][1:]:
            assert answer.status == "probing"
            step += strategy.probe_steps
            assert strategy.probe_end(state) == step
            state, answer = update(state, losses)
        assert (answer.status, strategy.probe_end(state)) == ("interaction", None)
        np.testing.assert_allclose(list(answer.weights.values()), row["weights"], rtol=TOLERANCE)
        step += 100
