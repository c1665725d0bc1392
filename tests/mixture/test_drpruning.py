"""DRPruning: the mixture before and after predictions, and what becomes of the references."""

import math
from dataclasses import replace

import numpy as np
import pytest

from drpruning.chi2 import worst_case
from drpruning.errors import ConfigError
from drpruning.mixture import ChiSquareDRO, DRPruning, ShearedLoading
from drpruning.mixture.strategies.chi_square import remaining_ball
from drpruning.scaling import LearningRates
from tests.mixture.observed import DOMAINS, FINAL, RATIO, curve_table, losses, observe, run


def test_drpruning_before_any_prediction_is_the_worst_case_against_the_references() -> None:
    strategy = DRPruning(rho=0.05, floor=0.1)
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0))
    _, (update,) = run(strategy, state, [observe(losses(2.1, 1.6, 3.2), tokens=1000)])
    expected = worst_case([0.1, 0.6, 0.2], list(RATIO.values()), 0.05, 0.1)
    assert list(update.weights.values()) == pytest.approx(expected.weights.tolist())
    assert (update.status, update.divergence) == ("boundary", pytest.approx(0.05))
    assert update.reference_ratio == pytest.approx(RATIO)  # 1% of the stage: the ratio does not move yet
    assert update.predicted_loss is None


def test_drpruning_moves_the_ratio_by_delta_within_its_bound() -> None:
    strategy = DRPruning(delta=0.5, ratio_bound=1.4, predict_after_fraction=1.0, floor=0.0)
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0))
    table = [observe(losses(2.0, 2.0, 3.0))] * 30
    state, updates = run(strategy, state, table)
    moved = 0.5 * updates[0].weights["code"] + 0.5 * 0.2
    assert moved > 0.28  # beyond the bound of 1.4 * 0.2, so the bound holds
    assert updates[0].reference_ratio["code"] == pytest.approx(0.28)
    for update in updates:
        ratio = np.array([update.reference_ratio[domain] / RATIO[domain] for domain in DOMAINS])
        assert (ratio > 1 / 1.4 - 1e-12).all()
        assert (ratio < 1.4 + 1e-12).all()
        assert sum(update.reference_ratio.values()) == pytest.approx(1, abs=1e-15)


def test_a_ratio_that_follows_all_the_way_can_lose_a_domain_and_stays_finite() -> None:
    strategy = DRPruning(rho=9.0, delta=1.0, floor=0.0, initial_floor=0.0, predict_after_fraction=1.0, ratio_bound=2.0)
    state = strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0))
    _, updates = run(strategy, state, [observe(losses(2.0, 2.0, 3.0))] * 3)
    assert updates[0].weights == losses(0, 1, 0)
    assert updates[-1].reference_ratio == pytest.approx(losses(0.525, 0.4, 0.075))  # code at twice its own


def test_drpruning_predicts_the_end_of_known_curves() -> None:
    strategy = DRPruning()
    table = [replace(each, learning_rates=LearningRates([0], [1])) for each in curve_table()]  # no decay
    _, updates = run(strategy, strategy.init(DOMAINS, RATIO), table)
    assert updates[8].predicted_loss is None  # 10 points are needed
    ends = curve_table()[-1].losses
    for update in updates[9:]:
        assert update.predicted_loss == pytest.approx(ends, abs=1e-4)
        for domain, (low, high) in (update.predicted_band or {}).items():
            assert low <= update.predicted_loss[domain] <= high  # type: ignore[index]
        assert (update.predicted_band or {}).keys() == (update.predicted_loss or {}).keys()
    # What is still to come, which is most in the domain that falls most slowly
    assert updates[9].excess_loss is not None
    assert max(updates[9].excess_loss, key=updates[9].excess_loss.get) == "code"  # type: ignore[arg-type]
    assert updates[9].weights["code"] > 1.2 * RATIO["code"]


def test_predictions_that_only_lower_leave_a_lower_reference_as_it_was_given() -> None:
    table, ends = curve_table(), {}
    for predictions in ("replace", "lower"):
        strategy = DRPruning(min_points=6, predictions=predictions)
        state = strategy.init(DOMAINS, RATIO, reference_loss=losses(0.5, 9.0, 9.0))
        ends[predictions] = run(strategy, state, table)[1][-1]
    predicted, lower = ends["replace"].reference_loss, ends["lower"].reference_loss
    assert predicted is not None
    assert lower is not None
    assert predicted["web"] > 0.5
    assert lower == predicted | {"web": 0.5}  # those given too high are lowered in both
    with pytest.raises(ConfigError, match="replace or lower"):
        DRPruning(predictions="raise")  # type: ignore[arg-type]


def test_with_learning_rates_it_predicts_a_later_decay() -> None:
    schedule = LearningRates.cosine(FINAL, warmup=FINAL / 50)
    straight = curve_table(25)
    bent = [
        replace(each, losses={d: x * float(schedule.bend(each.tokens)) for d, x in each.losses.items()})
        for each in straight
    ]
    with_rates = [replace(each, learning_rates=schedule) for each in bent]
    strategy = DRPruning()
    state, updates = run(strategy, strategy.init(DOMAINS, RATIO), with_rates)
    _, without = run(strategy, strategy.init(DOMAINS, RATIO), bent)
    ends = bent[-1].losses
    for update in updates[9:]:
        assert update.predicted_loss == pytest.approx(ends, abs=1e-3)
    wrong = [abs(without[12].predicted_loss[d] - ends[d]) for d in DOMAINS]  # type: ignore[index]
    assert max(wrong) > 5e-3
    # The schedule is no part of the state: with it or without, the state is the same
    untold, _ = run(strategy, strategy.init(DOMAINS, RATIO), bent)
    assert state["points"] == untold["points"]
    assert state.keys() == untold.keys()


def test_the_reference_never_rises_and_never_exceeds_the_lowest_loss() -> None:
    noise = np.random.default_rng(5).normal(size=(20, 3)) * 0.01
    table = [
        replace(each, losses={d: x + e for (d, x), e in zip(each.losses.items(), row, strict=True)})
        for each, row in zip(curve_table(), noise, strict=True)
    ]
    strategy = DRPruning(min_points=6)
    _, updates = run(strategy, strategy.init(DOMAINS, RATIO), table)
    predicted = [k for k, update in enumerate(updates) if len(update.predicted_loss or {}) == 3]
    assert len(predicted) > 5
    for domain in DOMAINS:
        reference = [(update.reference_loss or {})[domain] for update in updates[predicted[0] :]]
        assert reference == sorted(reference, reverse=True)
        for k in range(predicted[0], 20):
            lowest = min(each.losses[domain] for each in table[: k + 1])
            assert (updates[k].reference_loss or {})[domain] <= lowest


def test_while_masks_close_the_unpruned_loss_is_the_reference() -> None:
    """Let the loss rise while parameters go from 1e6 to 5e5, then fall again."""
    table = []
    for k in range(21):
        params = 1e6 * max(0.5, 1 - k / 16)
        jump = 2 * (1e6 / params - 1) * (k + 1) ** -0.3
        table.append(replace(observe(losses(2 + jump, 1 + jump / 2, 3 + jump), k * 5000), params=params))
    strategy = DRPruning(min_points=6)
    state = strategy.init(DOMAINS, RATIO)
    for observation in table:
        state, update = strategy.update(state, replace(observation, final_params=5e5))
        assert update.reference_loss == pytest.approx(losses(2, 1, 3))
        assert all(math.isfinite(weight) for weight in update.weights.values())


def test_the_next_stage_keeps_the_ratio_and_forgets_the_curves() -> None:
    strategy = DRPruning(min_points=6, delta=0.3)
    state, updates = run(strategy, strategy.init(DOMAINS, RATIO), curve_table())
    state = strategy.next_stage(state)
    assert state["points"] == []
    _, (update,) = run(strategy, state, [observe(losses(4, 3, 5), tokens=5000)])
    assert update.reference_ratio == updates[-1].reference_ratio
    assert update.reference_loss == curve_table()[0].losses


@pytest.mark.parametrize(
    "settings_", [{"rho": -1.0}, {"delta": 2.0}, {"floor": 1.0}, {"min_points": 3}, {"ratio_bound": 0.5}]
)
def test_settings_out_of_range_are_refused(settings_: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings_))):
        DRPruning(**settings_)  # type: ignore[arg-type]


# ---- noise, missing losses and the floors


def test_the_standard_errors_of_an_observation_are_noise() -> None:
    reference, excess = losses(2.0, 1.0, 3.0), [0.1, 0.6, 0.2]
    seen = observe(losses(2.1, 1.6, 3.2), tokens=1000, standard_errors=losses(0.1, 0.3, 0.1))
    ratio = list(RATIO.values())
    for multiple in (0.0, 1.0, 2.0):
        strategy = DRPruning(noise=multiple, initial_floor=0.0)
        _, (update,) = run(strategy, strategy.init(DOMAINS, RATIO, reference_loss=reference), [seen])
        errors = multiple * np.array([0.1, 0.3, 0.1])
        expected = worst_case(excess, ratio, 0.1, 0.2, noise=errors)
        assert list(update.weights.values()) == pytest.approx(expected.weights.tolist(), abs=1e-12)
        assert update.status == expected.status
    # An error that is not known counts as none
    part = replace(seen, standard_errors={"web": math.nan, "code": 0.3})
    strategy = DRPruning(initial_floor=0.0)
    _, (update,) = run(strategy, strategy.init(DOMAINS, RATIO, reference_loss=reference), [part])
    expected = worst_case(excess, ratio, 0.1, 0.2, noise=[0.0, 0.3, 0.0])
    assert list(update.weights.values()) == pytest.approx(expected.weights.tolist(), abs=1e-12)


@pytest.mark.parametrize("strategy", [DRPruning(initial_floor=0.0), ChiSquareDRO(), DRPruning(rho=0.02, floor=0.6)])
def test_a_missing_loss_leaves_the_mixture_in_the_ball_and_above_the_floor(strategy: DRPruning | ChiSquareDRO) -> None:
    """Remove each domain in turn, and two at once, after updates that have moved weights and ratio far."""
    reference = losses(2.0, 1.0, 3.0)
    full = [observe(losses(2.0, 1.7, 3.0), tokens) for tokens in (30_000, 40_000, 50_000)]
    table = []
    for missing in (["code"], ["web"], ["books"], ["web", "code"], ["code", "books"], ["web"], ["code"]):
        kept = {d: x for d, x in losses(2.5, 1.1, 3.6).items() if d not in missing}
        table += [observe(kept, 60_000), observe(kept, 60_000)]
    state, _ = run(strategy, strategy.init(DOMAINS, RATIO, reference_loss=reference), full)
    for observation in table:
        before = dict(zip(DOMAINS, state["weights"], strict=True))
        ratio = dict(zip(DOMAINS, state["reference_ratio"], strict=True))
        state, update = strategy.update(state, observation)
        assert update.status == "incomplete"
        assert update.divergence is not None
        assert update.divergence <= strategy.rho * (1 + 1e-9)
        for domain in DOMAINS:
            assert update.weights[domain] >= strategy.floor * ratio[domain] * (1 - 1e-9)
        for domain in set(DOMAINS) - set(observation.losses):
            assert update.weights[domain] == pytest.approx(before[domain])  # the ratio does not move: the ball holds it


def test_kept_weights_outside_the_ball_move_towards_the_ratio() -> None:
    p, weights = np.array([0.6, 0.3, 0.1]), np.array([0.1, 0.1, 0.8])
    known = np.array([True, True, False])
    mixture, radius, least = remaining_ball(weights, p, known, 0.1, 0.2)
    assert 0.1 < mixture[2] < 0.8
    assert radius == pytest.approx(0.0, abs=1e-12)  # all of the radius goes to the kept weight
    assert 0.5 * ((mixture - p) ** 2 / p).sum() == pytest.approx(0.1)
    assert 0.2 <= least < 1


def test_no_weight_falls_below_the_floor_of_the_initial_ratio() -> None:
    """Put one domain far above its reference for the whole stage: the ratio of the others falls to its bound."""
    reference = losses(2.0, 1.0, 3.0)
    table = [observe(losses(2.5, 1.1, 3.1), tokens) for tokens in range(5_000, 100_000, 1_000)]
    lowest = {}
    for floor in (0.0, 0.2, 0.5):
        strategy = DRPruning(predict_after_fraction=1.0, initial_floor=floor)
        _, updates = run(strategy, strategy.init(DOMAINS, RATIO, reference_loss=reference), table)
        lowest[floor] = min(update.weights[d] / RATIO[d] for update in updates for d in DOMAINS)
        assert lowest[floor] >= floor * (1 - 1e-12)
    assert lowest[0.0] == pytest.approx(0.2 / 4, rel=0.3)  # floor / ratio_bound
    assert lowest[0.5] == pytest.approx(0.5)


def test_before_update_after_the_weights_wait() -> None:
    strategy = DRPruning(update_after_fraction=0.5)
    table = [observe(losses(2.5, 1.1, 3.1), tokens) for tokens in (20_000, 49_000, 50_000)]
    _, updates = run(strategy, strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0)), table)
    assert [update.status for update in updates] == ["waiting", "waiting", "boundary"]
    assert updates[1].weights == pytest.approx(RATIO)
    assert updates[1].excess_loss == pytest.approx(losses(0.5, 0.1, 0.1))


def test_without_carry_over_the_next_stage_starts_at_the_initial_ratio() -> None:
    table = [observe(losses(2.5, 1.1, 3.1), tokens) for tokens in range(5_000, 100_000, 5_000)]
    for carry_over in (True, False):
        strategy = DRPruning(carry_over=carry_over)
        state, _ = run(strategy, strategy.init(DOMAINS, RATIO, reference_loss=losses(2.0, 1.0, 3.0)), table)
        state = strategy.next_stage(state)
        assert (state["weights"] == pytest.approx(list(RATIO.values()))) is not carry_over
        assert (state["reference_ratio"] == pytest.approx(list(RATIO.values()))) is not carry_over


def test_the_published_settings() -> None:
    assert DRPruning.published().solver == "published"
    assert DRPruning.published(rho=0.05).rho == 0.05
    assert not ShearedLoading.published().clip_excess
    strategy = DRPruning.published()
    table = [
        observe(losses(2 + 9 * t**-0.4, 1 + 3 * t**-0.15, 3 + 9 * t**-0.5), t) for t in range(2_000, 50_000, 4_000)
    ]
    _, updates = run(strategy, strategy.init(DOMAINS, RATIO, reference_loss=losses(1.9, 1.2, 2.9)), table)
    assert {update.status for update in updates[2:]} == {"published"}
    assert updates[9].predicted_loss is None  # more than ten points are needed
    predicted = updates[-1].predicted_loss
    ends = [2 + 9 * FINAL**-0.4, 1 + 3 * FINAL**-0.15, 3 + 9 * FINAL**-0.5]
    assert predicted is not None
    assert list(predicted.values()) == pytest.approx(ends, abs=0.2)  # no line search, float32: as documented
    least = min(RATIO.values())
    assert min(updates[-1].weights.values()) >= least * 0.9  # raised to the least share, then divided by the sum


@pytest.mark.parametrize("strategy", [DRPruning(noise=0.0, predict_after_fraction=1.0), ChiSquareDRO(noise=0.0)])
def test_losses_that_fell_by_the_same_move_nothing(strategy: DRPruning | ChiSquareDRO) -> None:
    """2.1 - 2.3 and 1.4 - 1.6 differ in their last bit, which decided before."""
    reference = losses(2.3, 1.6, 3.7)
    for third, moves in ((3.5, False), (3.5 + 1e-9, True)):
        state = strategy.init(DOMAINS, RATIO, reference_loss=reference)
        _, (update,) = run(strategy, state, [observe(losses(2.1, 1.4, third), tokens=1000)])
        assert (update.status == "center") is not moves
        assert (update.weights == pytest.approx(RATIO, abs=1e-15)) is not moves  # however small, if beyond rounding
