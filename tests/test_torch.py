"""The sampler in torch's data loaders: one stream for any number of workers, no item lost or returned twice."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import pytest

import drpruning as dp
from drpruning.errors import ConfigError, StateError
from tests.conftest import MakeCorpus

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

pytestmark = [
    # Workers mostly sleep here, so more workers than cores do no harm.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata 0.11 with newer torch
]

MakeSampler = Callable[..., dp.DomainSampler]
Stateful = Callable[..., Any]
WEIGHTS = {"web": 0.7, "code": 0.3}


@pytest.fixture
def make_sampler(make_corpus: MakeCorpus) -> MakeSampler:
    corpus = dp.Corpus.open(make_corpus({"web": [500], "code": [200]}))
    return lambda **changes: dp.DomainSampler(
        corpus, changes.pop("weights", WEIGHTS), seq_len=10, batch_size=4, seed=1, **changes
    )


def steps(items: Iterable[dict[str, Any]]) -> list[int]:
    return [item["step"] for item in items]


def rows(items: Iterable[dict[str, Any]]) -> list[list[tuple[int, int]]]:
    return [list(zip(item["domains"].tolist(), item["rows"].tolist(), strict=True)) for item in items]


def stream(sampler: dp.DomainSampler, count: int) -> list[list[tuple[int, int]]]:
    """Return the rows of the sampler alone. With 50 rows of web and 20 of code an epoch ends within 20 batches."""
    batches = islice(sampler, count)
    return [list(zip(batch.domains.tolist(), batch.rows.tolist(), strict=True)) for batch in batches]


def test_a_data_loader_yields_the_samplers_batches(make_sampler: MakeSampler) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    assert isinstance(dataset, IterableDataset)
    plain = make_sampler()
    for step, item in enumerate(islice(DataLoader(dataset, batch_size=None), 5)):
        batch = next(plain)
        assert item["step"] == step == batch.step
        for name, dtype in {"tokens": torch.int64, "domains": torch.int32, "rows": torch.int64}.items():
            assert item[name].dtype == dtype
            assert torch.equal(item[name], torch.from_numpy(getattr(batch, name)))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_any_number_of_workers_gives_the_same_stream(make_sampler: MakeSampler, num_workers: int) -> None:
    sampler = make_sampler()
    sampler.skip(2)
    loader = DataLoader(dp.torch.DomainDataset(sampler), batch_size=None, num_workers=num_workers)
    items = list(islice(loader, 30))
    assert steps(items) == list(range(2, 32))
    assert rows(items) == stream(make_sampler(), 32)[2:]


def test_each_rank_gets_its_rows_from_any_workers(make_sampler: MakeSampler) -> None:
    whole = stream(make_sampler(), 6)
    for rank, num_workers in enumerate((0, 2)):
        dataset = dp.torch.DomainDataset(make_sampler(rank=rank, world_size=2))
        part = rows(islice(DataLoader(dataset, batch_size=None, num_workers=num_workers), 6))
        assert part == [batch[2 * rank : 2 * rank + 2] for batch in whole]


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_prefetch_and_int32_tokens_do_not_change_the_stream(
    make_sampler: MakeSampler, num_workers: int, prefetch: int
) -> None:
    dataset = dp.torch.DomainDataset(make_sampler(prefetch=prefetch, dtype="int32"))
    items = list(islice(DataLoader(dataset, batch_size=None, num_workers=num_workers), 6))
    assert all(item["tokens"].dtype == torch.int32 for item in items)
    for item, batch in zip(items, islice(make_sampler(), 6), strict=True):
        assert np.array_equal(item["tokens"].numpy(), batch.tokens)


def test_a_dataset_can_be_sent_to_another_process(make_sampler: MakeSampler) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    next(iter(dataset))
    sent = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
    assert rows(islice(sent, 3)) == stream(make_sampler(), 4)[1:]


# States


def test_the_state_resumes_the_stream(make_sampler: MakeSampler) -> None:
    first = dp.torch.DomainDataset(make_sampler())
    items = iter(first)
    next(items)
    second = dp.torch.DomainDataset(make_sampler())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert torch.equal(next(items)["tokens"], next(iter(second))["tokens"])


@pytest.mark.parametrize("given", [0, 1, 5])
def test_a_plain_loader_with_workers_resumes_after_the_last_item(make_sampler: MakeSampler, given: int) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    items = list(islice(DataLoader(dataset, batch_size=None, num_workers=2), given + 1))
    state = dataset.state_at(items[-1]["step"] + 1)
    other = dp.torch.DomainDataset(make_sampler())
    other.load_state_dict(state)
    assert rows(items + list(islice(other, 20))) == stream(make_sampler(), given + 21)


def test_state_at_a_later_step_leaves_the_sampler_unchanged(make_sampler: MakeSampler) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    next(iter(dataset))
    ahead = dataset.state_at(7)
    assert (ahead["step"], dataset.sampler.step) == (7, 1)
    assert rows(islice(dataset, 8)) == stream(make_sampler(), 9)[1:]
    with pytest.raises(StateError, match="cannot return the state at step 7: the sampler is already at step 9"):
        dataset.state_at(7)


@pytest.fixture
def stateful() -> Callable[..., Any]:
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("given", [0, 1, 5])
def test_a_stateful_loader_loses_nothing_it_had_in_flight(
    make_sampler: MakeSampler, stateful: Stateful, given: int, num_workers: int, every: int
) -> None:
    def loader() -> Any:
        dataset = dp.torch.DomainDataset(make_sampler())
        return stateful(dataset, batch_size=None, num_workers=num_workers, snapshot_every_n_steps=every)

    expected = stream(make_sampler(), given + 4)
    first = loader()
    items = iter(first)
    assert rows(islice(items, given)) == expected[:given]
    state = copy.deepcopy(first.state_dict())
    assert rows(islice(items, 4)) == expected[given:]
    second = loader()
    second.load_state_dict(state)
    assert rows(islice(second, 4)) == expected[given:]


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_loaders_state_resumes_with_another_number_of_workers(
    make_sampler: MakeSampler, stateful: Stateful, before: int, after: int, every: int
) -> None:
    loader = stateful(
        dp.torch.DomainDataset(make_sampler()), batch_size=None, num_workers=before, snapshot_every_n_steps=every
    )
    items = list(islice(loader, 7))
    dataset = dp.torch.DomainDataset(make_sampler())
    dataset.load_state_dict(loader.state_dict())
    items += islice(stateful(dataset, batch_size=None, num_workers=after), 7)
    assert rows(items) == stream(make_sampler(), 14)


def test_the_saved_weights_are_those_in_use(make_sampler: MakeSampler, stateful: Stateful) -> None:
    sampler = make_sampler(weights={"web": 0, "code": 1})
    loader = stateful(dp.torch.DomainDataset(sampler), batch_size=None, num_workers=2)
    next(iter(loader))
    dataset = dp.torch.DomainDataset(make_sampler())
    dataset.load_state_dict(loader.state_dict())
    assert dataset.sampler.weights == {"web": 0, "code": 1}


def test_a_loader_with_another_number_of_workers_raises_with_a_next_step(
    make_sampler: MakeSampler, stateful: Stateful
) -> None:
    loader = stateful(dp.torch.DomainDataset(make_sampler()), batch_size=None, num_workers=2)
    next(iter(loader))
    for num_workers in (1, 3):
        other = stateful(dp.torch.DomainDataset(make_sampler()), batch_size=None, num_workers=num_workers)
        other.load_state_dict(loader.state_dict())
        with pytest.raises(StateError, match=r"by a loader with 2 workers; .*\n.*to dataset.load_state_dict"):
            next(iter(other))


def test_a_dict_without_sampler_state_raises(make_sampler: MakeSampler) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    with pytest.raises(StateError, match="no sampler state found"):
        dataset.load_state_dict({"_snapshot": {"worker_0": 1}})
    state = dp.torch.DomainDataset(make_sampler()).state_dict()
    with pytest.raises(StateError, match="has seed 9"):
        dataset.load_state_dict({**state, "seed": 9})


# Limits of copies in workers


@pytest.mark.parametrize("persistent", [False, True])
def test_a_second_iteration_over_workers_raises(make_sampler: MakeSampler, persistent: bool) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=persistent)
    assert steps(islice(loader, 2)) == [0, 1]
    with pytest.raises(StateError, match="a new iteration is unavailable with DataLoader workers"):
        next(iter(loader))
    with pytest.raises(StateError, match=r"dataset.state_dict\(\) is unavailable with DataLoader workers"):
        dataset.state_dict()
    with pytest.raises(StateError, match="a new iteration is unavailable"):
        iter(dataset)


def test_weights_do_not_reach_workers(make_sampler: MakeSampler) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    dataset.set_weights({"web": 1, "code": 0})
    items = list(islice(DataLoader(dataset, batch_size=None, num_workers=1), 2))
    assert all(item["domains"].sum() == 0 for item in items)
    with pytest.raises(ConfigError, match="does not reach DataLoader workers"):
        dataset.set_weights({"web": 0, "code": 1})
    dataset.load_state_dict(dataset.state_at(items[-1]["step"] + 1))
    dataset.set_weights({"web": 0, "code": 1})
    item = next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))
    assert (item["step"], item["domains"].tolist()) == (2, [1, 1, 1, 1])


# On a device


def test_a_torch_tensors_memory_can_be_the_buffer(make_sampler: MakeSampler) -> None:
    buffer = torch.empty(4, 10, dtype=torch.int64)
    make_sampler().next_into(buffer.numpy())
    assert torch.equal(buffer, torch.from_numpy(next(make_sampler()).tokens))


def test_no_batch_is_in_flight_between_items(make_sampler: MakeSampler) -> None:
    sampler, plain = make_sampler(), make_sampler()
    items = dp.torch.to_device(sampler, "cpu")
    kept = [next(items) for _ in range(5)]
    assert rows(kept) == stream(plain, 5)
    assert sampler.state_dict() == plain.state_dict()
    sampler.set_weights({"web": 0, "code": 1})
    assert next(items)["domains"].tolist() == [1, 1, 1, 1]
    with pytest.raises(ConfigError, match="buffers is 0"):
        dp.torch.to_device(sampler, "cpu", buffers=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_items_on_a_busy_gpu_equal_the_samplers(make_sampler: MakeSampler, buffers: int, prefetch: int) -> None:
    plain = make_sampler()
    busy = torch.ones(2048, 2048, device="cuda")
    sums = []
    for item in islice(dp.torch.to_device(make_sampler(prefetch=prefetch), "cuda", buffers=buffers), 50):
        busy = busy @ busy / 2048  # kernels queue up, so items are read long after they were returned
        sums.append((item["tokens"].sum(), item["domains"].clone(), item["rows"].clone()))
        del item
    for (total, domains, numbers), batch in zip(sums, islice(plain, 50), strict=True):
        assert total.item() == batch.tokens.sum()
        assert np.array_equal(domains.cpu().numpy(), batch.domains)
        assert np.array_equal(numbers.cpu().numpy(), batch.rows)


def test_a_damaged_step_is_a_state_error(make_sampler: MakeSampler) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    with pytest.raises(StateError, match="no sampler state found"):
        dataset.load_state_dict({**dataset.state_dict(), "step": "three"})
