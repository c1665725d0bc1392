"""Losses of documents, against the plain way to compute them."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from drpruning.comparison.results import DocumentSums
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError, SolverError
from drpruning.evaluation.document_losses import document_losses, row_document_losses, summed_nats
from drpruning.evaluation.held_out_text import (
    HeldOutText,
    documents_in_rows,
    held_out_documents,
    held_out_text,
    row_documents,
)
from drpruning.evaluation.windows import document_windows
from drpruning.hf.tokenizers import corpus_tokenizer
from drpruning.intervals import ratio_standard_error
from drpruning.prepare.tokenize.tokenizer import train_tokenizer
from drpruning.train.validation import Validator
from tests.evaluation.conftest import tiny_model
from tests.train.cuda_syncs import CudaSyncs


def random_text(*lengths: int) -> HeldOutText:
    generator = np.random.default_rng(3)
    documents = tuple(generator.integers(1, 280, length) for length in lengths)
    return HeldOutText(documents, np.array(lengths, dtype=np.int64), start=0)


@torch.no_grad()
def one_by_one(model: torch.nn.Module, ids: np.ndarray, *, seq_len: int, stride: int) -> float:
    """Nats of a document, each token by itself in the first window that reaches it."""
    whole = torch.from_numpy(np.concatenate([[0], ids]))
    total, begin = 0.0, 0
    for place in range(1, len(whole)):
        while place > begin + seq_len:
            begin += stride
        logits = model(input_ids=whole[None, begin:place]).logits[0, -1]
        total -= float(torch.log_softmax(logits.double(), 0)[whole[place]])
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2"])
@torch.no_grad()
def test_padded_batches_give_each_document_its_own_loss(family: str) -> None:
    model, text = tiny_model(family), random_text(1, 23, 7, 40)
    for stride in (16, 5):
        found = document_losses(model, text, seq_len=16, stride=stride, batch_size=3)
        expected = [one_by_one(model, ids, seq_len=16, stride=stride) for ids in text.documents]
        np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
        assert found.tokens.tolist() == [1, 23, 7, 40]


def test_a_token_counts_the_same_whatever_the_batch() -> None:
    model, text = tiny_model(), random_text(30, 3, 3, 3, 50)
    losses = [document_losses(model, text, seq_len=16, batch_size=rows).loss for rows in (1, 4, 100)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    nats = sum(one_by_one(model, ids, seq_len=16, stride=16) for ids in text.documents)
    assert losses[0] == pytest.approx(nats / 89, rel=1e-5)


def test_a_uniform_model_needs_log_v_for_each_token(corpus_folder: Path) -> None:
    corpus, model = Corpus.open(corpus_folder), tiny_model(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    text = held_out_text(corpus, "words")
    found = document_losses(model, text, seq_len=32)
    assert text.sizes is not None
    assert found.loss == pytest.approx(math.log(280), rel=1e-6)
    assert found.perplexity == pytest.approx(280, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(text.tokens * math.log2(280) / text.sizes.sum(), rel=1e-6)


def test_the_host_waits_once_for_all_batches() -> None:
    """Guard against a wait in each batch: for the scored targets, and for their losses."""
    model, text, waits = tiny_model(), random_text(30, 3, 3, 3, 50), CudaSyncs()
    windows = document_windows(text, 16)
    assert len(list(windows.batches(32))) > 2
    with waits.in_step():
        nats = summed_nats(model, windows, 5, 32, None)
    assert [each.partition(",)")[0] for each in waits.found] == ["step 1: cpu of (5", "step 1: numpy of (5"]
    assert nats.dtype == np.float64
    assert nats.sum() > 0


def test_packed_rows_give_the_losses_of_the_training_loop(corpus_folder: Path) -> None:
    corpus, model = Corpus.open(corpus_folder), tiny_model()
    validator = Validator.from_corpus(corpus, ["sums", "records"], seq_len=32, tokens=512, batch_size=4, split="test")
    for domain, loss in validator.losses(model).items():
        text = held_out_text(corpus, domain, max_tokens=512, row_len=32)
        assert document_losses(model, text, seq_len=32, packed=True).loss == pytest.approx(loss, rel=1e-6)


def test_documents_are_whole_and_sizes_are_those_of_their_text(corpus_folder: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    documents = held_out_documents(corpus, "sums")
    assert sum(map(len, documents)) == corpus.tokens("test")["sums"]
    assert len(documents) == sum(shard.documents or 0 for shard in corpus.shards("test")["sums"])
    assert all(ids[-1] == corpus.end_token and corpus.end_token not in ids[:-1] for ids in documents)
    text = held_out_text(corpus, "sums")
    tokenizer = corpus_tokenizer(corpus)
    texts = [tokenizer.decode(ids[:-1]) for ids in documents]
    assert text.sizes is not None
    assert text.sizes.tolist() == [len(item.encode()) for item in texts]
    assert all(" + " in item and item.endswith("\n") for item in texts)


def test_a_budget_takes_documents_from_all_held_out_text(corpus_folder: Path) -> None:
    """Once it took the first documents: of a domain in two files all were from the first one."""
    corpus = Corpus.open(corpus_folder)
    documents = [ids.tolist() for ids in held_out_documents(corpus, "words")]
    total = sum(map(len, documents))
    budgets = [5, total // 4, total // 2, total - 1]
    found = [[ids.tolist() for ids in held_out_documents(corpus, "words", max_tokens=most)] for most in budgets]
    for most, some in zip(budgets, found, strict=True):
        assert sum(map(len, some)) == most
        cut = [ids for ids in some if ids not in documents]
        assert len(cut) <= 1
        assert all(any(ids == whole[: len(ids)] for whole in documents) for ids in cut)
        where = [documents.index(ids) for ids in some if ids in documents]
        assert where == sorted(where)
    assert max(documents.index(ids) for ids in found[2] if ids in documents) >= len(documents) // 2
    for fewer, more in itertools.pairwise(found):
        assert all(any(ids == other[: len(ids)] for other in more) for ids in fewer)


def test_documents_in_rows_are_those_of_the_rows(corpus_folder: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    rows, whole = corpus.held_out_rows("words", 16, 16 * 12), held_out_documents(corpus, "words")
    numbers = row_documents(corpus, "words", 16, max_tokens=16 * 12)
    documents = documents_in_rows(corpus, "words", 16, max_tokens=16 * 12)
    assert np.array_equal(np.concatenate(documents), rows.ravel())
    assert len(documents) == len(np.unique(numbers))
    for number, ids in zip(np.unique(numbers), documents, strict=True):
        assert not Counter(ids.tolist()) - Counter(whole[number].tolist())
        assert corpus.end_token not in ids[:-1]


def test_groups_of_the_corpus_are_the_unit_of_standard_errors(
    corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the held-out documents be pairs of two: documents in windows and in rows have the same groups."""
    corpus = Corpus.open(corpus_folder)
    total = len(held_out_documents(corpus, "words"))
    stored = held_out_text(corpus, "words").groups
    assert stored is not None
    assert len(np.unique(stored)) == total
    monkeypatch.setattr(Corpus, "held_out_groups", lambda _corpus, _domain, _split: np.arange(total) // 2)
    model = tiny_model("llama")
    whole = document_losses(model, held_out_text(corpus, "words"), seq_len=16)
    assert whole.groups is not None
    assert whole.groups.tolist() == [number // 2 for number in range(total)]
    assert whole.num_groups == -(-total // 2)
    pairs = [np.add.reduceat(values, range(0, total, 2)).astype(values.dtype) for values in (whole.nats, whole.tokens)]
    assert whole.standard_error == pytest.approx(ratio_standard_error(*pairs))
    numbers = np.unique(row_documents(corpus, "words", 16, max_tokens=16 * 12)[:, 1:])
    rows = row_document_losses(model, corpus, "words", seq_len=16, max_tokens=16 * 12, batch_size=4)
    assert rows.groups is not None
    assert rows.groups.tolist() == (numbers // 2).tolist()
    part = held_out_text(corpus, "words", max_tokens=total)
    assert part.groups is not None
    assert len(part.groups) == len(part.documents) < total
    kept = DocumentSums.of(rows.tokens, rows.nats, rows.groups)
    assert kept.groups == rows.groups.tolist()


def test_text_is_read_again_for_another_tokenizer(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(corpus_folder)
    train_tokenizer(["sums of numbers 1 + 2 = 3\n"] * 9, 264, name="other").save(tmp_path)
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tmp_path)
    own, again = held_out_text(corpus, "sums"), held_out_text(corpus, "sums", tokenizer=other)
    assert own.sizes is not None
    assert again.sizes is not None
    assert own.sizes.tolist() == again.sizes.tolist()
    assert own.tokens < again.tokens  # it has fewer merges
    assert all(ids[-1] == other.eos_token_id for ids in again.documents)
    for mine, theirs in zip(own.documents, again.documents, strict=True):
        assert corpus_tokenizer(corpus).decode(mine[:-1]) == other.decode(theirs[:-1])


def test_what_cannot_be_measured_is_an_error(corpus_folder: Path, make_corpus) -> None:
    corpus = Corpus.open(corpus_folder)
    with pytest.raises(ConfigError, match="unknown domain 'sum'; the corpus has sums, words, records"):
        held_out_text(corpus, "sum")
    with pytest.raises(CorpusError, match="domain 'web' has no held-out text"):
        held_out_text(Corpus.open(make_corpus({"web": [100]}, held_out=0)), "web")
    broken = tiny_model()
    with torch.no_grad():
        broken.model.norm.weight[0] = math.nan
    with pytest.raises(SolverError, match="the loss of document 0 is not finite"):
        document_losses(broken, random_text(9), seq_len=8)
    with pytest.raises(SolverError, match="the loss of document 0 is not finite"):
        row_document_losses(broken, corpus, "words", seq_len=16, max_tokens=64, batch_size=4)
