import concurrent.futures
import itertools
import json
import math
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches.hardening.state_mutations import mutate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import drpruning as dp
from drpruning.errors import ConfigError, CorpusError, StateError, WeightError
from tests import sampler_reference
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


def test_a_balanced_mixture_is_exact_to_the_row(corpus: dp.Corpus) -> None:
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


# The stream equals that of the NumPy reference


@pytest.mark.parametrize("case", GOLDEN["shuffles"], ids=lambda case: f"{case['rows']} rows")
def test_golden_shuffles_equal_the_numpy_reference(case: dict[str, Any]) -> None:
    expected = [sampler_reference.row(case["seed"], case["domain"], case["rows"], p) for p in case["positions"]]
    assert expected == case["expected"]


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
def test_any_stream_equals_the_numpy_reference(
    corpus: dp.Corpus, seed: int, draw: Any, history: list[list[float]]
) -> None:
    named = [dict(zip(corpus.domains, weights, strict=True)) for weights in history]
    sampler = sampler_of(corpus, weights=named[0], seed=seed, draw=draw)
    reference = sampler_reference.Sampler([80, 20, 7], history[0], 12, seed, draw)
    for number, weights in enumerate(history):
        if number:
            sampler.set_weights(named[number])
            reference.set_weights(weights)
        for _ in range(3):
            assert rows_of(next(sampler)) == reference.next_batch()


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
def test_a_state_resumes_exactly_on_any_number_of_ranks(
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
    with pytest.raises(StateError, match="version 1; this sampler has 2"):
        sampler_of(corpus).load_state_dict({**state, "version": 1})
    with pytest.raises(StateError, match="no key 'seed'"):
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


@pytest.mark.parametrize("state", [None, 5, 0.5, "state", [], [1], True])
def test_what_is_no_state_is_refused(corpus: dp.Corpus, state: Any) -> None:
    with pytest.raises(StateError, match=r"the saved sampler state is .*; expected a mapping"):
        sampler_of(corpus).load_state_dict(state)


def test_a_mutated_state_is_refused_or_draws_on(corpus: dp.Corpus) -> None:
    sampler, generator, refused = sampler_of(corpus), random.Random(5), 0
    for _ in range(5):
        next(sampler)
    state = sampler.state_dict()
    for _ in range(200):
        try:
            sampler.load_state_dict(mutate(state, generator))
            next(sampler)
            assert math.fsum(sampler.weights.values()) == pytest.approx(1)
        except StateError:
            refused += 1
    assert 100 < refused <= 200


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


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_truncated_file_loses_no_batch(corpus: dp.Corpus, prefetch: int) -> None:
    expected = [batch.tokens for batch in itertools.islice(sampler_of(corpus), 20)]
    sampler = sampler_of(corpus, prefetch=prefetch)
    path = corpus.shards()["web"][0].path
    good, written = path.read_bytes(), path.stat().st_mtime_ns
    for step in range(5):
        assert np.array_equal(next(sampler).tokens, expected[step])
    os.truncate(path, 100)
    error, state = None, sampler.state_dict()
    while error is None:  # batches prefetched before the truncation come first
        state = sampler.state_dict()
        try:
            assert next(sampler).step < 5 + prefetch
        except CorpusError as raised:
            error = raised
    assert "web-train-00000.bin: the file changed" in str(error)
    assert sampler.state_dict() == state
    path.write_bytes(good)
    os.utime(path, ns=(written, written))
    for step in range(state["step"], 20):
        assert np.array_equal(next(sampler).tokens, expected[step])


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


def test_threads_with_samplers_of_one_corpus_read_what_one_thread_reads(corpus: dp.Corpus) -> None:
    def read(prefetch: int) -> list[list[int]]:
        sampler = sampler_of(corpus, prefetch=prefetch)
        return [next(sampler).tokens.ravel().tolist() for _ in range(30)]

    alone = read(0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(found == alone for found in pool.map(read, (0, 0, 2, 2)))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_threads_that_also_change_and_save_a_sampler_get_each_batch_once(corpus: dp.Corpus, prefetch: int) -> None:
    sampler = sampler_of(corpus, prefetch=prefetch)

    def take(thread: int) -> list[int]:
        steps = []
        for number in range(40):
            steps.append(next(sampler).step)
            if number % 4 == thread:
                sampler.set_weights(WEIGHTS)
                assert sampler.state_dict()["step"] > steps[-1]
        return steps

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(take, range(4)))
    assert all(steps == sorted(steps) for steps in taken)
    assert sorted(itertools.chain(*taken)) == list(range(160))
    assert sampler.step == 160


def test_a_buffer_of_two_threads_is_an_error_or_holds_one_batch(corpus: dp.Corpus) -> None:
    sampler, buffer = sampler_of(corpus, batch_size=120, seq_len=50), np.empty((120, 50), np.int64)

    def fill(_: int) -> int:
        try:
            return len({sampler.next_into(buffer).step for _ in range(20)})
        except ConfigError as error:
            assert "one buffer for each thread" in str(error)  # noqa: PT017 - it may or may not be raised
            return 0

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(number in (0, 20) for number in pool.map(fill, range(4)))


# Skip and peek


@pytest.mark.parametrize("draw", ["balanced", "random"])
def test_skipping_is_drawing(corpus: dp.Corpus, draw: Any) -> None:
    drawing, skipping = sampler_of(corpus, draw=draw), sampler_of(corpus, draw=draw)
    for steps in (0, 1, 1000):
        planned = skipping.peek(skipping.step + steps)
        skipping.skip(steps)
        for _ in range(steps):
            next(drawing)
        assert skipping.state_dict() == drawing.state_dict()
        batch = next(drawing)
        assert rows_of(batch) == rows_of(next(skipping))
        assert planned.step == batch.step
        assert np.array_equal(planned.domains, batch.domains)
        assert np.array_equal(planned.rows, batch.rows)


def test_peek_and_skip_reach_any_step(corpus: dp.Corpus) -> None:
    sampler = sampler_of(corpus)
    first = rows_of(next(sampler))
    far = 10**17
    planned = sampler.peek(far)
    sampler.skip(far - 1)
    batch = next(sampler)
    assert (batch.step, rows_of(batch)) == (far, list(zip(planned.domains, planned.rows, strict=True)))
    again = sampler.peek(0)
    assert first == list(zip(again.domains, again.rows, strict=True))
    with pytest.raises(StateError, match=r"cannot skip .* fewer than 2\^63 rows"):
        sampler.skip(2**62)
    assert sampler.step == far + 1


def test_peek_before_a_change_of_weights_raises(corpus: dp.Corpus) -> None:
    sampler = sampler_of(corpus)
    sampler.skip(10)
    sampler.set_weights({**WEIGHTS, "web": 1})
    assert sampler.peek(10).step == 10
    with pytest.raises(StateError, match=r"batch 9 is unavailable: weights were set .* at batch 10"):
        sampler.peek(9)


def test_another_number_of_ranks_resumes_the_same_global_order(corpus: dp.Corpus) -> None:
    """Saved by 8 ranks, loaded by 6: a batch of 24 goes through both."""
    eight = [sampler_of(corpus, batch_size=24, rank=rank, world_size=8) for rank in range(8)]
    six = [sampler_of(corpus, batch_size=24, rank=rank, world_size=6) for rank in range(6)]
    whole = sampler_of(corpus, batch_size=24)
    for _ in range(30):
        expected = rows_of(next(whole))
        assert [row for rank in eight for row in rows_of(next(rank))] == expected
    for number, rank in enumerate(six):
        rank.load_state_dict(eight[number].state_dict())
    for _ in range(30):
        expected = rows_of(next(whole))
        assert [row for rank in six for row in rows_of(next(rank))] == expected
    with pytest.raises(ConfigError, match="batch_size is 24; expected a multiple of world_size, 5"):
        sampler_of(corpus, batch_size=24, world_size=5)


# Prefetch


@pytest.mark.parametrize("prefetch", [1, 2, 7])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_prefetch_does_not_change_the_stream(corpus: dp.Corpus, prefetch: int, dtype: Any) -> None:
    plain, ahead = sampler_of(corpus, prefetch=0), sampler_of(corpus, prefetch=prefetch, dtype=dtype)
    saved = plain.state_dict()
    buffer = np.empty((12, 10), dtype)
    for step in range(40):
        if step % 7 == 3:
            for sampler in (plain, ahead):
                sampler.set_weights({"web": step, "code": 20, "wiki": 1})
        if step == 20:
            for sampler in (plain, ahead):
                sampler.load_state_dict(saved)
        expected = next(plain)
        batch = ahead.next_into(buffer) if step % 3 else next(ahead)
        assert batch.tokens.dtype == dtype
        assert rows_of(batch) == rows_of(expected)
        assert np.array_equal(batch.tokens, expected.tokens)
        assert ahead.state_dict() == plain.state_dict()
        assert (ahead.step, ahead.tokens, ahead.weights) == (plain.step, plain.tokens, plain.weights)


def test_a_forked_process_resumes_the_stream(corpus: dp.Corpus) -> None:
    samplers = [sampler_of(corpus, prefetch=prefetch) for prefetch in (0, 1, 4)]
    for sampler in samplers:
        next(sampler)
    expected = [rows_of(batch) for batch in itertools.islice(sampler_of(corpus), 1, 8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of os.fork in a process with threads, from Python 3.12
        child = os.fork()
    if child == 0:
        fine = all([rows_of(next(sampler)) for _ in expected] == expected for sampler in samplers)
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    for sampler in samplers:
        assert [rows_of(next(sampler)) for _ in expected] == expected


def test_a_spawned_process_resumes_the_stream(corpus: dp.Corpus) -> None:
    sampler = sampler_of(corpus, world_size=2, rank=1, dtype="int32")
    next(sampler)
    sampler.set_weights({"web": 0.2, "code": 0.3, "wiki": 0.5})
    copy = pickle.loads(pickle.dumps(sampler))  # noqa: S301
    assert copy.state_dict() == sampler.state_dict()
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(next, sampler).result()
    for here in (next(copy), next(sampler)):
        assert rows_of(here) == rows_of(there)
        assert here.tokens.dtype == there.tokens.dtype == np.int32
        assert np.array_equal(here.tokens, there.tokens)


def test_a_process_exits_while_threads_prefetch(corpus: dp.Corpus) -> None:
    program = f"""
import drpruning as dp, gc
corpus = dp.Corpus.open({str(corpus.folder)!r})
make = lambda: dp.DomainSampler(corpus, {WEIGHTS}, seq_len=10, batch_size=12, prefetch=100)
kept = [make() for _ in range(4)]
for sampler in kept: next(sampler)
ring = [make()]
next(ring[0])
ring.append(ring)
del ring
gc.collect()
raise SystemExit(7)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=600, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (7, "")


# Documents


@settings(max_examples=60, deadline=None)
@given(
    seq_len=st.integers(1, 150),
    rows=st.integers(1, 4),
    vocabulary=st.integers(1, 60),
    dtype=st.sampled_from([np.int32, np.int64]),
)
def test_documents_equal_the_numpy_reference(seq_len: int, rows: int, vocabulary: int, dtype: Any) -> None:
    tokens = np.random.default_rng(seq_len).integers(0, vocabulary, (rows, seq_len)).astype(dtype)
    found = dp.document_boundaries(tokens, end_token=0)
    ends, positions = sampler_reference.documents(tokens, 0)
    assert (found.cu_seqlens.dtype, found.position_ids.dtype) == (np.int32, np.int64)
    assert np.array_equal(found.cu_seqlens, ends)
    assert np.array_equal(found.position_ids, positions)
    assert found.max_seqlen == np.diff(ends).max()


def test_a_batch_has_the_end_token_of_its_corpus(corpus: dp.Corpus) -> None:
    batch = next(sampler_of(corpus))
    assert batch.end_token == corpus.end_token == 0
    found = batch.document_boundaries()
    assert np.array_equal(found.cu_seqlens, sampler_reference.documents(batch.tokens, 0)[0])
    paths = {name: [shard.path for shard in shards] for name, shards in corpus.shards().items()}
    loose = next(sampler_of(dp.Corpus(paths)))
    with pytest.raises(ConfigError, match="the corpus defines no end token"):
        loose.document_boundaries()
    assert next(sampler_of(dp.Corpus(paths, end_token=3))).end_token == 3
    with pytest.raises(ConfigError, match="end_token is 50; expected 0 to 49"):
        dp.Corpus(paths, vocab_size=50, end_token=50)


@pytest.mark.parametrize(
    ("tokens", "end_token", "message"),
    [
        (np.zeros(4, np.int64), 0, r"int64 \(4,\); expected int32 or int64"),
        (np.zeros((2, 2), np.uint16), 0, r"uint16 \(2, 2\); expected"),
        (np.zeros((2, 0), np.int64), 0, "rows of 1 token or more"),
        (np.broadcast_to(np.int32(0), (2**16, 2**15)), 0, "2147483647 in all"),
        (np.zeros((2, 2), np.int32), -1, "end_token is -1"),
    ],
)
def test_rows_without_documents_are_refused(tokens: Any, end_token: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dp.document_boundaries(tokens, end_token)


# Arguments


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"web": 1.0, "code": 0.0}, "domain 'wiki' has no weight"),
        ({**WEIGHTS, "books": 0.1}, "unknown domain 'books'; the corpus has web, code, wiki"),
        ({**WEIGHTS, "code": float("nan")}, 'weight of domain "code" is NaN; weights must be finite and >= 0'),
        ({**WEIGHTS, "code": -0.1}, 'weight of domain "code" is -0.1'),
        ({**WEIGHTS, "code": float("inf")}, 'weight of domain "code" is inf'),
        ({**WEIGHTS, "code": "much"}, "a weight is not a number"),
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
        ({"seq_len": 0}, "seq_len is 0; expected 1 to"),
        ({"seq_len": 4096.0}, "seq_len is 4096.0; expected an integer"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 10, "world_size": 4}, "batch_size is 10; expected a multiple of world_size, 4"),
        ({"world_size": 13}, "world_size is 13; expected 1 to 12"),
        ({"rank": 2, "world_size": 2}, "rank is 2; expected 0 to 1"),
        ({"rank": -1}, "rank is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 1844"),
        ({"draw": "greedy"}, "draw is 'greedy'"),
        ({"dtype": "uint16"}, "dtype is 'uint16'"),
        ({"prefetch": -1}, "prefetch is -1"),
    ],
)
def test_unusable_arguments_are_refused(corpus: dp.Corpus, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampler_of(corpus, **changes)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_beyond_the_memory_is_an_error(tmp_path: Path, prefetch: int) -> None:
    np.zeros(2**20, np.uint8).tofile(tmp_path / "a.bin")
    corpus = dp.Corpus({"a": tmp_path / "a.bin"}, dtype="uint8")
    # 2^47 bytes: more than the addresses of a process
    sampler = dp.DomainSampler(corpus, {"a": 1}, seq_len=2**20, batch_size=2**24, prefetch=prefetch)
    with pytest.raises(ConfigError, match=r"no memory for a batch of 140,737,488,355,328 bytes"):
        next(sampler)


def test_arguments_of_another_type_are_errors(corpus: dp.Corpus) -> None:
    with pytest.raises(ConfigError, match="corpus is 'folder'; expected a Corpus"):
        dp.DomainSampler("folder", {}, seq_len=1, batch_size=1)  # type: ignore[arg-type]
    with pytest.raises(WeightError, match="weights is None; expected a mapping"):
        sampler_of(corpus, weights=None)
    with pytest.raises(WeightError, match="a weight is not a number"):
        sampler_of(corpus, weights={**WEIGHTS, "web": 10**400})
    sampler = sampler_of(corpus)
    with pytest.raises(ConfigError, match="buffer is a list"):
        sampler.next_into([])  # type: ignore[arg-type]
    misaligned = np.frombuffer(bytearray(12 * 10 * 8 + 1), np.uint8)[1:].view(np.int64).reshape(12, 10)
    with pytest.raises(ConfigError, match="not aligned"):
        sampler.next_into(misaligned)
    with pytest.raises(StateError, match="has seed"):
        sampler.load_state_dict({**sampler.state_dict(), "seed": np.array([17, 17])})
