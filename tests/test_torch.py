from collections.abc import Callable

import pytest

import drpruning as dp
from drpruning.errors import ConfigError
from tests.conftest import MakeCorpus

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

MakeSampler = Callable[[], dp.DomainSampler]


@pytest.fixture
def make_sampler(make_corpus: MakeCorpus) -> MakeSampler:
    corpus = dp.Corpus.open(make_corpus({"web": [500], "code": [200]}))
    return lambda: dp.DomainSampler(corpus, {"web": 0.5, "code": 0.5}, seq_len=10, batch_size=4, seed=1)


def test_a_data_loader_yields_the_samplers_batches(make_sampler: MakeSampler) -> None:
    dataset = dp.torch.DomainDataset(make_sampler())
    assert isinstance(dataset, IterableDataset)
    plain = make_sampler()
    for item, _ in zip(DataLoader(dataset, batch_size=None), range(5), strict=False):
        batch = next(plain)
        assert {name: value.dtype for name, value in item.items()} == {
            "tokens": torch.int64,
            "domains": torch.int32,
            "rows": torch.int64,
        }
        assert torch.equal(item["tokens"], torch.from_numpy(batch.tokens))
        assert torch.equal(item["rows"], torch.from_numpy(batch.rows))


def test_the_state_resumes_the_stream(make_sampler: MakeSampler) -> None:
    first = dp.torch.DomainDataset(make_sampler())
    stream = iter(first)
    next(stream)
    second = dp.torch.DomainDataset(make_sampler())
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(stream)["tokens"], next(iter(second))["tokens"])


def test_a_torch_tensors_memory_can_be_the_buffer(make_sampler: MakeSampler) -> None:
    buffer = torch.empty(4, 10, dtype=torch.int64)
    make_sampler().next_into(buffer.numpy())
    assert torch.equal(buffer, torch.from_numpy(next(make_sampler()).tokens))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_are_refused(make_sampler: MakeSampler, num_workers: int) -> None:
    loader = DataLoader(dp.torch.DomainDataset(make_sampler()), batch_size=None, num_workers=num_workers)
    with pytest.raises(ConfigError, match=f"num_workers={num_workers}; each worker would draw from a copy"):
        next(iter(loader))
