"""From files to a corpus: sides, duplicates, publication, errors."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drpruning import _native
from drpruning.corpus import Corpus, Split
from drpruning.corpus.manifest import SPLITS
from drpruning.errors import ConfigError, CorpusError
from drpruning.prepare import DomainText, FieldMapping, Holdout, Manifest, prepare
from drpruning.prepare.output.holdout import assign_splits, document_digest
from drpruning.prepare.pipeline.tokenize_all import TokenizeProgress
from drpruning.prepare.readers import divide_files
from drpruning.prepare.tokenize.encoder import Encoder
from drpruning.prepare.tokenize.tokenizer import (
    END_TOKEN,
    DocumentTokenizer,
    load_tokenizer,
    make_saver,
    train_tokenizer,
)
from tests.prepare.conftest import WORDS, contents, write_jsonl

PARTS = {"web": slice(40), "code": slice(30, None)}
RULE = Holdout(fraction=0.2, min_tokens=0)


def splits(folder: Path, domain: str) -> dict[Split, list[str]]:
    """Return the documents of each split, decoded."""
    manifest, corpus = Manifest.read(folder), Corpus.open(folder)
    assert manifest.tokenizer.file is not None
    backend = tokenizers.Tokenizer.from_file(str(manifest.tokenizer.file))
    decoded: dict[Split, list[str]] = {}
    for split in SPLITS:
        count = corpus.tokens(split)[domain]
        ids = corpus.read_rows(domain, [0], count, split)[0].tolist() if count else []
        decoded[split] = backend.decode(ids, skip_special_tokens=False).split(END_TOKEN)[:-1]
    return decoded


def test_documents_are_split_by_their_hash_in_order(tmp_path: Path, tokenizer: str) -> None:
    prepare(tmp_path / "corpus", {"web": write_jsonl(tmp_path / "a.jsonl", WORDS)}, tokenizer, holdout=RULE)
    Corpus.open(tmp_path / "corpus").verify()
    expected = assign_splits([document_digest(text) for text in WORDS], 0.2)
    found = splits(tmp_path / "corpus", "web")
    for number, split in enumerate(SPLITS):
        assert found[split] == [text for text, its in zip(WORDS, expected, strict=True) if its == number]
    domain = Manifest.read(tmp_path / "corpus").domains["web"]
    assert domain.documents == len(found["train"])
    assert domain.held_out_documents == len(found["validation"]) + len(found["test"])
    groups = Corpus.open(tmp_path / "corpus").held_out_groups("web")
    assert groups is not None
    assert sorted(groups) == list(range(len(found["test"])))  # each document is its own group
    assert domain.text_bytes == sum(len(text) for text in WORDS)
    assert domain.bytes_per_token is not None
    assert 1 < domain.bytes_per_token < 20


def test_documents_with_one_value_of_the_group_field_are_in_one_split(tmp_path: Path, tokenizer: str) -> None:
    """Check lines and table rows; entries without the field are their own groups."""
    entries = [{"text": text, "meta": {"repo": f"repo {number % 20}"}} for number, text in enumerate(WORDS)]
    entries += [{"text": text.upper()} for text in WORDS[:10]]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (tmp_path / "values.json").write_text(json.dumps([entry | {"text": f"{entry['text']} again"} for entry in entries]))
    fields = FieldMapping(group="meta.repo")
    sources = {"lines": tmp_path / "lines.jsonl", "values": tmp_path / "values.json"}
    texts = {name: DomainText(paths=[path], fields=fields) for name, path in sources.items()}
    prepare(tmp_path / "corpus", texts, tokenizer, holdout=Holdout(fraction=0.4, min_tokens=0, max_fraction=0.4))
    corpus = Corpus.open(tmp_path / "corpus")
    corpus.verify()
    repo = {entry["text"]: entry.get("meta", {}).get("repo", entry["text"]) for entry in entries}
    by_domain = {name: splits(tmp_path / "corpus", name) for name in sources}
    of_repo: dict[str, set[Split]] = {}
    for found in by_domain.values():
        for split, its in found.items():
            for text in its:
                of_repo.setdefault(repo[text.removesuffix(" again")], set()).add(split)
    assert all(len(of_repo[f"repo {number}"]) == 1 for number in range(20))  # in both domains
    assert {split for found in of_repo.values() for split in found} >= {"train", "test"}
    for name, found in by_domain.items():
        for split in SPLITS[1:]:
            groups = corpus.held_out_groups(name, split)
            assert groups is not None
            own = [repo[text.removesuffix(" again")] for text in found[corpus.held_out_source(name, split)]]
            assert (groups[:, None] == groups).tolist() == [[one == other for other in own] for one in own]


def test_a_domain_with_one_held_out_split_is_divided_by_rows(tmp_path: Path, tokenizer: str) -> None:
    texts = [text for text, its in zip(WORDS, assign_splits(map_digests(WORDS), 0.2), strict=True) if its != 1]
    manifest = prepare(tmp_path / "corpus", {"web": write_jsonl(tmp_path / "a.jsonl", texts)}, tokenizer, holdout=RULE)
    assert manifest.domains["web"].divides_held_out
    assert manifest.domains["web"].validation == []
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.divides_held_out("web")
    assert corpus.held_out_source("web", "validation") == "test"
    rows = [corpus.held_out_row_numbers("web", 8, None, split) for split in SPLITS[1:]]
    assert sorted(np.concatenate(rows)) == list(range(corpus.num_rows(8, "test")["web"]))


def map_digests(texts: list[str]) -> list[bytes]:
    return [document_digest(text) for text in texts]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=20), st.randoms())
def test_data_added_later_moves_no_document(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: str, added: list[str], random: object
) -> None:
    folder = tmp_path_factory.mktemp("added")
    more = [*WORDS, *added]
    random.shuffle(more)  # type: ignore[attr-defined]
    for name, texts in (("before", WORDS), ("after", more)):
        prepare(folder / name, {"web": write_jsonl(folder / f"{name}.jsonl", texts)}, tokenizer, holdout=RULE)
    before, after = splits(folder / "before", "web"), splits(folder / "after", "web")
    assert all(set(before[split]) <= set(after[split]) for split in SPLITS)


def test_equal_documents_are_kept_once_in_the_whole_corpus(tmp_path: Path, tokenizer: str) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", [*WORDS[:40], WORDS[3], "", "  \n"])
    second = write_jsonl(tmp_path / "b.jsonl", WORDS[30:])
    manifest = prepare(tmp_path / "corpus", {"a": first, "b": second}, tokenizer, holdout=RULE)
    assert manifest.domains["a"].left_out == {"duplicate": 1, "empty": 2}
    assert manifest.domains["b"].left_out == {"duplicate": 10}
    kept = [text for name in ("a", "b") for found in splits(tmp_path / "corpus", name).values() for text in found]
    assert sorted(kept) == sorted(WORDS)


def test_invalid_utf8_is_counted_in_the_corpus(tmp_path: Path, tokenizer: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", WORDS)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    manifest = prepare(tmp_path / "corpus", {"web": [tmp_path / "a.jsonl", tmp_path / "b.txt"]}, tokenizer)
    assert manifest.domains["web"].left_out == {"invalid_utf8": 1}


def test_nothing_held_out_is_possible(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text("one document")
    manifest = prepare(tmp_path / "corpus", {"web": tmp_path / "a.txt"}, tokenizer, holdout=Holdout(fraction=0))
    assert (manifest.domains["web"].documents, manifest.domains["web"].held_out_documents) == (1, 0)
    Corpus.open(tmp_path / "corpus").verify()


def test_again_is_nothing_to_do_and_other_text_is_refused(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    out = tmp_path / "corpus"
    first = prepare(out, {"web": source}, tokenizer, holdout=RULE)
    stamp = (out / "corpus.json").stat().st_mtime_ns
    assert prepare(out, {"web": source}, tokenizer, holdout=RULE) == first
    assert (out / "corpus.json").stat().st_mtime_ns == stamp
    write_jsonl(source, WORDS[:-1])
    with pytest.raises(CorpusError, match="a corpus of other text, options or versions"):
        prepare(out, {"web": source}, tokenizer, holdout=RULE)
    assert Manifest.read(out) == first


def test_an_interrupted_preparation_resumes(tmp_path: Path, tokenizer: str) -> None:
    sources = {name: write_jsonl(tmp_path / f"{name}.jsonl", WORDS[part]) for name, part in PARTS.items()}
    prepare(tmp_path / "good", sources, tokenizer, holdout=RULE)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "corpus", sources, tokenizer, holdout=RULE, on_progress=interrupt)
    assert not (tmp_path / "corpus").exists()
    steps: list[TokenizeProgress] = []
    prepare(tmp_path / "corpus", sources, tokenizer, holdout=RULE, on_progress=steps.append)
    assert [step.cached for step in steps] == [True, False]
    assert contents(tmp_path / "corpus") == contents(tmp_path / "good")
    assert not (tmp_path / ".corpus.work").exists()


def test_what_a_process_killed_while_writing_shards_left_is_cleared(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    prepare(tmp_path / "good", {"web": source}, tokenizer)
    shutil.copytree(tmp_path / "good", tmp_path / ".corpus.partial")
    (tmp_path / ".corpus.partial" / "old-train-00000.bin").write_bytes(b"half")
    (tmp_path / ".corpus.partial" / "drpruning-partial").touch()
    prepare(tmp_path / "corpus", {"web": source}, tokenizer)
    assert not (tmp_path / ".corpus.partial").exists()
    assert contents(tmp_path / "corpus") == contents(tmp_path / "good")


def test_two_processes_do_not_write_one_corpus(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    (tmp_path / ".corpus.work" / "blocks").mkdir(parents=True)
    (tmp_path / ".corpus.work" / "blocks" / "theirs").write_bytes(b"in use")
    lock = os.open(tmp_path / ".corpus.work", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CorpusError, match="another process is preparing"):
            prepare(tmp_path / "corpus", {"web": source}, tokenizer)
    finally:
        os.close(lock)
    assert (tmp_path / ".corpus.work" / "blocks" / "theirs").read_bytes() == b"in use"


def test_too_many_input_errors_are_an_error_and_fewer_are_counted(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    source.write_text(source.read_text() + '{broken\n{"body": 1}\n')
    with pytest.raises(CorpusError, match=r"a.jsonl, line 61: expected a JSON object.*\nFix it, or skip"):
        prepare(tmp_path / "corpus", {"web": source}, tokenizer, holdout=RULE)
    with pytest.raises(CorpusError, match="2 input errors, more than --max-errors 1"):
        prepare(tmp_path / "corpus", {"web": source}, tokenizer, holdout=RULE, max_errors=1)
    steps: list[TokenizeProgress] = []
    manifest = prepare(
        tmp_path / "corpus", {"web": source}, tokenizer, holdout=RULE, max_errors=2, on_progress=steps.append
    )
    assert [step.cached for step in steps] == [True]
    assert [str(error) for error in steps[0].errors][1].startswith(f"{source}, line 62: expected text under")
    assert manifest.domains["web"].left_out == {"broken_json": 1, "missing_text": 1}
    assert manifest.domains["web"].documents + manifest.domains["web"].held_out_documents == len(WORDS)


def test_shards_end_where_they_are_full(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divide_files, "__defaults__", (300,))
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    one = prepare(tmp_path / "one", {"web": source}, tokenizer, holdout=RULE)
    many = prepare(tmp_path / "many", {"web": source}, tokenizer, holdout=RULE, shard_tokens=50)
    assert len(one.domains["web"].train) == 1
    assert len(many.domains["web"].train) > 3
    assert splits(tmp_path / "one", "web") == splits(tmp_path / "many", "web")
    Corpus.open(tmp_path / "many").verify()


def test_a_folder_that_is_not_a_corpus_is_left_alone(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    with pytest.raises(CorpusError, match="is not empty"):
        prepare(tmp_path, {"web": source}, tokenizer)
    with pytest.raises(CorpusError, match="is a file"):
        prepare(source, {"web": source}, tokenizer)
    assert list(tmp_path.iterdir()) == [source]


def test_a_domain_must_have_text_on_both_sides(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(CorpusError, match="domain 'web' has no text\nLeft out: 1 empty"):
        prepare(tmp_path / "corpus", {"web": tmp_path / "empty.txt"}, tokenizer)
    (tmp_path / "one.txt").write_text("b")  # its position is 0.58
    for holdout in (Holdout(fraction=0.2), Holdout(fraction=0.9)):
        with pytest.raises(CorpusError, match="domain 'web' has 1 document; expected 2 or more, for training and hold"):
            prepare(tmp_path / "corpus", {"web": tmp_path / "one.txt"}, tokenizer, holdout=holdout)
    (tmp_path / "two.txt").write_text("c")
    texts = {"web": [tmp_path / "one.txt", tmp_path / "two.txt"]}
    with pytest.raises(CorpusError, match=r"domain 'web': with .* held out, 2 documents leave no held-out text"):
        prepare(tmp_path / "corpus", texts, tokenizer, holdout=Holdout(fraction=1e-6))


def test_domains_are_named_so_that_files_can_be(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    for name in ("", "../up", "a b", ".hidden"):
        with pytest.raises(ConfigError, match="domain name"):
            prepare(tmp_path / "corpus", {name: source}, tokenizer)
    with pytest.raises(ConfigError, match="'web' and 'Web' differ in case only"):
        prepare(tmp_path / "corpus", {"web": source, "Web": source}, tokenizer)
    with pytest.raises(ConfigError, match="at least one domain"):
        prepare(tmp_path / "corpus", {}, tokenizer)


def test_a_tokenizer_must_exist_and_have_an_end_token(tmp_path: Path, tokenizer: str) -> None:
    shutil.copytree(tokenizer, tmp_path / "endless")
    config = json.loads((tmp_path / "endless" / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (tmp_path / "endless" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="has no end token"):
        load_tokenizer(str(tmp_path / "endless"))
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ConfigError, match="cannot load tokenizer"):
        load_tokenizer(str(tmp_path / "hollow"))
    with pytest.raises(ConfigError, match="does not exist"):
        load_tokenizer(str(tmp_path / "absent.json"))
    (tmp_path / "endless" / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"expected a file called tokenizer.*\n*Pass (a|the) folder"):
        load_tokenizer(str(tmp_path / "endless" / "other.json"))
    with pytest.raises(ConfigError, match="its end token '</s>' is not in its vocabulary"):
        DocumentTokenizer("ours", tokenizers.Tokenizer.from_file(f"{tokenizer}/tokenizer.json"), "</s>", print)


def test_a_tokenizer_can_be_given_by_folder_or_file(tokenizer: str) -> None:
    by_folder, by_file = load_tokenizer(tokenizer), load_tokenizer(f"{tokenizer}/tokenizer.json")
    assert by_folder.sha256 == by_file.sha256
    assert [ids.tolist() for ids in by_folder.encode(["a", ""])] == [ids.tolist() for ids in by_file.encode(["a", ""])]
    assert by_folder.encode([""])[0].tolist() == [by_folder.end_id] == [0]


def test_text_is_never_cut_padded_or_read_as_the_end_token(tmp_path: Path) -> None:
    trained = train_tokenizer(WORDS, 300)
    trained.backend.enable_truncation(4)
    trained.backend.enable_padding(length=64)
    trained.save(tmp_path)
    found = load_tokenizer(str(tmp_path))
    text = f"before {END_TOKEN} after"
    ids = found.encode([text, "x"])
    assert [part.tolist().count(found.end_id) for part in ids] == [1, 1]
    assert [len(part) for part in ids][1] == 2
    assert found.backend.decode(ids[0].tolist()) == text


def test_ids_that_two_bytes_cannot_hold_take_four(tmp_path: Path) -> None:
    vocabulary = {END_TOKEN: 0} | {f"w{number}": number for number in range(1, 70_000)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=END_TOKEN))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    make_saver(backend, END_TOKEN)(tmp_path / "large")
    source = write_jsonl(tmp_path / "a.jsonl", ["w65535 w65536 w69999"])
    manifest = prepare(tmp_path / "corpus", {"web": source}, str(tmp_path / "large"), holdout=Holdout(fraction=0))
    (shard,) = manifest.domains["web"].train
    assert _native.read_index(shard.path) == ("int32", 4, 1)
    assert Corpus.open(tmp_path / "corpus").read_rows("web", [0], 4)[0].tolist() == [65535, 65536, 69999, 0]


def test_ids_above_the_vocabulary_are_an_error(tokenizer: str) -> None:
    largest = max(load_tokenizer(tokenizer).encode(WORDS[:1])[0].tolist())
    encoder = Encoder.load(Path(tokenizer), 0, largest)
    with pytest.raises(CorpusError, match=f"made the id {largest}; its vocabulary has ids below {largest}"):
        encoder.encode_batch(WORDS[:1])
    with pytest.raises(CorpusError, match=f"made the id {largest}"):
        list(encoder.encode_long(iter(WORDS[:1])))


def test_a_planted_work_folder_is_refused(tmp_path: Path, tokenizer: str) -> None:
    write_jsonl(tmp_path / "web.jsonl", WORDS)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").touch()
    (tmp_path / ".corpus.work").symlink_to(outside)
    with pytest.raises(CorpusError, match=r"\.corpus\.work is a link"):
        prepare(tmp_path / "corpus", {"web": str(tmp_path / "web.jsonl")}, tokenizer)
    assert [path.name for path in outside.iterdir()] == ["mine"]


def test_options_out_of_range_are_errors(tmp_path: Path, tokenizer: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    for options, message in (
        ({"utf8": "replacement"}, "utf8 is 'replacement'; expected replace, skip, fail"),
        ({"shard_tokens": 0}, "shard_tokens is 0; expected at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(tmp_path / "corpus", {"web": source}, tokenizer, **options)  # type: ignore[arg-type]
    for name in ("w" * 201, 5):
        with pytest.raises(ConfigError, match="domain name"):
            prepare(tmp_path / "corpus", {name: source}, tokenizer)  # type: ignore[dict-item]
    for limits in ({"max_fraction": 2.0}, {"min_tokens": -1}, {"min_groups": -1}):
        with pytest.raises(ConfigError, match="holdout"):
            Holdout(**limits)  # type: ignore[arg-type]
    for text in ((), "text"):
        with pytest.raises(ConfigError, match="expected one or more fields"):
            FieldMapping(text=text)  # type: ignore[arg-type]


def test_a_tokenizer_can_be_a_path(tmp_path: Path, tokenizer: str) -> None:
    source = {"web": write_jsonl(tmp_path / "a.jsonl", WORDS)}
    prepare(tmp_path / "path", source, Path(tokenizer), holdout=RULE)
    prepare(tmp_path / "text", source, tokenizer, holdout=RULE)
    assert contents(tmp_path / "path") == contents(tmp_path / "text")


def test_the_current_folder_is_no_new_folder(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", WORDS)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(CorpusError, match=r"\. ends with no name"):
        prepare(".", {"web": source}, tokenizer, holdout=RULE)
    assert list(tmp_path.glob(".*")) == []


def test_a_broken_link_in_a_folder_is_an_input_error(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "text").mkdir()
    write_jsonl(tmp_path / "text" / "a.jsonl", WORDS)
    for name in ("b.jsonl", "c.txt", "d.parquet", "e.json", "f.arrow"):
        (tmp_path / "text" / name).symlink_to(tmp_path / "removed")
    with pytest.raises(CorpusError, match=r"b\.jsonl: "):
        prepare(tmp_path / "corpus", {"web": tmp_path / "text"}, tokenizer, holdout=RULE)
    manifest = prepare(tmp_path / "corpus", {"web": tmp_path / "text"}, tokenizer, holdout=RULE, max_errors=5)
    assert manifest.domains["web"].left_out == {"unreadable_file": 5}


def test_objects_on_one_line_of_a_json_file(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.json").write_text("".join(json.dumps({"text": text}) for text in WORDS))
    prepare(tmp_path / "json", {"web": tmp_path / "a.json"}, tokenizer, holdout=RULE)
    prepare(tmp_path / "lines", {"web": write_jsonl(tmp_path / "a.jsonl", WORDS)}, tokenizer, holdout=RULE)
    assert splits(tmp_path / "json", "web") == splits(tmp_path / "lines", "web")


def test_a_table_without_rows_is_an_empty_file(tmp_path: Path, tokenizer: str) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "empty.parquet")
    sources = [write_jsonl(tmp_path / "a.jsonl", WORDS), tmp_path / "empty.parquet"]
    manifest = prepare(tmp_path / "corpus", {"web": sources}, tokenizer, holdout=RULE)
    assert manifest.domains["web"].left_out == {"empty_file": 1}
