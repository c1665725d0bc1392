"""The demo corpus: seven domains, the same bytes every time, nothing in two splits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from drpruning.corpus import Corpus, Split
from drpruning.corpus.manifest import SPLITS
from drpruning.errors import ConfigError, CorpusError
from drpruning.prepare import Holdout, Manifest, prepare_demo
from drpruning.prepare.dedup.overlap import NGRAM
from drpruning.prepare.demo.corpus import (
    DOMAINS,
    MAX_OVERLAP,
    DemoDocument,
    _tokenizer_sample,
    collect_documents,
    demo_fingerprint,
    drop_repeated_paragraphs,
    split_text,
)
from drpruning.prepare.demo.installed_text import ROOTS, docstrings, package_versions
from drpruning.prepare.output.holdout import group_digest, hash_positions
from drpruning.prepare.tokenize.tokenizer import END_TOKEN

TINY: dict[str, Any] = {
    "vocab_size": 400,
    "domain_characters": 100_000,
    "holdout": Holdout(fraction=0.4, min_tokens=4096, min_groups=5, max_fraction=0.6),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    prepare_demo(folder, **TINY)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents(folder: Path, split: Split) -> list[bytes]:
    manifest = Manifest.read(folder)
    found = []
    for domain in manifest.domains.values():
        for shard in domain.shards(split):
            tokens = np.fromfile(shard.path, "<u2")
            ends = np.flatnonzero(tokens == manifest.tokenizer.eos_id) + 1
            assert ends[-1] == len(tokens)
            found += [part.tobytes() for part in np.split(tokens, ends[:-1])]
    return found


def test_seven_domains_have_text_in_every_split(demo: Path) -> None:
    corpus = Corpus.open(demo)
    corpus.verify()
    assert corpus.domains == ("python", "cpp", "math", "ml", "stubs", "readme", "licence") == tuple(DOMAINS)
    assert all(tokens > 2000 for tokens in corpus.tokens().values())
    for domain in corpus.domains:  # a dozen files each: by chance validation or test may have none of them
        assert sum(corpus.tokens(split)[domain] for split in SPLITS[1:]) > 2000


def test_documents_are_counted_and_are_in_one_split_only(demo: Path) -> None:
    found = {split: documents(demo, split) for split in SPLITS}
    domains = Manifest.read(demo).domains.values()
    for split, its in found.items():
        assert len(its) == sum(domain.documents_of(split) for domain in domains)
    assert len({text for its in found.values() for text in its}) == sum(map(len, found.values()))


def test_the_documents_of_a_file_are_in_one_split(demo: Path) -> None:
    corpus = Corpus.open(demo)
    backend = Tokenizer.from_file(str(demo / "tokenizer" / "tokenizer.json"))
    for domain, texts in DOMAINS.items():
        owner = {document.text: document.group for document in collect_documents(texts(), TINY["domain_characters"])}
        in_split = {}
        for split in SPLITS:
            ids = corpus.read_tokens(domain, 0, corpus.tokens(split)[domain], split)
            its = backend.decode(ids.tolist(), skip_special_tokens=False).split(END_TOKEN)[:-1]
            in_split[split] = [owner[text] for text in its]
            if split != "train" and its:
                groups = corpus.held_out_groups(domain, split)
                assert groups is not None
                same = [group == in_split[split][0] for group in in_split[split]]
                assert (groups == groups[0]).tolist() == same
                assert len(set(groups)) == len(set(in_split[split]))
        assert len({group for its in in_split.values() for group in its}) == sum(len(set(i)) for i in in_split.values())


def test_no_held_out_document_is_mostly_in_training_text(demo: Path) -> None:
    corpus = Corpus.open(demo)
    everything = {}
    for split in SPLITS:
        ids = [corpus.read_tokens(domain, 0, corpus.tokens(split)[domain], split) for domain in corpus.domains]
        everything[split] = np.concatenate(ids)
    training = ngrams(everything["train"])
    for split in SPLITS[1:]:
        ends = np.flatnonzero(everything[split] == 0) + 1
        for document in np.split(everything[split], ends[:-1]):
            own = ngrams(document, unique=False)
            assert sum(ngram in training for ngram in own) <= MAX_OVERLAP * len(own)


def ngrams(tokens: NDArray[np.int64], *, unique: bool = True) -> Any:
    """Return the 13-grams within documents, whose end token is 0."""
    ids = tokens.tolist()
    found = (tuple(ids[at : at + NGRAM]) for at in range(len(ids) - NGRAM + 1))
    inside = (ngram for ngram in found if 0 not in ngram[:-1])
    return set(inside) if unique else list(inside)


def test_another_process_writes_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from drpruning.prepare import Holdout, prepare_demo\n"
        f"prepare_demo(sys.argv[1], vocab_size=400, domain_characters=100_000, holdout={TINY['holdout']!r})\n"
        "assert 'torch' not in sys.modules and 'numpy.ma' not in sys.modules and 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, cwd=tmp_path)
    assert contents(tmp_path / "again") == contents(demo)


def test_again_is_nothing_to_do(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}

    def watch(*_: object) -> None:
        raise AssertionError("text was read again")

    assert prepare_demo(demo, on_progress=watch, **TINY) == Manifest.read(demo)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


def test_another_demo_in_its_place_is_refused(demo: Path) -> None:
    before = contents(demo)
    with pytest.raises(CorpusError, match="a corpus of other text, options or versions"):
        prepare_demo(demo, **{**TINY, "domain_characters": 90_000})
    assert contents(demo) == before


def test_transformers_loads_the_tokenizer(demo: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo / "tokenizer")
    described = Manifest.read(demo).tokenizer
    assert (len(tokenizer), tokenizer.eos_token_id) == (described.vocab_size, described.eos_id) == (400, 0)
    text = "def mean(x):\n\treturn sum(x) / len(x)  # café, 中文, \x00"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_vocabulary_without_room_for_merges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size is 257"):
        prepare_demo(tmp_path / "corpus", vocab_size=257, domain_characters=20_000)
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_depends_on_the_arguments() -> None:
    assert demo_fingerprint() == demo_fingerprint()
    assert len({demo_fingerprint(), demo_fingerprint(vocab_size=400), demo_fingerprint(domain_characters=1)}) == 3


def test_installed_versions_cover_what_is_required() -> None:
    assert {name.lower() for name in ROOTS} <= set(package_versions())


def test_docstrings_are_in_the_order_of_the_source_and_nothing_is_run() -> None:
    source = (
        '"""A module."""\nraise SystemExit\n'
        'class A:\n    """A class."""\n    def f(self):\n        r"""A \\method."""\n'
    )
    assert docstrings(source, min_length=0) == "A module.\n\nA class.\n\nA \\method."
    assert docstrings("def broken(", min_length=0) == ""


def test_split_text_loses_nothing() -> None:
    text = "".join(f"line {number} " + "x" * (number % 90) + "\n" for number in range(500)) + "y" * 9000
    parts = list(split_text(text, 1000))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 1000


def test_the_tokenizer_learns_from_no_text_that_can_be_held_out() -> None:
    texts = [DemoDocument(f"text {number}", f"file {number // 2}") for number in range(400)]
    group_of = dict(texts)
    for holdout in (Holdout(fraction=0.1, max_fraction=0.2), Holdout(fraction=0.5, max_fraction=0.2)):
        sample = _tokenizer_sample(texts, holdout)
        positions = hash_positions([group_digest(group_of[text]) for text in sample])
        assert sample
        assert positions.min() >= max(holdout.candidates())


def test_collection_stops_at_the_limit() -> None:
    texts = [DemoDocument(f"text {letter} " * 50, letter) for letter in "abcdefgh"]
    assert sum(len(text) for text, _ in collect_documents(texts, 1000)) == 1000


NOTICE = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated"


def kept_texts(texts: list[str], **options: int) -> list[str]:
    documents = [DemoDocument(text, str(number)) for number, text in enumerate(texts)]
    kept = list(drop_repeated_paragraphs(documents, **options))
    assert [document.group for document in kept] == sorted({document.group for document in kept}, key=int)
    return [document.text for document in kept]


def test_a_paragraph_is_kept_at_its_first_place() -> None:
    texts = [f"Copyright one\n\n{NOTICE}\n\nEnd one.", f"Copyright two\n\n{NOTICE.upper()}\n\nEnd two."]
    kept = kept_texts(texts, min_characters=0)
    assert kept == [texts[0] + "\n", "Copyright two\n\nEnd two.\n"]


def test_short_paragraphs_may_repeat() -> None:
    text = "Returns\n\nReturns\n"
    assert kept_texts([text], min_characters=0) == [text]


def test_indentation_after_a_blank_line_is_kept() -> None:
    text = "def f():\n    a = 1\n\n    return a\n"
    assert kept_texts([text], min_characters=0) == [text]


def test_the_rest_of_a_document_can_be_too_little() -> None:
    assert kept_texts([NOTICE * 2, f"Mine\n\n{NOTICE * 2}"]) == [NOTICE * 2 + "\n"]


@given(st.lists(st.lists(st.sampled_from([NOTICE, NOTICE[::-1], NOTICE * 2, "short"]), min_size=1), min_size=1))
def test_long_paragraphs_occur_once_each(documents: list[list[str]]) -> None:
    kept = kept_texts(["\n\n".join(parts) for parts in documents], min_characters=0)
    found = [part.strip() for text in kept for part in text.split("\n\n")]
    long = [part for part in found if len(part) >= 100]
    assert len(long) == len(set(long))
    assert set(long) == {part for parts in documents for part in parts if part != "short"}
