import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import drpruning as dp
from drpruning.errors import ConfigError, CorpusError, StateError, WeightError
from tests import sampler_twin
from tests.conftest import MakeCorpus

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sampler.json").read_text())
WEIGHTS = {"web": 0.6, "code": 0.3, "wiki": 0.1}


@pytest.fixture
def corpus(make_corpus: MakeCorpus) -> dp.Corpus:
    return dp.Corpus.open(make_corpus({"web": [500, 300], "code": [200], "wiki": [70]}))


def sampler_of(corpus: dp.Corpus, **changes: Any) -> dp.DomainSampler:
    arguments: dict[str, Any] = {"weights": WEIGHTS, "seq_len": 10, "batch_size": 12, "seed": 17, **changes}
    return dp.DomainSampler(corpus, **arguments)


def rows_of(batch: dp.Batch) -> list[tuple[int, int]]:
    return list(zip(batch.domains.tolist(), batch.rows.tolist(), strict=True))


def test_a_batch_holds_the_rows_it_names(corpus: dp.Corpus) -> None:
    batch = next(sampler_of(corpus))
    assert (batch.tokens.dtype, batch.domains.dtype, batch.rows.dtype) == (np.int64, np.int32, np.int64)
    assert batch.tokens.shape == (12, 10)
    starts = 10_000 * batch.domains.astype(np.int64) + 10 * batch.rows
    assert np.array_equal(batch.tokens, starts[:, None] + np.arange(10))


def test_the_mixture_is_kept_to_the_row(corpus: dp.Corpus) -> None:
    sampler = sampler_of(corpus, batch_size=10)
    for step in range(1, 50):
        assert next(sampler).step == step - 1
        assert sampler.tokens == {"web": 60 * step, "code": 30 * step, "wiki": 10 * step}
    assert sampler.epochs == {"web": 49 * 6 / 80, "code": 49 * 3 / 20, "wiki": 7.0}


def test_weights_take_effect_from_the_next_batch(corpus: dp.Corpus) -> None:
    sampler = sampler_of(corpus)
    next(sampler)
    sampler.set_weights({"web": 0, "code": 3, "wiki": 1})
    assert sampler.weights == {"web": 0, "code": 0.75, "wiki": 0.25}
    assert np.bincount(next(sampler).domains).tolist() == [0, 9, 3]


# The stream is what the twin says


@pytest.mark.parametrize("case", GOLDEN["shuffles"], ids=lambda case: f"{case['rows']} rows")
def test_golden_shuffles_are_the_twins(case: dict[str, Any]) -> None:
    twin = [sampler_twin.row(case["seed"], case["domain"], case["rows"], p) for p in case["positions"]]
    assert twin == case["expected"]


@pytest.mark.parametrize("case", GOLDEN["streams"], ids=lambda case: f"{len(case['rows'])} domains {case['draw']}")
def test_golden_streams_come_out(case: dict[str, Any], tmp_path: Path) -> None:
    paths = {f"d{number}": tmp_path / f"{number}.bin" for number in range(len(case["rows"]))}
    for path, rows in zip(paths.values(), case["rows"], strict=True):
        path.touch()
        os.truncate(path, rows)
    corpus = dp.Corpus(paths, dtype="uint8")
    named = [dict(zip(paths, stage["weights"], strict=True)) for stage in case["stages"]]
    sampler = dp.DomainSampler(
        corpus, named[0], seq_len=1, batch_size=case["batch_size"], seed=case["seed"], draw=case["draw"]
    )
    for number, stage in enumerate(case["stages"]):
        if number:
            sampler.set_weights(named[number])
        for expected in stage["batches"]:
            assert rows_of(next(sampler)) == [tuple(pick) for pick in expected]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**64 - 1),
    draw=st.sampled_from(["balanced", "random"]),
    history=st.lists(
        st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=3, max_size=3).filter(any),
        min_size=1,
        max_size=6,
    ),
)
def test_any_stream_is_the_twins(corpus: dp.Corpus, seed: int, draw: Any, history: list[list[float]]) -> None:
    named = [dict(zip(corpus.domains, weights, strict=True)) for weights in history]
    sampler = sampler_of(corpus, weights=named[0], seed=seed, draw=draw)
    twin = sampler_twin.Sampler([80, 20, 7], history[0], 12, seed, draw)
    for number, weights in enumerate(history):
        if number:
            sampler.set_weights(named[number])
            twin.set_weights(weights)
        for _ in range(3):
            assert rows_of(next(sampler)) == twin.next_batch()


# Ranks and states


@pytest.mark.parametrize("world_size", [2, 3, 4, 12])
def test_ranks_share_one_global_batch(corpus: dp.Corpus, world_size: int) -> None:
    whole = sampler_of(corpus)
    ranks = [sampler_of(corpus, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(20):
        batch = next(whole)
        parts = [next(rank) for rank in ranks]
        assert np.array_equal(np.concatenate([part.tokens for part in parts]), batch.tokens)
        assert np.array_equal(np.concatenate([part.domains for part in parts]), batch.domains)
        assert len({json.dumps(rank.state_dict()) for rank in [whole, *ranks]}) == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.integers(0, 40), draw=st.sampled_from(["balanced", "random"]), worlds=st.permutations([1, 2, 3, 4, 6, 12])
)
def test_a_state_goes_on_exactly_on_any_number_of_ranks(
    corpus: dp.Corpus, before: int, draw: Any, worlds: list[int]
) -> None:
    """40 batches cross several epochs of two domains (20 and 7 rows)."""
    original = sampler_of(corpus, draw=draw, world_size=worlds[0])
    for step in range(before):
        next(original)
        if step == before // 2:
            original.set_weights({"web": 0.1, "code": 0.9, "wiki": 0.0})
    state = json.loads(json.dumps(original.state_dict()))
    whole = sampler_of(corpus, draw=draw)
    whole.load_state_dict(state)
    resumed = [sampler_of(corpus, draw=draw, rank=rank, world_size=worlds[1]) for rank in range(worlds[1])]
    for rank in resumed:
        rank.load_state_dict(state)
    assert whole.weights == original.weights
    for step in range(before, before + 5):
        batch = next(whole)
        assert batch.step == step
        assert rows_of(batch)[: 12 // worlds[0]] == rows_of(next(original))
        assert rows_of(batch) == [row for rank in resumed for row in rows_of(next(rank))]


def test_a_state_is_small(corpus: dp.Corpus) -> None:
    sampler = sampler_of(corpus)
    for _ in range(1000):
        next(sampler)
    assert len(json.dumps(sampler.state_dict())) < 400


def test_a_state_of_something_else_is_refused_by_name(corpus: dp.Corpus, make_corpus: MakeCorpus) -> None:
    state = sampler_of(corpus).state_dict()
    other = dp.Corpus.open(make_corpus({"web": [500, 300], "code": [200], "wiki": [71]}, folder="other"))
    for sampler, differs in [
        (sampler_of(other), "fingerprint"),
        (sampler_of(corpus, seed=18), "seed 17; this sampler has 18"),
        (sampler_of(corpus, seq_len=5), "seq_len"),
        (sampler_of(corpus, batch_size=24), "batch_size"),
        (sampler_of(corpus, draw="random"), "draw"),
    ]:
        with pytest.raises(StateError, match=differs):
            sampler.load_state_dict(state)
    with pytest.raises(StateError, match="version 2; this sampler has 1"):
        sampler_of(corpus).load_state_dict({**state, "version": 2})
    with pytest.raises(StateError, match="no 'seed'"):
        sampler_of(corpus).load_state_dict({key: value for key, value in state.items() if key != "seed"})


@pytest.mark.parametrize("key", ["step", "rows", "weights", "credit"])
@pytest.mark.parametrize("value", [None, -1, 1, 2**64, 1.5, "x", [], [1, 2, 3], [-1, 2, 0], [2**64, 0, 0], {}])
def test_a_damaged_state_is_refused_and_changes_nothing(corpus: dp.Corpus, key: str, value: Any) -> None:
    sampler = sampler_of(corpus)
    for _ in range(5):
        next(sampler)
    state = sampler.state_dict()
    with pytest.raises(StateError, match="the saved"):
        sampler.load_state_dict({**state, key: value})
    assert sampler.state_dict() == state


# Buffers, files, threads


def test_next_into_fills_the_callers_buffer(corpus: dp.Corpus) -> None:
    buffer = np.full((12, 10), -1)
    batch = sampler_of(corpus).next_into(buffer)
    assert batch.tokens is buffer
    assert np.array_equal(buffer, next(sampler_of(corpus)).tokens)


@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros((12, 9), np.int64),
        np.zeros((12, 10), np.int32),
        np.zeros(120, np.int64),
        np.zeros((12, 20), np.int64)[:, ::2],
        np.broadcast_to(np.int64(0), (12, 10)),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(corpus: dp.Corpus, buffer: Any) -> None:
    sampler = sampler_of(corpus)
    with pytest.raises(ConfigError, match="buffer"):
        sampler.next_into(buffer)
    assert sampler.step == 0


def test_a_file_that_is_cut_short_costs_no_batch(corpus: dp.Corpus) -> None:
    sampler, undisturbed = sampler_of(corpus), sampler_of(corpus)
    next(sampler), next(undisturbed)
    path = corpus.shards()["web"][0].path
    good, written = path.read_bytes(), path.stat().st_mtime_ns
    os.truncate(path, 100)
    state = sampler.state_dict()
    with pytest.raises(CorpusError, match=r"web-train-00000\.bin: the file changed .* expected 2000 bytes, found 100"):
        next(sampler)
    assert sampler.state_dict() == state
    path.write_bytes(good)
    os.utime(path, ns=(written, written))
    for _ in range(10):
        assert np.array_equal(next(sampler).tokens, next(undisturbed).tokens)


def test_threads_share_a_stream_without_losing_a_batch(corpus: dp.Corpus) -> None:
    sampler, batches = sampler_of(corpus), []
    threads = [threading.Thread(target=lambda: batches.extend(next(sampler) for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batches.sort(key=lambda batch: batch.step)
    alone = sampler_of(corpus)
    for batch in batches:
        assert np.array_equal(batch.tokens, next(alone).tokens)


# Arguments


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"web": 1.0, "code": 0.0}, "no weight for domain 'wiki'"),
        ({**WEIGHTS, "books": 0.1}, "'books', which is no domain; the corpus has web, code, wiki"),
        ({**WEIGHTS, "code": float("nan")}, 'weight of domain "code" is NaN; weights must be finite and >= 0'),
        ({**WEIGHTS, "code": -0.1}, 'weight of domain "code" is -0.1'),
        ({**WEIGHTS, "code": float("inf")}, 'weight of domain "code" is inf'),
        ({**WEIGHTS, "code": "much"}, "weights must be numbers"),
        (dict.fromkeys(WEIGHTS, 0.0), "all weights are 0"),
    ],
)
def test_unusable_weights_are_refused_and_change_nothing(
    corpus: dp.Corpus, weights: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightError, match=message):
        sampler_of(corpus, weights=weights)
    sampler = sampler_of(corpus)
    before = sampler.state_dict()
    with pytest.raises(WeightError, match=message):
        sampler.set_weights(weights)
    assert sampler.state_dict() == before


def test_a_domain_shorter_than_a_row_cannot_have_a_weight(corpus: dp.Corpus) -> None:
    with pytest.raises(WeightError, match=r'"wiki" has a weight of 0.1.* but not one row'):
        sampler_of(corpus, seq_len=71)
    assert sampler_of(corpus, seq_len=71, weights={"web": 1, "code": 1, "wiki": 0}).epochs["wiki"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 0}, "seq_len is 0; it can be 1 to"),
        ({"seq_len": 4096.0}, "seq_len is 4096.0; it must be a whole number"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 10, "world_size": 4}, "batch_size is 10, not a multiple of world_size 4"),
        ({"world_size": 13}, "world_size is 13; it can be 1 to 12"),
        ({"rank": 2, "world_size": 2}, "rank is 2; it can be 0 to 1"),
        ({"rank": -1}, "rank is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 1844"),
        ({"draw": "greedy"}, "draw is 'greedy'"),
    ],
)
def test_unusable_arguments_are_refused(corpus: dp.Corpus, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(corpus, **changes)
