"""Advice in pieces is advice in one go, and a state that is not ours is never used."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from benches.hardening.state_mutations import mutate
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning import STRATEGIES, Constant, DRPruning, LearningRates, LossTable, read_losses
from drpruning.advice import Advice, UpdateSummary
from drpruning.errors import ConfigError, DrpruningError, StateError
from drpruning.mixture import Bounds, CVaR, build, settings_of

RATIO = {"web": 0.7, "code": 0.2, "books": 0.1}
ONE_GO = [
    name
    for name, cls in STRATEGIES.items()
    if all(item.default is not MISSING or item.default_factory is not MISSING for item in fields(cls))
    and name not in ("odm", "aioli")  # refused
]


def table_of(rows: list[tuple[int, list[float]]]) -> LossTable:
    text = "tokens,web,code,books\n" + "".join(f"{at},{','.join(map(repr, losses))}\n" for at, losses in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return read_losses("-")


def curve(at: int) -> list[float]:
    return [floor + 30 * at**-0.3 * (1 + 0.01 * math.sin(at)) for floor in (2.0, 1.0, 2.5)]


@pytest.mark.parametrize(("name", "needed"), [("odm", "training losses"), ("aioli", "probes")])
def test_strategies_that_need_more_than_evaluations_are_refused(name: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} needs .*{needed}.*; a table has held-out losses"):
        Advice.new(build(name, {}), RATIO, final_tokens=10_000)


def begun(strategy: str = "drpruning", **given: Any) -> Advice:
    settings_ = {"min_points": 4, "predict_after_fraction": 0.05} if strategy == "drpruning" else {}
    return Advice.new(build(strategy, settings_), RATIO, final_tokens=10_000, **given)


@pytest.mark.parametrize("strategy", ONE_GO)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_in_pieces_as_in_one_go(strategy: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is missing, wherever the table is cut, whether the new rows or all of them are given."""
    number = data.draw(st.integers(1, 9))
    gap = st.sampled_from([False, False, False, True])
    rows = []
    for index in range(number):
        at = 500 * (index + 1)
        losses = [math.nan if data.draw(gap) else loss for loss in curve(at)]
        rows.append((at, losses if any(map(math.isfinite, losses)) else curve(at)))
    whole = begun(strategy)
    whole.take(table_of(rows))

    path = tmp_path_factory.mktemp("state") / "mixture.json"
    begun(strategy).write(path)
    cuts = sorted(data.draw(st.sets(st.integers(1, number), max_size=3)) | {number})
    before = 0
    for cut in cuts:
        advice = Advice.read(path)
        everything = data.draw(st.booleans())
        tally = advice.take(table_of(rows[0 if everything else before : cut]))
        assert tally == UpdateSummary(new=cut - before, known=before if everything else 0)
        advice.write(path)
        before = cut
    assert Advice.read(path) == whole


def test_rows_seen_changed_and_too_late() -> None:
    advice = begun()
    assert advice.take(table_of([(1000, curve(1000)), (3000, curve(3000))])) == UpdateSummary(new=2)
    answer = advice.update
    rows = [(1000, curve(1000)), (2000, curve(2000)), (3000, [9.0, 9.0, 9.0])]
    assert advice.take(table_of(rows)) == UpdateSummary(known=2, changed=1, late=1)
    assert advice.update == answer
    assert [row.tokens for row in advice.counted] == [1000, 3000]


def test_the_answer_is_the_strategys_own() -> None:
    rows = [(at, curve(at)) for at in range(500, 4500, 500)]
    strategy = DRPruning(min_points=4, predict_after_fraction=0.05)
    state = strategy.init(list(RATIO), RATIO)
    for seen in table_of(rows).observations(final_tokens=10_000):
        state, update = strategy.update(state, seen)
    advice = begun()
    advice.take(table_of(rows))
    assert advice.update == update
    assert advice.state == state
    assert advice.counted[-1].weights == list(update.weights.values())


def table_with_rates(rows: list[tuple[int, list[float], float]]) -> LossTable:
    text = "tokens,web,code,books,lr\n" + "".join(
        f"{at},{','.join(map(repr, losses))},{rate}\n" for at, losses, rate in rows
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return read_losses("-", rates=True)


@pytest.mark.parametrize("schedule", ["cosine:warmup=5%", LearningRates([0, 500, 10_000], [0, 2, 0])])
@pytest.mark.parametrize("cut", [1, 3, 7])
def test_in_pieces_as_in_one_go_with_learning_rates(schedule: str | LearningRates, cut: int, tmp_path: Path) -> None:
    """Check that an evaluation is counted with the rates up to it, not with those of later rows."""
    rows = [(500 * k, curve(500 * k), 3e-4 * (1 - k / 30)) for k in range(1, 9)]
    rows[4] = (*rows[4][:2], math.nan)
    whole = begun(learning_rates=schedule)
    whole.take(table_with_rates(rows))
    path = tmp_path / "mixture.json"
    parts = begun(learning_rates=schedule)
    parts.take(table_with_rates(rows[:cut]))
    parts.write(path)
    parts = Advice.read(path)
    parts.take(table_with_rates(rows))
    assert parts == whole
    known = whole.schedule()
    assert known is not None
    assert known.tokens[known.tokens.index(500) :][:3] == (500.0, 1000.0, 1500.0)
    assert whole.table().learning_rates == known

    without_rates = begun()
    without_rates.take(table_with_rates(rows))
    assert without_rates.schedule() is None
    assert whole.update is not None
    assert without_rates.update is not None
    assert whole.update.predicted_loss != without_rates.update.predicted_loss


def test_the_answer_with_learning_rates_is_the_strategys_own() -> None:
    rows = [(at, curve(at)) for at in range(500, 4500, 500)]
    schedule = LearningRates.cosine(10_000)
    strategy = DRPruning(min_points=4, predict_after_fraction=0.05)
    state = strategy.init(list(RATIO), RATIO)
    for seen in table_of(rows).observations(final_tokens=10_000, learning_rates=schedule):
        state, update = strategy.update(state, seen)
    advice = begun(learning_rates="cosine")
    advice.take(table_of(rows))
    assert advice.update == update


def test_a_state_from_before_learning_rates_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mixture.json"
    advice = begun()
    advice.take(table_of([(500, curve(500))]))
    advice.write(path)
    body = json.loads(path.read_text())
    del body["sha256"], body["learning_rates"], body["counted"][0]["rate"]
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": digest, **body}))
    assert Advice.read(path) == advice


def test_a_schedule_without_an_end_counts_nothing() -> None:
    advice = Advice.new(build("ado", {}), RATIO, learning_rates="cosine")
    with pytest.raises(ConfigError, match="whose end is not known"):
        advice.take(table_of([(500, curve(500))]))
    assert advice.counted == []


def test_what_was_counted_as_a_table() -> None:
    rows = [(500, curve(500)), (1000, [3.0, math.nan, 2.0])]
    advice = begun()
    advice.take(table_of(rows))
    table = advice.table()
    assert table.tokens.tolist() == [500, 1000]
    assert table.losses[0].tolist() == curve(500)
    assert math.isnan(table.losses[1, 1])


def test_an_error_counts_nothing() -> None:
    advice = Advice.new(DRPruning(), RATIO)
    with pytest.raises(ConfigError, match="final_tokens"):
        advice.take(table_of([(500, curve(500))]))
    assert advice == Advice.new(DRPruning(), RATIO)


def test_steps_after_tokens() -> None:
    advice = begun()
    advice.take(table_of([(500, curve(500))]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"step,web\n600,3\n")))
        with pytest.raises(StateError, match="standard input counts steps"):
            advice.take(read_losses("-"))


def test_a_damaged_state(tmp_path: Path) -> None:
    path = tmp_path / "mixture.json"
    advice = begun()
    advice.take(table_of([(500, curve(500)), (1000, curve(1000))]))
    advice.write(path)
    content = path.read_bytes()
    damaged = tmp_path / "damaged.json"
    for place in range(0, len(content) - 1, 23):  # the newline at the end carries nothing
        for wrong in (content[:place], content[:place] + bytes([content[place] ^ 0x04]) + content[place + 1 :]):
            damaged.write_bytes(wrong)
            with pytest.raises(StateError):
                Advice.read(damaged)


def test_a_mutated_state_with_a_right_checksum_is_refused_or_advises(tmp_path: Path) -> None:
    path, generator = tmp_path / "mixture.json", random.Random(3)
    advice = begun(learning_rates="cosine", reading={"columns": "<domain>", "params": 1e6})
    advice.take(table_of([(500 * k, curve(500 * k)) for k in range(1, 6)]))
    advice.write(path)
    body, new_rows, refused = json.loads(path.read_text()), table_of([(4000, curve(4000))]), 0
    del body["sha256"]
    for _ in range(150):
        mutated = mutate(body, generator)
        if isinstance(mutated, dict):
            digest = hashlib.sha256(json.dumps(mutated, sort_keys=True).encode()).hexdigest()
            mutated = {**mutated, "sha256": digest}
        path.write_text(json.dumps(mutated))
        try:
            read = Advice.read(path)
            read.take(new_rows)
            read.write(path)
        except DrpruningError:
            refused += 1
        else:
            assert read.update is not None
            assert math.fsum(read.update.weights.values()) == pytest.approx(1, abs=1e-6)
            assert min(read.update.weights.values()) >= 0
    assert refused > 50


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "is not a state of `drpruning advise`"),
        (b'{"format": "drpruning-corpus"}', "is not a state of `drpruning advise`"),
        (b'{"format": "drpruning-advice", "version": 2}', "has version 2, expected 1"),
        (b'{"format": "drpruning-advice", "version": 1}', "its checksum does not match"),
    ],
)
def test_what_is_no_state(tmp_path: Path, body: bytes, message: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(body)
    with pytest.raises(StateError, match=message):
        Advice.read(path)


def test_a_state_is_strict_json_even_with_an_infinite_radius(tmp_path: Path) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    path = tmp_path / "state.json"
    strategy = DRPruning(rho=math.inf)
    advice = Advice.new(strategy, RATIO, final_tokens=1000)
    advice.take(table_of([(100, curve(100))]))
    advice.write(path)
    json.loads(path.read_text(), parse_constant=refuse)
    assert build("drpruning", Advice.read(path).settings) == strategy


@pytest.mark.parametrize("name", ONE_GO)
def test_settings_there_and_back(name: str) -> None:
    strategy = build(name, {})
    assert build(name, settings_of(strategy)) == strategy
    assert build(name, json.loads(json.dumps(settings_of(strategy)))) == strategy


def test_settings_as_text() -> None:
    made = build("drpruning", {"rho": "1e-3", "min_points": "5", "floor": 0})
    assert made == DRPruning(rho=0.001, min_points=5, floor=0.0)
    assert build("constant", {}) == Constant()


def test_bounds_are_written_flat() -> None:
    made = build("cvar", {"alpha": "0.25", "min_share": "1e-2", "max_share": "{web: 0.5}"})
    assert made == CVaR(alpha=0.25, bounds=Bounds(min_share=0.01, max_share={"web": 0.5}))
    flat = settings_of(made)
    assert (flat["alpha"], flat["min_share"], flat["max_share"]) == (0.25, 0.01, {"web": 0.5})
    assert build("cvar", flat) == made
    assert build("cvar", {"max_share": "null"}) == CVaR()
    for name, value in (("max_share", "x"), ("min_shre", "1"), ("bounds", "1")):
        with pytest.raises(ConfigError, match=name):
            build("cvar", {name: value})


def test_a_schedule_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("unit: step\nstages: {prune: [{at: 0, weights: {web: 0.5, code: 0.5}}]}\n")
    made = build("schedule", {"schedule": str(path)})
    assert build("schedule", settings_of(made)) == made


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("drprunin", {}, "there is no strategy 'drprunin'\nDid you mean drpruning?"),
        ("x", {}, "there is no strategy 'x'\nThere are constant, "),
        ("drpruning", {"roh": "1"}, "has no setting 'roh'\nDid you mean rho?"),
        ("drpruning", {"zzz": "1"}, "has no setting 'zzz'\nIts settings: "),
        (
            "drpruning",
            {"rho": "high"},
            "drpruning.rho: expected a number, got 'high'",
        ),
        ("drpruning", {"rho": "nan"}, "rho: expected at least 0, got nan"),
        ("drpruning", {"rho": "true"}, "drpruning.rho: expected a number, got 'true'"),
        ("drpruning", {"rho": "[1]"}, "drpruning.rho: expected a number, got '[1]'"),
        ("drpruning", {"rho": "["}, "is not YAML"),
        ("drpruning", {"rho": "-1"}, "rho: expected at least 0, got -1.0"),
        ("drpruning", {"min_points": "4.5"}, "drpruning.min_points: expected an integer, got '4.5'"),
    ],
)
def test_settings_that_do_not_fit(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, given)
    assert message in str(caught.value)
