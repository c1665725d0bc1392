"""Text-book runs: losses follow known curves, and the strategy must find the answer that is computed another way."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq, root

from drpruning.chi2 import worst_case
from drpruning.mixture import (
    ADO,
    ODM,
    Aioli,
    Bounds,
    ChiSquareDRO,
    Constant,
    CVaR,
    DoReMi,
    DRPruning,
    GroupDRO,
    Observation,
    Schedule,
    ShearedLoading,
    Strategy,
    read_schedule,
)
from drpruning.records import Evaluated, JsonlSink
from drpruning.scaling import LearningRates
from tests.mixture.world import Progress, World, simulate

Vector = NDArray[np.float64]

WORLD = World()
IRREDUCIBLE = WORLD.named(WORLD.E)


def test_the_minimax_mixture_is_right() -> None:
    level, mixture = WORLD.minimax()
    assert WORLD.excess(WORLD.tokens * mixture) == pytest.approx([level] * 3, abs=1e-12)
    assert mixture.sum() == pytest.approx(1, abs=1e-12)


def test_constant_ends_where_its_ratio_leads() -> None:
    consumed, _ = WORLD.run(Constant())
    assert consumed == pytest.approx(WORLD.tokens * np.array(WORLD.ratio), rel=1e-12)
    assert WORLD.excess(consumed).max() > 1.7 * WORLD.minimax()[0]


@pytest.mark.parametrize(
    ("strategy", "within"),
    [
        # The whole simplex, best response: the domain furthest behind gets all; off by what an evaluation trains on
        (ChiSquareDRO(rho=np.inf, floor=0.0), 0.01),
        (CVaR(alpha=0.05, floor=0.0), 0.01),
        # Exponentiated weights swing around the saddle point
        (GroupDRO(), 0.03),
        (ShearedLoading(), 0.03),
        (DoReMi(), 0.03),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_robust_strategies_reach_the_minimax_excess(strategy: Strategy, within: float) -> None:
    consumed, _ = WORLD.run(strategy, reference_loss=IRREDUCIBLE)
    excess, level = WORLD.excess(consumed), WORLD.minimax()[0]
    assert level <= excess.max() < (1 + within) * level
    assert excess.min() > (1 - 2 * within) * level


def test_more_evaluations_bring_the_best_response_closer() -> None:
    gaps = []
    for evaluations in (25, 100, 400):
        consumed, _ = WORLD.run(CVaR(alpha=0.05, floor=0.0), evaluations, reference_loss=IRREDUCIBLE)
        gaps.append(WORLD.excess(consumed).max() / WORLD.minimax()[0] - 1)
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.002


def test_cvar_ends_with_books_at_its_cap_and_the_others_level() -> None:
    # books may have 0.1 / 0.2 of the mixture, and would need 0.66; the other half makes the other two equal
    consumed, _ = WORLD.run(CVaR(alpha=0.2, floor=0.0), 200, reference_loss=IRREDUCIBLE)

    def gap(web: float) -> float:
        excess = WORLD.excess(WORLD.tokens * np.array([web, 0.5 - web, 0.5]))
        return float(excess[0] - excess[1])

    web = brentq(gap, 0.01, 0.49)
    assert consumed / WORLD.tokens == pytest.approx([web, 0.5 - web, 0.5], abs=0.005)


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0])
def test_chi_square_converges_to_the_worst_case_of_its_losses(rho: float) -> None:
    # With one exponent and no head start, a constant mixture q leaves losses proportional to A q^-b throughout: q is
    # right if it is the worst case for those.
    world = World(b=(0.3, 0.3, 0.3), start=1e-6)
    p, A = np.array(world.ratio), np.array(world.A)
    q = p.copy()
    for _ in range(400):
        q = 0.9 * q + 0.1 * worst_case(A * q**-0.3, p, rho, 0.2).weights
    assert worst_case(A * q**-0.3, p, rho, 0.2).weights == pytest.approx(q, abs=1e-9)
    strategy = ChiSquareDRO(rho=rho)
    state = strategy.init(world.domains, world.named(p), reference_loss=world.named(world.E))
    consumed = 1000 * p
    for k in range(400):
        state, update = strategy.update(
            state, world.observe(Progress(10 * k, consumed, consumed, evaluated=True), 4000)
        )
        consumed = consumed + 0.02 * consumed.sum() * np.array(list(update.weights.values()))
    assert update.status == "boundary"
    assert consumed / consumed.sum() == pytest.approx(q, abs=2e-3)


def test_sheared_loading_reaches_references_that_can_be_reached() -> None:
    reachable = np.array([0.3, 0.3, 0.4])
    reference = WORLD.losses(0.95 * WORLD.tokens * reachable)
    constant, _ = WORLD.run(Constant())
    assert (WORLD.losses(constant) - reference).max() > 0.2
    consumed, updates = WORLD.run(ShearedLoading(eta=1.0), 200, reference_loss=WORLD.named(reference))
    assert (WORLD.losses(consumed) - reference).max() < 0.01
    assert updates[-1].reference_loss == pytest.approx(WORLD.named(reference))


def table(evaluations: int) -> list[Observation]:
    """Losses that follow the law in the tokens of the stage, whatever the mixture."""
    A, b, E = (np.array(values) for values in (WORLD.A, WORLD.b, WORLD.E))
    rows = []
    for k in range(1, evaluations + 1):
        n = WORLD.tokens * k / evaluations
        losses = WORLD.named(E + A * n**-b)
        rows.append(Observation(step=10 * k, tokens=int(n), params=1e6, losses=losses, final_tokens=WORLD.tokens))
    return rows


def test_ado_weights_are_its_closed_form() -> None:
    strategy = ADO(min_points=6)
    state = strategy.init(WORLD.domains, WORLD.named(WORLD.ratio))
    prior, A, b = np.array(WORLD.ratio), np.array(WORLD.A), np.array(WORLD.b)
    credit, mean, weights = prior.copy(), prior.copy(), prior.copy()
    for k, row in enumerate(table(24), 1):
        state, update = strategy.update(state, row)
        for _ in range(10):  # step by step, as in the paper
            credit = 0.9 * credit + 0.1 * weights
        rho = weights
        if k >= 6:
            speed = b * A * row.tokens**-b / row.tokens
            rho = prior * np.sqrt(credit) * speed
            rho = np.maximum(rho / rho.sum(), 0.01)
            rho /= rho.sum()
            weights = 0.9 * mean + 0.1 * rho
        for step in range(10 * k - 9, 10 * k + 1):
            mean = (1 - 1 / step) * mean + 1 / step * rho
        assert update.status == ("learning_speed" if k >= 6 else "waiting")
        assert list(update.weights.values()) == pytest.approx(weights.tolist(), abs=2e-4)
    assert weights[0] > prior[0] + 0.01  # falls faster than code, and is more of the data than books


def test_doremi_answers_with_the_mean_of_its_mixtures() -> None:
    # At constant excess the weights are p exp(eta k excess) / Z
    strategy = DoReMi(eta=0.2, smoothing=0.0)
    p, excess = np.array(WORLD.ratio), np.array([0.1, 0.5, 0.3])
    state = strategy.init(WORLD.domains, WORLD.named(p), reference_loss=IRREDUCIBLE)
    losses = WORLD.named(np.array(WORLD.E) + excess)
    for k in range(1, 31):
        state, update = strategy.update(state, Observation(step=k, tokens=k, params=1e6, losses=losses))
    powers = p * np.exp(0.2 * np.arange(1, 31)[:, None] * excess)
    mixtures = powers / powers.sum(axis=1, keepdims=True)
    assert list(update.weights.values()) == pytest.approx(mixtures[-1].tolist(), rel=1e-12)
    assert list((update.average_weights or {}).values()) == pytest.approx(mixtures.mean(axis=0).tolist(), rel=1e-12)


def test_the_doremi_average_trains_a_better_worst_domain_than_the_ratio_it_started_from() -> None:
    _, updates = WORLD.run(DoReMi(), reference_loss=IRREDUCIBLE)
    average = np.array(list((updates[-1].average_weights or {}).values()))
    level = WORLD.minimax()[0]
    assert WORLD.excess(WORLD.tokens * average).max() < 1.05 * level
    assert WORLD.excess(WORLD.tokens * np.array(WORLD.ratio)).max() > 1.7 * level


def test_drpruning_measures_against_the_true_ends() -> None:
    strategy = DRPruning()
    state = strategy.init(WORLD.domains, WORLD.named(WORLD.ratio))
    rows = [replace(row, learning_rates=LearningRates([0], [1])) for row in table(20)]  # no decay
    for k, row in enumerate(rows, 1):
        state, update = strategy.update(state, row)
        if k >= 10:
            assert update.predicted_loss == pytest.approx(rows[-1].losses, abs=2e-3)
            assert update.reference_loss == pytest.approx(rows[-1].losses, abs=2e-3)
    assert max((update.excess_loss or {}).values()) < 2e-3


def test_drpruning_with_references_beats_the_constant_mixture_and_stays_near_the_minimax() -> None:
    consumed, _ = WORLD.run(
        DRPruning(delta=0.2, ratio_bound=4.0, predict_after_fraction=1.0), 40, reference_loss=IRREDUCIBLE
    )
    level = WORLD.minimax()[0]
    assert WORLD.excess(consumed).max() < 1.12 * level
    constant, _ = WORLD.run(Constant())
    assert WORLD.excess(constant).max() > 1.7 * level


def test_a_bound_on_the_share_gives_the_minimax_mixture_under_that_bound() -> None:
    # books would need 0.66; with at most 0.4 for it, the others share the rest so that they are level
    # (exponentiated weights within bounds are mirror descent on the bounded set)
    strategy = GroupDRO(bounds=Bounds(max_share={"books": 0.4}))
    consumed, updates = WORLD.run(strategy, 400, reference_loss=IRREDUCIBLE)
    assert consumed[2] <= 0.4 * WORLD.tokens * (1 + 1e-12)

    def gap(web: float) -> float:
        excess = WORLD.excess(WORLD.tokens * np.array([web, 0.6 - web, 0.4]))
        return float(excess[0] - excess[1])

    web = brentq(gap, 0.01, 0.59)
    assert consumed / WORLD.tokens == pytest.approx([web, 0.6 - web, 0.4], abs=0.02)
    assert all(update.at_bound == ("books",) for update in updates[100:])


def test_epochs_are_kept_to_the_end() -> None:
    # 40,000 tokens each and 100,000 to train: one epoch of books is 0.4 of the stage, two of web are 0.8
    for strategy in (
        Constant(bounds=Bounds(max_epochs={"books": 1.0, "web": 1.5})),
        CVaR(alpha=0.05, floor=0.0, bounds=Bounds(max_epochs={"books": 1.0, "web": 1.5})),
        GroupDRO(bounds=Bounds(max_epochs={"books": 1.0, "web": 1.5})),
    ):
        consumed, _ = WORLD.run(strategy, 50, reference_loss=IRREDUCIBLE)
        assert consumed.sum() == pytest.approx(WORLD.tokens)
        assert consumed[2] <= 40_001
        assert consumed[0] <= 60_001


def test_a_recorded_run_is_replayed_exactly(tmp_path: Path) -> None:
    consumed, updates = WORLD.run(GroupDRO(), 30, reference_loss=IRREDUCIBLE)
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for k, update in enumerate(updates):
        sink.write(
            Evaluated(
                stage="prune",
                step=10 * k,
                tokens=WORLD.tokens * k // 30,
                parameters=1e6,
                losses={},
                weights=update.weights,
                reference_ratio=update.reference_ratio,
            )
        )
    sink.close()
    for unit in ("step", "tokens"):
        again, replayed = WORLD.run(read_schedule(tmp_path, unit), 30)  # type: ignore[arg-type]
        assert [update.weights for update in replayed] == [update.weights for update in updates]
        assert (again == consumed).all()


def test_a_schedule_by_hand_changes_at_its_steps() -> None:
    late = {"web": 0.2, "code": 0.3, "books": 0.5}
    consumed, updates = WORLD.run(Schedule.of([(500, late)]), 100)
    assert updates[49].weights == WORLD.named(WORLD.ratio)
    assert updates[50].weights == late
    assert consumed == pytest.approx([45_000, 25_000, 30_000])


def test_odm_draws_the_domain_whose_loss_stays_high_most() -> None:
    # Losses 2, 1 and 3 whatever is drawn: the rewards R = L / w end where w = softmax(eps L / w), and books is largest
    level = World(E=(2.0, 1.0, 3.0), A=(1e-9, 1e-9, 1e-9), ratio=(0.7, 0.2, 0.1))
    _, updates = level.run(ODM(update_after_fraction=0.1), 100)
    # Step 0 has no training loss; the warm-up is steps 1 to 99
    assert [update.status for update in updates[:101]] == ["unchanged"] + ["waiting"] * 99 + ["bandit"]
    assert len(updates) == 1001
    assert updates[99].weights == pytest.approx(level.named(level.ratio))
    last = updates[-1].weights
    least = math.sqrt(math.log(3) / 3000)
    assert min(last.values()) > least
    assert last["books"] > last["web"] > last["code"]
    mean = np.mean([list(update.weights.values()) for update in updates[300:]], axis=0)

    def gap(w: NDArray[np.float64]) -> NDArray[np.float64]:
        raised = np.exp(least * np.array([2.0, 1.0, 3.0]) / w)
        return np.asarray((1 - 3 * least) * raised / raised.sum() + least - w)

    assert mean == pytest.approx(root(gap, np.full(3, 1 / 3)).x, abs=0.01)


def test_odm_as_published_draws_in_proportion_to_the_perplexity() -> None:
    level = World(E=(2.0, 1.0, 3.0), A=(1e-9, 1e-9, 1e-9))
    _, updates = level.run(ODM.published(update_after_fraction=0.0), 100)
    perplexity, least = np.exp([2.0, 1.0, 3.0]), math.sqrt(math.log(3) / 3000)
    expected = (1 - 3 * least) * perplexity / perplexity.sum() + least
    assert list(updates[-1].weights.values()) == pytest.approx(expected.tolist(), abs=1e-6)


INTERACTION = np.array([[0.20, 0.05, 0.00], [0.10, 0.30, 0.00], [0.00, 0.15, 0.10]])
"""Fall of each domain's loss (rows) by the whole stage on each domain (columns): code helps all of them most."""


def linear(now: Progress, steps: int) -> Observation:
    losses = np.array([4.0, 4.0, 4.0]) - INTERACTION @ now.consumed / WORLD.tokens
    return Observation(
        step=now.step,
        tokens=WORLD.tokens * now.step // steps,
        params=1e6,
        losses=WORLD.named(losses),
        final_tokens=WORLD.tokens,
    )


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(max_share=0.6)])
def test_aioli_measures_a_linear_world_exactly_and_finds_its_best_mixture(bounds: Bounds) -> None:
    # The mean loss is linear in the mixture: the best mixture is all of the domain with the largest column sum, code
    for eta in (0.2, 1.0, 200.0):
        strategy = Aioli(eta=eta, bounds=bounds)
        state = strategy.init(WORLD.domains, WORLD.named(WORLD.ratio))
        _, updates = simulate(
            strategy, state, lambda now: linear(now, 1000), steps=1000, eval_every=10, tokens=WORLD.tokens
        )
        expected = np.exp(eta * (INTERACTION.sum(axis=0) - 0.5) / INTERACTION.sum())
        expected = bounds.nearest(expected / expected.sum(), WORLD.domains)
        assert {str(update.status) for update in updates} == {"probing", "interaction"}
        for update in updates:
            if update.status == "interaction":
                assert list(update.weights.values()) == pytest.approx(expected.tolist(), abs=1e-9)
    assert updates[-1].weights["code"] == pytest.approx(1.0 if not bounds else 0.6)


def test_aioli_charges_its_probes_to_the_stage_and_stops_where_they_do_not_fit() -> None:
    strategy = Aioli(round_fraction=0.3, sweeps=2, probe_steps=5)  # 30 steps a round
    state = strategy.init(WORLD.domains, WORLD.named(WORLD.ratio))
    steps: list[int] = []

    def observe(now: Progress) -> Observation:
        steps.append(now.step)
        return linear(now, 120)

    _, updates = simulate(strategy, state, observe, steps=120, eval_every=10, tokens=WORLD.tokens)
    probing = [step for step, update in zip(steps, updates, strict=True) if update.status == "probing"]
    # Rounds start at 0, at 40 (the first evaluation after 36) and at 80 (after 76), with 40 steps left
    assert probing == [0, 5, 10, 15, 20, 25, 40, 45, 50, 55, 60, 65, 80, 85, 90, 95, 100, 105]
    assert updates[-1].status == "interaction"


def test_aioli_leaves_out_what_was_not_measured() -> None:
    def observe(now: Progress) -> Observation:
        seen = linear(now, 1000)
        missing = {"books"} | ({"web"} if now.step == 8 else set())
        return replace(seen, losses={domain: loss for domain, loss in seen.losses.items() if domain not in missing})

    strategy = Aioli(round_fraction=1.0)
    state = strategy.init(WORLD.domains, WORLD.named(WORLD.ratio))
    _, updates = simulate(strategy, state, observe, steps=1000, eval_every=10, tokens=WORLD.tokens)
    sums = INTERACTION[:2].sum(axis=0) / INTERACTION[:2].sum()
    expected = np.exp(sums) / np.exp(sums).sum()
    assert list(updates[-1].weights.values()) == pytest.approx(expected.tolist(), abs=1e-9)
