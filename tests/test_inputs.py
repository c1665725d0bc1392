"""Files from outside: regular, bounded, parsed in linear time, with typed errors in printable text."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

import drpruning as dp
from drpruning import inputs
from drpruning.cli import main
from drpruning.errors import ConfigError, CorpusError, DrpruningError, LossTableError, StateError, WeightError
from drpruning.inputs import open_file, parse_json, parse_yaml, read_file, repeated, shown
from drpruning.mixture.bounds import Bounds
from tests.conftest import MakeCorpus
from tests.limited import run_limited

NESTED_ANCHORS = "name:\n" + "".join(
    f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(10)
)
"""Ten levels of nine aliases: 9^10 values in 500 bytes."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 2001-99-99", "expected a date, found '2001-99-99' at line 1, column 7"),
        ("a: !!int x", "expected an integer, found 'x'"),
        ("a: !!float x", "expected a number"),
        ("a: !!bool x", "expected a boolean"),
        ("a: !!timestamp x", "expected a date"),
        ("a: " + "9" * 5000, "expected an integer"),
        ("a: 0x" + "f" * 5000, "expected an integer"),
        ("a: " + ":".join(["1"] * 100_000), "expected an integer"),
        ("[" * 3000, "nesting"),
        ("[" * 200 + "]" * 200, "expected at most 100 levels of nesting"),
        ("a: &x [*x]", r"the alias \*x is inside the value that it names"),
        ("a: *x", "undefined alias"),
        (NESTED_ANCHORS, "expected at most 100,000 values"),
        (
            "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{f'*a{n - 1}, ' * 9}]}}\n" for n in range(1, 9)),
            "100,000",
        ),
        ("x" * (1 << 20) + "y", "expected at most 1,048,576 characters"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("\0", "control characters are not allowed"),
        (b"\xff\xfe", "can't decode byte 0xff"),
    ],
    ids=range(18),
)
@pytest.mark.parametrize("libyaml", [True, False])
def test_yaml_that_is_none_is_a_config_error(
    text: str | bytes, message: str, libyaml: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not libyaml:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
        message = message.replace("nesting", "nest|nesting") if message == "nesting" else message
    inputs._loader.cache_clear()
    try:
        with pytest.raises(ConfigError, match=message if libyaml else "is not YAML"):
            parse_yaml(text, "r.yaml")
    finally:
        inputs._loader.cache_clear()


def test_aliases_that_unfold_to_few_values_are_read() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: *x}", "r.yaml") == {"a": {"b": 1}, "c": {"b": 1, "d": {"b": 1}}}


def test_a_value_of_any_size_is_shown_in_few_characters() -> None:
    shared: object = "x"
    for _ in range(40):
        shared = [shared] * 9
    endless: list[object] = []
    endless.append(endless)
    for value in (
        shared,
        endless,
        10**10_000,
        "\x1b[31m" * 1000,
        {"a" * 10_000: b"x" * 10_000},
        ValueError("\ud800\n" * 99),
    ):
        assert len(shown(value)) <= 80
        assert shown(value).isprintable()


def test_a_repeated_name_is_found_by_hashing_each_name_once() -> None:
    hashed = 0

    class Name(str):
        def __hash__(self) -> int:
            nonlocal hashed
            hashed += 1
            return super().__hash__()

    names: list[str] = [Name(f"n{number}") for number in range(1000)]
    assert repeated([*names, names[-1]]) == "n999"
    assert hashed <= 3 * len(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        (b"[" * 100_000, "recursion"),
        (b"9" * 5000, "4300"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"\xff", "can't decode byte"),
    ],
)
def test_json_that_is_none_is_a_typed_error(content: bytes, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        parse_json(content, "corpus.json", CorpusError)


HANGS = """
import json
from drpruning import Corpus, read_losses
from drpruning.errors import DrpruningError
from drpruning.recipes import load_recipe

def attempt(read, name, content):
    path = Path(sys.argv[1]) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    try:
        print("read", read(path))
    except DrpruningError as error:
        print(str(error)[-200:].replace("\\n", " "))

keys = "".join(f'"k{n}": 0, ' for n in range(200_000))
attempt(lambda path: Corpus.open(path.parent), "c/corpus.json", "{" + keys + '"k199999": 1}')
attempt(lambda path: Corpus({"web": path.parent}), "d/index.json", "{" + keys + '"k199999": 1}')
names = ",".join(f"n{n}" for n in range(140_000))
attempt(read_losses, "t.csv", f"step,{names},n139999\\n")
shard = {
    "format": "mds", "version": 2, "column_names": ["tokens"],
    "column_encodings": ["ndarray:uint16:" + "9," * 4_000_000 + "9"], "column_sizes": [2], "samples": 1,
    "raw_data": {"basename": "x", "bytes": 9, "hashes": {}}, "zip_data": None,
}
attempt(lambda path: Corpus({"web": path.parent}), "e/index.json", json.dumps({"version": 2, "shards": [shard]}))
attempt(lambda path: load_recipe(str(path)), "r.yaml", sys.argv[2])
attempt(read_losses, "t.jsonl", '{"' + "k" * 200_000 + '": {' + ", ".join(f'"{n}": 1' for n in range(50_000)) + "}}")
"""


def test_what_grew_with_the_square_of_a_file_ends_in_a_minute_of_processor_time(tmp_path: Path) -> None:
    lines = run_limited("", HANGS, tmp_path, NESTED_ANCHORS, memory=1 << 30).splitlines()
    expected = [
        "'k199999' occurs twice",
        "'k199999' occurs twice",
        "two columns called 'n139999'",
        "axes are 1 or longer",
    ]
    expected += ["expected at most 100,000 values", "has a key of more than 255 characters"]
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert text in line


WAITS = """
import os
from drpruning import Corpus
from drpruning.corpus.manifest import read_corpus_json
from drpruning.errors import DrpruningError
from drpruning.prepare.readers.source_files import source_files
from drpruning.recipes import load_recipe

folder = Path(sys.argv[1])
for name in ("a.bin", "corpus.json", "r.yaml", "a.txt", "index/index.json", "m/index.json"):
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
for read in (
    lambda: Corpus({"web": folder / "a.bin"}, dtype="uint16"),
    lambda: read_corpus_json(folder),
    lambda: load_recipe(str(folder / "r.yaml")),
    lambda: source_files([folder / "a.txt"]),
    lambda: Corpus({"web": folder / "index"}),
    lambda: source_files([folder / "m" / "index.json"]),
):
    try:
        print(read())
    except DrpruningError as error:
        print(error.message)
"""


def test_a_pipe_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    lines = run_limited("", WAITS, tmp_path).splitlines()
    assert len(lines) == 6
    for line in lines:
        assert "expected a file, found" in line


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    short = Path(os.path.relpath(tmp_path)) if len(str(tmp_path)) > 80 else tmp_path
    server.bind(str(short / "s"))
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for path, message in [
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "s", "an invalid one"),
        (tmp_path / "a", "an invalid one"),
        (tmp_path / ("x" * 300), "an invalid one"),
        (tmp_path / "x" / "y", "found none"),
        (Path("a\0b"), "an invalid one"),
        (Path("a\ud800"), "an invalid one"),
    ]:
        with pytest.raises(LossTableError, match=message):
            open_file(path, LossTableError)
    server.close()
    (tmp_path / "large").write_bytes(bytes(100))
    with pytest.raises(CorpusError, match="expected at most 99 bytes"):
        read_file(tmp_path / "large", CorpusError, 99)


def test_too_many_open_files_are_a_disk_error_with_the_name_of_the_file(tmp_path: Path) -> None:
    code = """
import resource
from drpruning import Corpus
from drpruning.errors import DiskError
from drpruning.prepare.readers import divide_files, read_blocks
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.source_files import source_files
from drpruning.recipes import load_recipe
folder = Path(sys.argv[1])
(folder / "a.bin").write_bytes(bytes(64))
(folder / "a.yaml").write_text("name: x")
(folder / "a.jsonl").write_text("{}")
units = list(divide_files(source_files([folder / "a.jsonl"])))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for read in (
    lambda: Corpus({"web": folder / "a.bin"}, dtype="uint16"),
    lambda: load_recipe(str(folder / "a.yaml")),
    lambda: list(read_blocks(units[0], FieldMapping())),
):
    try:
        print(read())
    except DiskError as error:
        print(error.message, error.next_step)
"""
    lines = run_limited("", code, tmp_path).splitlines()
    for line, name in zip(lines, ["a.bin", "a.yaml", "a.jsonl"], strict=True):
        assert f"{name}: Too many open files" in line
        assert "ulimit -n" in line


def test_invalid_paths_of_corpora_are_typed(tmp_path: Path) -> None:
    (tmp_path / "a.bin").symlink_to("b.bin")
    (tmp_path / "b.bin").symlink_to("a.bin")
    for path in ("a\ud800", "a\0b", tmp_path / ("x" * 300), tmp_path / "a.bin"):
        with pytest.raises(CorpusError, match="invalid"):
            dp.Corpus({"web": path}, dtype="uint16")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dp.Corpus("a.bin"), ConfigError, "domains is 'a.bin'; expected a mapping"),
        (lambda: dp.document_boundaries([[1, 2, 0]], end_token=0), ConfigError, "tokens is a list; expected a NumPy"),
        (lambda: dp.document_boundaries(np.ones((1, 2), int), "0"), ConfigError, "end_token is '0'; ids are"),
        (lambda: dp.DRPruning().init(["a"], {"a": 1.0}, reference_loss=2.0), WeightError, "reference_loss is 2.0; exp"),
        (lambda: dp.DRPruning().init(["a", "b"], None), WeightError, "reference_ratio is None; expected a mapping"),
        (
            lambda: dp.DRPruning().init(["a", "b"], [0.5, 0.5]),
            WeightError,
            r"reference_ratio is \[0.5, 0.5\]; expected",
        ),
        (lambda: dp.fit_scaling_law("a", [1], [1]), WeightError, r"params is 'a'; expected numbers \[n\]"),
        (lambda: dp.LearningRates("a", [1]), WeightError, r"tokens is 'a'; expected numbers \[m\]"),
        (lambda: Bounds(max_share=0.6).nearest({"a": 1}, ["a", "b"]), ConfigError, "mixture is {'a': 1}; expected 2"),
        (
            lambda: Bounds(max_share=0.6).nearest([1.0], ["a", "b"]),
            ConfigError,
            r"mixture is \[1.0\]; expected 2 numbers",
        ),
    ],
)
def test_arguments_of_another_type_are_typed_errors_that_name_them(
    call: Callable[[], object], error: type[DrpruningError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_sampler_state_that_is_no_mapping_is_a_state_error(make_corpus: MakeCorpus) -> None:
    sampler = dp.DomainSampler(
        dp.Corpus.open(make_corpus({"web": [64]})), seq_len=8, batch_size=2, weights={"web": 1.0}, seed=1
    )
    for state in (5, None, [], "x"):
        with pytest.raises(StateError):
            sampler.load_state_dict(state)  # type: ignore[arg-type]


RED = "\x1b[31m\x07\u202e"
"""Terminal codes: colour, bell, right to left."""


def write_recipe(folder: Path) -> list[str]:
    (folder / "r.yaml").write_text(json.dumps({"name": RED}))
    return ["train", str(folder / "r.yaml")]


def write_prepare_recipe(folder: Path) -> list[str]:
    (folder / "p.yaml").write_text(json.dumps({"domains": {"web": "a.txt"}, RED: 1}))
    return ["prepare", str(folder / "out"), "--recipe", str(folder / "p.yaml")]


def write_corpus(folder: Path) -> list[str]:
    (folder / "corpus.json").write_text(json.dumps({"format": RED}))
    return ["inspect", str(folder)]


def write_csv(folder: Path) -> list[str]:
    (folder / "t.csv").write_text(f"step,{RED}\n1,{RED}\n")
    return ["fit", str(folder / "t.csv"), "--at", "9M"]


def write_json_lines(folder: Path) -> list[str]:
    (folder / "t.jsonl").write_text(json.dumps({"step": 1, "a": {RED: RED}}))
    return ["fit", str(folder / "t.jsonl"), "--at", "9M"]


def write_shards(folder: Path) -> list[str]:
    columns = {"column_names": ["text"], "column_encodings": ["str"], "column_sizes": [None]}
    shard = {"format": "mds", **columns, "raw_data": {"basename": RED}}
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))
    return ["prepare", str(folder / "out"), "--domain", f"web={folder}", "--tokenizer", str(folder)]


def write_numbers(folder: Path) -> list[str]:
    (folder / "n.yaml").write_text(json.dumps({RED: RED}))
    return ["advise", "nowhere.csv", "--ratio", str(folder / "n.yaml")]


@pytest.mark.parametrize(
    "write",
    [write_recipe, write_prepare_recipe, write_corpus, write_csv, write_json_lines, write_shards, write_numbers],
)
def test_errors_on_the_command_line_hold_no_control_characters(
    write: Callable[[Path], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(write(tmp_path))
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert "\ufffd" in printed.err or "31m" in printed.err
    for text in (printed.err, printed.out):
        assert all(line.isprintable() for line in text.split("\n"))
        assert len(printed.err.splitlines()) <= 2
