"""Overlap: shares of n-grams, compared with sets of tuples; the documents that a layout drops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drpruning.prepare import Holdout
from drpruning.prepare.dedup.overlap import NGRAM, ngram_hashes, overlap_shares
from drpruning.prepare.output.holdout import TEST, TRAIN, assign_splits, group_digest
from drpruning.prepare.pipeline.write import write_corpus
from drpruning.prepare.tokenize.tokenizer import load_tokenizer

texts = st.lists(st.lists(st.integers(0, 1), max_size=40), min_size=1, max_size=6)


def flat(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(document) for document in documents], np.int64)
    return np.array([token for document in documents for token in document], np.uint16), lengths


def ngrams(document: list[int]) -> list[tuple[int, ...]]:
    return [tuple(document[at : at + NGRAM]) for at in range(len(document) - NGRAM + 1)]


@given(texts, texts)
def test_shares_are_those_of_sets_of_tuples(own: list[list[int]], other: list[list[int]]) -> None:
    seen = {ngram for document in other for ngram in ngrams(document)}
    hashes, owners = ngram_hashes(*flat(other))
    assert len(set(hashes.tolist())) == len(seen)
    assert owners.tolist() == [number for number, document in enumerate(other) for _ in ngrams(document)]
    expected = [np.mean([ngram in seen for ngram in ngrams(document)] or [False]) for document in own]
    assert overlap_shares(*flat(own), np.sort(hashes)).tolist() == expected


def test_held_out_documents_that_repeat_training_text_are_dropped(tmp_path: Path, tokenizer: str) -> None:
    """Copies in other groups, one of them in another domain, with a new end that makes them no exact duplicates."""
    names = [f"group {number}" for number in range(200)]
    splits = assign_splits([group_digest(name) for name in names], 0.2)
    trained, tested = (
        [name for name, split in zip(names, splits, strict=True) if split == its] for its in (TRAIN, TEST)
    )

    def text(seed: str) -> str:
        return " ".join(str(number) for number in np.random.default_rng(list(seed.encode())).integers(0, 10**6, 40))

    web = [(text(name), name) for name in names]
    web += [(text(trained[0]) + " copied", tested[0]), (text(trained[1]) + " copied", trained[2])]
    half = text(trained[3])[:120] + text("new")  # about 120 of 400 characters
    code = [(text(name + " code"), name) for name in names]
    code += [(text(trained[4]) + " copied", tested[1]), (half, tested[2])]
    folder = tmp_path / "corpus"
    folder.mkdir()
    domains = {"web": web, "code": code}
    manifest = write_corpus(
        folder,
        {name: [text for text, _ in documents] for name, documents in domains.items()},
        load_tokenizer(tokenizer),
        holdout=Holdout(fraction=0.2, min_tokens=0, min_groups=0),
        prepared={},
        groups={name: [group for _, group in documents] for name, documents in domains.items()},
        max_overlap=0.5,
    )
    assert {name: domain.left_out for name, domain in manifest.domains.items()} == {
        "web": {"overlap": 1},
        "code": {"overlap": 1},
    }
    assert [domain.documents + domain.held_out_documents for domain in manifest.domains.values()] == [201, 201]
