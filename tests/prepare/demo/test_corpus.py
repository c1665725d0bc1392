"""The demo corpus: seven domains, the same bytes every time, nothing on both sides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError
from drpruning.prepare import HeldOut, Manifest, prepare_demo
from drpruning.prepare.demo.corpus import DOMAINS, _sample, collect, cut, demo_fingerprint
from drpruning.prepare.demo.installed_text import ROOTS, docstrings, versions
from drpruning.prepare.output.holdout import digest, positions

TINY = {"vocab_size": 400, "cap": 100_000, "held_out": HeldOut(fraction=0.2, tokens=4096, most=0.4)}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    prepare_demo(folder, **TINY)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents(folder: Path, split: str) -> list[bytes]:
    manifest = Manifest.read(folder)
    found = []
    for domain in manifest.domains.values():
        for shard in domain.train if split == "train" else domain.eval:
            tokens = np.fromfile(shard.path, "<u2")
            ends = np.flatnonzero(tokens == manifest.tokenizer.eos_id) + 1
            assert ends[-1] == len(tokens)
            found += [part.tobytes() for part in np.split(tokens, ends[:-1])]
    return found


def test_seven_domains_have_text_on_both_sides(demo: Path) -> None:
    corpus = Corpus.open(demo)
    corpus.verify()
    assert corpus.domains == ("python", "cpp", "math", "ml", "stubs", "readme", "licence") == tuple(DOMAINS)
    assert all(tokens > 10_000 for tokens in corpus.tokens().values())
    assert all(tokens > 1000 for tokens in corpus.tokens("eval").values())


def test_documents_are_counted_and_stand_on_one_side_only(demo: Path) -> None:
    train, held_out = documents(demo, "train"), documents(demo, "eval")
    domains = Manifest.read(demo).domains.values()
    assert len(train) == sum(domain.documents for domain in domains)
    assert len(held_out) == sum(domain.held_out_documents for domain in domains)
    assert len({*train, *held_out}) == len(train) + len(held_out)


def test_another_process_writes_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from drpruning.prepare import HeldOut, prepare_demo\n"
        f"prepare_demo(sys.argv[1], vocab_size=400, cap=100_000, held_out={TINY['held_out']!r})\n"
        "assert 'torch' not in sys.modules and 'numpy.ma' not in sys.modules and 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "again")], check=True, cwd=tmp_path)
    assert contents(tmp_path / "again") == contents(demo)


def test_again_is_nothing_to_do(demo: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}

    def watch(*_: object) -> None:
        raise AssertionError("text was read again")

    assert prepare_demo(demo, watch=watch, **TINY) == Manifest.read(demo)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before


def test_another_demo_in_its_place_is_refused(demo: Path) -> None:
    before = contents(demo)
    with pytest.raises(CorpusError, match="made from other text, options or versions"):
        prepare_demo(demo, **{**TINY, "cap": 90_000})
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
        prepare_demo(tmp_path / "corpus", vocab_size=257, cap=20_000)
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_knows_the_arguments() -> None:
    assert demo_fingerprint() == demo_fingerprint()
    assert len({demo_fingerprint(), demo_fingerprint(vocab_size=400), demo_fingerprint(cap=1)}) == 3


def test_installed_versions_cover_what_is_required() -> None:
    assert {name.lower() for name in ROOTS} <= set(versions())


def test_docstrings_are_in_the_order_of_the_source_and_nothing_is_run() -> None:
    source = (
        '"""A module."""\nraise SystemExit\n'
        'class A:\n    """A class."""\n    def f(self):\n        r"""A \\method."""\n'
    )
    assert docstrings(source, at_least=0) == "A module.\n\nA class.\n\nA \\method."
    assert docstrings("def broken(", at_least=0) == ""


def test_cut_loses_nothing() -> None:
    text = "".join(f"line {number} " + "x" * (number % 90) + "\n" for number in range(500)) + "y" * 9000
    pieces = list(cut(text, 1000))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1000


def test_the_tokenizer_learns_from_no_text_that_can_be_held_out() -> None:
    texts = [f"text {number}" for number in range(200)]
    for rule in (HeldOut(fraction=0.1, most=0.2), HeldOut(fraction=0.5, most=0.2)):
        learnt = positions([digest(text) for text in _sample(texts, rule)])
        assert learnt.min() >= max(rule.candidates())


def test_collect_stops_at_the_cap() -> None:
    texts = [f"text {letter} " * 50 for letter in "abcdefgh"]
    assert sum(map(len, collect(texts, 1000))) == 1000
