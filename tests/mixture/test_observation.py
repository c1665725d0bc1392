"""Observations refuse counts that no training has."""

from __future__ import annotations

import math
from typing import Any

import pytest

from drpruning.errors import WeightError
from drpruning.mixture import Observation

FACTS: dict[str, Any] = {"step": 500, "tokens": 50_000, "params": 1e6, "losses": {"web": 2.0}, "final_tokens": 100_000}


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("step", -1, ">= 0"),
        ("tokens", -1, ">= 0"),
        ("tokens", math.nan, ">= 0"),
        ("tokens", math.inf, ">= 0"),
        ("params", 0.0, "> 0"),
        ("params", -1e6, "> 0"),
        ("params", math.nan, "> 0"),
        ("params", math.inf, "> 0"),
        ("final_tokens", 0, "> 0"),
        ("final_tokens", -10, "> 0"),
        ("final_params", 0.0, "> 0"),
        ("final_params", math.nan, "> 0"),
    ],
)
def test_a_count_that_cannot_be_is_refused_by_name(name: str, number: float, expected: str) -> None:
    with pytest.raises(WeightError) as refusal:
        Observation(**FACTS | {name: number})
    assert refusal.value.message == f"{name} of an observation: expected a finite number {expected}, got {number}"


@pytest.mark.parametrize("edge", [{"step": 0, "tokens": 0}, {"final_tokens": None}, {"final_params": None}])
def test_the_edges_are_accepted(edge: dict[str, Any]) -> None:
    seen = Observation(**FACTS | edge)
    assert {name: getattr(seen, name) for name in edge} == edge
