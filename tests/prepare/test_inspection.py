"""Statistics and warnings of a corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drpruning import _native
from drpruning.corpus.manifest import Manifest, Shard
from drpruning.errors import CorpusError
from drpruning.prepare import Holdout, prepare
from drpruning.prepare.inspection import (
    RecipeMixture,
    check_digests,
    document_lengths,
    inspect_corpus,
    static_mixtures,
)
from drpruning.prepare.output.megatron import MegatronWriter, index_bytes
from tests.prepare.conftest import WORDS, write_jsonl


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: str) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    domains = {
        "web": write_jsonl(folder / "a.jsonl", WORDS),
        "book": write_jsonl(folder / "b.jsonl", [" ".join(WORDS), *(f"page {number}" for number in range(9))]),
    }
    prepare(folder / "corpus", domains, tokenizer, holdout=Holdout(fraction=0.3, min_tokens=0))
    return folder / "corpus"


def test_lengths_are_those_of_the_documents(corpus: Path) -> None:
    manifest = Manifest.read(corpus)
    found = inspect_corpus(manifest).domains
    for name, domain in manifest.domains.items():
        assert sum(found[name].lengths) == domain.documents
        tokens = np.fromfile(domain.train[0].path, "<u2")
        lengths = np.diff(np.flatnonzero(tokens == manifest.tokenizer.eos_id), prepend=-1)
        assert (found[name].longest, found[name].median) == (lengths.max(), int(np.median(lengths)))
        assert found[name].lengths[3] == ((lengths >= 8) & (lengths < 16)).sum()


def test_a_document_of_several_sequences_is_one(tmp_path: Path) -> None:
    with MegatronWriter(tmp_path / "a", "uint16") as writer:
        for length in (5, 12, 1):
            writer.add(np.arange(length))
    (tmp_path / "a.idx").write_bytes(index_bytes([5, 12, 1], 2, 8, longest=5))
    shard = Shard(path=tmp_path / "a.bin", dtype="uint16", tokens=18, documents=3, bytes=36)
    assert document_lengths(shard).tolist() == [5, 12, 1]
    assert _native.verify_index(tmp_path / "a.bin") == ("uint16", 18, 3)


def test_properties_that_hurt_training_are_warned_of(corpus: Path) -> None:
    manifest = Manifest.read(corpus)
    web, book = manifest.domains["web"], manifest.domains["book"]
    mixture = RecipeMixture(ratio={"web": 0.5, "book": 0.25, "code": 0.25}, tokens=10 * web.tokens)
    found = inspect_corpus(manifest, mixture)
    assert found.domains["web"].epochs == 5
    text = "\n".join(found.warnings)
    assert "web would be read for 5.0 epochs" in text
    assert "% of book" in text
    assert "domains that the corpus lacks: code" in text
    bad = replace(manifest, domains={"web": replace(web, unknown_share=0.02, byte_share=0.5), "book": book})
    text = "\n".join(inspect_corpus(bad).warnings)
    assert "2.0% of the tokens of web are unknown" in text
    assert "50% of the tokens of web are parts of characters" in text
    assert "web" not in "\n".join(inspect_corpus(manifest).warnings)


def test_static_mixtures_have_shares_and_epochs(corpus: Path) -> None:
    manifest = Manifest.read(corpus)
    sizes = {name: domain.tokens for name, domain in manifest.domains.items()}
    found = static_mixtures(manifest)
    assert found.tokens == sum(sizes.values())
    assert list(found.shares) == ["natural", "uniform", "temperature:0.5", "unimax:4"]
    assert found.epochs["natural"] == pytest.approx({"web": 1.0, "book": 1.0})
    longer = static_mixtures(manifest, 3.5 * found.tokens)
    assert longer.shares["uniform"] == {"web": 0.5, "book": 0.5}
    for name, mixture in longer.shares.items():
        expected = {domain: share * longer.tokens / sizes[domain] for domain, share in mixture.items()}
        assert longer.epochs[name] == pytest.approx(expected)
    assert max(longer.epochs["unimax:4"].values()) <= 4 + 1e-9


def test_digests_are_verified(corpus: Path) -> None:
    check_digests(corpus)
    file = corpus / "web-train-00000.documents"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(CorpusError, match=r"web-train-00000.documents: expected content"):
            check_digests(corpus)
    finally:
        file.write_bytes(whole)
