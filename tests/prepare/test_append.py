"""Adding to a corpus: the rest does not change, no document comes twice, none changes its split."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, CorpusError
from drpruning.prepare import Holdout, Manifest, preparation, prepare
from tests.prepare.conftest import WORDS, contents, write_jsonl
from tests.prepare.test_preparation import splits

RULE = Holdout(fraction=0.2, min_tokens=0)


def test_a_domain_and_more_of_another_are_added(tmp_path: Path, tokenizer: str) -> None:
    out = tmp_path / "corpus"
    first = write_jsonl(tmp_path / "a.jsonl", WORDS[:40])
    prepare(out, {"web": first}, tokenizer, holdout=RULE)
    before = contents(out)
    more = write_jsonl(tmp_path / "b.jsonl", WORDS[30:])
    other = write_jsonl(tmp_path / "c.jsonl", [*(text.upper() for text in WORDS), WORDS[0]])
    manifest = prepare(out, {"web": more, "loud": other}, None, append=True)
    after = contents(out)
    assert {name for name in before if before[name] != after[name]} == {"corpus.json"}
    assert list(manifest.domains) == ["web", "loud"]
    assert (manifest.domains["web"].left_out, manifest.domains["loud"].left_out) == (
        {"duplicate": 10},
        {"duplicate": 1},
    )
    Corpus.open(out).verify()

    whole = tmp_path / "whole"
    prepare(whole, {"web": [first, more], "loud": other}, tokenizer, holdout=RULE)
    for name in ("web", "loud"):
        assert splits(out, name) == splits(whole, name)
        assert manifest.domains[name].text_bytes == Manifest.read(whole).domains[name].text_bytes


def test_the_same_again_adds_nothing(tmp_path: Path, tokenizer: str) -> None:
    out = tmp_path / "corpus"
    first = write_jsonl(tmp_path / "a.jsonl", WORDS[:40])
    more = write_jsonl(tmp_path / "b.jsonl", WORDS[40:])
    prepare(out, {"web": first}, tokenizer, holdout=RULE)
    prepare(out, {"web": more}, None, append=True)
    before = contents(out)
    prepare(out, {"web": more}, None, append=True)
    assert contents(out) == before


def test_an_addition_that_was_killed_before_its_end_changes_nothing(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    prepare(out, {"web": write_jsonl(tmp_path / "a.jsonl", WORDS[:40])}, tokenizer, holdout=RULE)
    shutil.copytree(out, tmp_path / "copy")
    more = write_jsonl(tmp_path / "b.jsonl", WORDS[40:])
    read = Manifest.read(out)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("drpruning.corpus.manifest.write_text", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(out, {"web": more}, None, append=True)
    assert Manifest.read(out) == read
    Corpus.open(out).verify()
    prepare(out, {"web": more}, None, append=True)
    prepare(tmp_path / "copy", {"web": more}, None, append=True)
    assert contents(out) == contents(tmp_path / "copy")


def test_what_cannot_be_added_to_is_refused(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    with pytest.raises(ConfigError, match="contains no corpus to append to"):
        prepare(tmp_path / "absent", {"web": source}, tokenizer, append=True)
    out = tmp_path / "corpus"
    prepare(out, {"web": source}, tokenizer, holdout=RULE)
    with pytest.raises(CorpusError, match=r"end with '.*', not with 'Ġ'"):
        prepare(out, {"web": source}, tokenizer, append=True, end_token="Ġ")  # noqa: S106
    next(out.glob("*.documents")).unlink()
    with pytest.raises(CorpusError, match="is missing: the digests"):
        prepare(out, {"web": source}, None, append=True)


def test_an_addition_that_ends_while_another_one_starts_is_kept(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    prepare(out, {"web": write_jsonl(tmp_path / "a.jsonl", WORDS[:20])}, tokenizer, holdout=RULE)
    first = {"web": write_jsonl(tmp_path / "b.jsonl", WORDS[20:40])}
    second = {"web": write_jsonl(tmp_path / "c.jsonl", WORDS[40:])}
    load = preparation.load_tokenizer

    def load_slowly(*arguments: str | None) -> object:
        monkeypatch.setattr(preparation, "load_tokenizer", load)
        prepare(out, first, None, append=True)
        return load(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "load_tokenizer", load_slowly)
    manifest = prepare(out, second, None, append=True)
    assert sorted(text for texts in splits(out, "web").values() for text in texts) == sorted(WORDS)
    assert len(manifest.prepared["added"]) == 2
    Corpus.open(out).verify()
