"""Proposed shapes meet the budget, can be pruned to, and have the reported costs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drpruning.errors import ConfigError
from drpruning.planning import (
    KNOWN,
    Budget,
    Serving,
    cache_bytes_per_token,
    decode_seconds,
    find_accelerator,
    search,
    search_shapes,
)
from drpruning.planning.compatibility import check_target
from drpruning.planning.search import NOMINAL, ShapeCosts
from drpruning.pruning import Target, parameter_count

H100 = Serving(accelerator=find_accelerator("H100"))
LLAMA2, LLAMA3 = KNOWN["meta-llama/Llama-2-7b-hf"], KNOWN["meta-llama/Llama-3.1-8B"]
PAPERS = {
    370e6: Target(layers=24, hidden=1024, heads=8, kv_heads=8, intermediate=2816),
    2.7e9: Target(layers=32, hidden=2560, heads=20, kv_heads=20, intermediate=6912),
}


@pytest.mark.parametrize(("parameters", "shape"), PAPERS.items())
def test_the_papers_shapes_are_among_the_first_two(parameters: float, shape: Target) -> None:
    found = [candidate.target for candidate in search_shapes(LLAMA2, Budget(parameters=parameters), H100)]
    assert shape in found[:2]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(list(KNOWN)),
    part=st.floats(0.1, 0.9),
    cache=st.none() | st.floats(0.2, 1.0),
    speed=st.none() | st.floats(0.3, 1.0),
    tensor_parallel=st.sampled_from([1, 2]),
)
def test_candidates_meet_the_budget_and_report_their_costs(
    name: str, part: float, cache: float | None, speed: float | None, tensor_parallel: int
) -> None:
    source = KNOWN[name]
    price = ShapeCosts(source, H100)
    whole = price(Target.of(source).sizes())  # type: ignore[arg-type]
    budget = Budget(
        parameters=part * whole.parameters,
        cache_bytes=None if cache is None else cache * whole.cache_bytes,
        decode_seconds=None if speed is None else speed * whole.decode_seconds,
    )
    try:
        found = search_shapes(source, budget, H100, tensor_parallel=tensor_parallel)
    except ConfigError as error:
        assert error.next_step is not None  # noqa: PT017 - the error of an unreachable budget names the nearest shape
        return
    assert sorted(found, key=lambda candidate: candidate.distance) == found
    for candidate in found:
        target = candidate.target
        assert target.resolve(source) == target  # type: ignore[arg-type]
        assert candidate.parameters == parameter_count(source, target)  # type: ignore[arg-type]
        assert candidate.cache_bytes == cache_bytes_per_token(source, target.sizes())
        assert candidate.decode_seconds == decode_seconds(source, target.sizes(), candidate.parameters, H100)
        assert candidate.parameters <= part * whole.parameters * (1 + NOMINAL)
        if cache is None and speed is None:
            assert candidate.parameters >= part * whole.parameters * (1 - NOMINAL)
        assert budget.cache_bytes is None or candidate.cache_bytes <= budget.cache_bytes
        assert budget.decode_seconds is None or candidate.decode_seconds <= budget.decode_seconds


@pytest.mark.parametrize(
    ("round_to", "budget"),
    [
        (64, Budget(parameters=618e6)),
        (None, Budget(parameters=618e6, cache_bytes=2e4)),
        (None, Budget(parameters=618e6, memory_bytes=1.4e9, decode_seconds=5e-4)),
    ],
)
def test_the_best_width_of_each_shape_is_found(
    round_to: int | None, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: only the largest few widths were tried, so that with small multiples all shapes were too large."""
    source = KNOWN["meta-llama/Llama-3.2-1B"]
    found = search_shapes(source, budget, H100, round_to=round_to)
    monkeypatch.setattr(
        search,
        "_best_widths",
        lambda shape, widths, costs, _whole, _budget: [costs(shape | {"intermediate": width}) for width in widths],
    )
    assert found == search_shapes(source, budget, H100, round_to=round_to)


def test_candidates_load_everywhere_with_tensor_parallelism() -> None:
    for candidate in search_shapes(LLAMA3, Budget(parameters=3e9), H100, tensor_parallel=8):
        checked = check_target(LLAMA3, candidate.target, tensor_parallel=8)
        assert [support.outcome for support in checked.loaders] == ["loads"] * 4


def test_a_budget_of_memory_counts_weights_and_the_cache_of_all_sequences() -> None:
    serving = Serving(accelerator=find_accelerator("L4"), batch=4, context=2048)
    budget = Budget(memory_bytes=4 * 2**30)
    for candidate in search_shapes(LLAMA3, budget, serving):
        cache = 4 * 2048 * cache_bytes_per_token(LLAMA3, candidate.target.sizes())
        assert candidate.memory_bytes == 2 * candidate.parameters + cache <= 4 * 2**30
        assert candidate.memory_bytes > 3.8 * 2**30, "the budget is used"
    longer = Serving(accelerator=find_accelerator("L4"), batch=4, context=8192)
    assert search_shapes(LLAMA3, budget, longer)[0].parameters < search_shapes(LLAMA3, budget, serving)[0].parameters


def test_a_limit_of_the_cache_alone_leaves_the_rest() -> None:
    best = search_shapes(LLAMA3, Budget(cache_bytes=65536), H100)[0]
    assert best.target == Target(layers=32, hidden=4096, heads=16, kv_heads=4, intermediate=14336)


def test_a_longer_context_or_a_slower_accelerator_allows_fewer_parameters() -> None:
    budget = Budget(decode_seconds=2e-3)
    best = search_shapes(LLAMA3, budget, H100)[0].parameters
    for serving in (
        Serving(accelerator=find_accelerator("H100"), batch=8, context=16384),
        Serving(accelerator=find_accelerator("A100")),
    ):
        assert search_shapes(LLAMA3, budget, serving)[0].parameters < best


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "budget is empty"),
        ({"parameters": 0.0}, "must be above 0"),
        ({"memory_bytes": -1.0}, "must be above 0"),
        ({"cache_bytes": float("nan")}, "must be above 0"),
        ({"decode_seconds": float("inf")}, "must be above 0"),
    ],
)
def test_a_budget_is_above_zero_and_finite(budget: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**budget)


@pytest.mark.parametrize("budget", [Budget(parameters=1e6), Budget(cache_bytes=10.0)])
def test_a_budget_out_of_reach_names_the_nearest_shape(budget: Budget) -> None:
    with pytest.raises(ConfigError, match="no shape of the source") as refused:
        search_shapes(LLAMA3, budget, H100)
    assert "Nearest: layers" in str(refused.value.next_step)


def test_a_target_is_smaller_than_the_source() -> None:
    with pytest.raises(
        ConfigError, match=r"30,000,000,000 parameters are more than the source's 8,030,261,248"
    ) as refused:
        search_shapes(LLAMA3, Budget(parameters=30e9), H100)
    assert "Give fewer. The largest shape: layers" in str(refused.value.next_step)


def test_a_split_without_fitting_heads_is_rejected() -> None:
    with pytest.raises(ConfigError, match="divide by 5"):
        search_shapes(KNOWN["Qwen/Qwen2-7B"], Budget(parameters=2e9), H100, tensor_parallel=5)


def test_accelerators_are_found_in_any_spelling() -> None:
    assert find_accelerator("NVIDIA RTX 4090") is find_accelerator("rtx4090")
    with pytest.raises(ConfigError, match="unknown accelerator 'H10'") as refused:
        find_accelerator("H10")
    assert refused.value.next_step == "Did you mean H100?"
