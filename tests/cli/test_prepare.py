"""`drpruning prepare` and `drpruning inspect` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from drpruning.cli.inspect import inspect_command
from drpruning.cli.prepare import prepare as prepare_command
from drpruning.errors import ConfigError, CorpusError
from drpruning.prepare.tokenize.tokenizer import train_tokenizer

TEXTS = [f"sample [bold]{number}[/bold] of {number % 7} words" for number in range(80)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    train_tokenizer(TEXTS, 300).save(folder / "tokenizer")
    for name in ("web", "code"):
        lines = (json.dumps({"body": f"{name} {text}"}) + "\n" for text in TEXTS)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def arguments(files: Path, out: Path) -> list[str]:
    domains = [f"--domain={name}={files / name}.jsonl" for name in ("web", "code")]
    return [str(out), f"--tokenizer={files / 'tokenizer'}", *domains, "--text-field=body", "--holdout=0.2"]


def test_prepare_prints_a_table_and_inspect_reads_it(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    done = CliRunner().invoke(prepare_command, arguments(files, out), catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stderr == ""
    assert "validation" in done.stdout
    again = CliRunner().invoke(prepare_command, arguments(files, out), catch_exceptions=False)
    assert "nothing to do" in again.stderr
    assert again.stdout == done.stdout

    shown = CliRunner().invoke(inspect_command, [str(out), "--verify"], catch_exceptions=False)
    assert done.stdout in shown.stdout
    assert "[bold]" in shown.stdout
    assert "verified" in shown.stdout

    found = json.loads(CliRunner().invoke(inspect_command, [str(out), "--json"], catch_exceptions=False).stdout)
    assert list(found["domains"]) == ["web", "code"]
    web = found["domains"]["web"]
    assert web["documents"] + web["validation_documents"] + web["test_documents"] == len(TEXTS)
    assert web["held_out_share"] == 0.2
    assert web["sample"].startswith("web sample [bold]")
    assert found["verified"] is False


def test_no_table_is_cut_at_80_columns(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = arguments(files, tmp_path / "corpus")
    options = [word.replace("--domain=web=", "--domain=a_domain_with_quite_a_long_name=") for word in words]
    prepared = CliRunner().invoke(prepare_command, options, catch_exceptions=False).stdout
    shown = CliRunner().invoke(inspect_command, [str(tmp_path / "corpus")], catch_exceptions=False).stdout
    assert prepared in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    titles = [line.split() for line in shown.splitlines() if {"validation", "bytes"} & set(line.split())]
    assert titles[:2] == [["bytes", "per"], ["validation", "validation", "test", "test"]]


def test_what_prepare_did_as_json(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    (tmp_path / "bad.jsonl").write_text("{broken\n")
    options = [*arguments(files, out), f"--domain=web={tmp_path / 'bad.jsonl'}", "--max-errors=1", "--json"]
    done = CliRunner().invoke(prepare_command, options, catch_exceptions=False)
    found = json.loads(done.stdout)
    assert (found["corpus"], found["unchanged"]) == (str(out), False)
    assert found["domains"]["web"]["left_out"] == {"broken_json": 1}
    assert [message.split(": ")[0] for message in found["unusable"]] == [f"{tmp_path / 'bad.jsonl'}, line 1"]
    shown = json.loads(CliRunner().invoke(inspect_command, [str(out), "--json"], catch_exceptions=False).stdout)
    assert found["domains"]["code"].items() <= shown["domains"]["code"].items()
    again = json.loads(CliRunner().invoke(prepare_command, options, catch_exceptions=False).stdout)
    assert again["unchanged"] is True
    assert again["domains"] == found["domains"]


def test_files_of_a_folder_that_are_not_read_are_counted_by_suffix(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    (folder / "web.jsonl").write_bytes((files / "web.jsonl").read_bytes())
    for name in ("a.py", "deep/b.py", "deep/c.csv.gz", "Makefile", ".hidden.py", "dataset_info.json"):
        (folder / name).write_text("text of a file\n")
    options = [f"--tokenizer={files / 'tokenizer'}", f"--domain=web={folder}", "--text-field=body", "--holdout=0.2"]
    done = CliRunner().invoke(prepare_command, [str(tmp_path / "one"), *options, "--json"], catch_exceptions=False)
    assert done.stderr.splitlines() == [
        "domain web: 4 files skipped: 2 .py, 1 without a suffix, 1 .csv.gz; if its .py files are text, add "
        "--text-suffix .py"
    ]
    more = [*options, "--text-suffix=.py", "--json"]
    done = CliRunner().invoke(prepare_command, [str(tmp_path / "two"), *more], catch_exceptions=False)
    assert json.loads(done.stdout)["skipped_files"] == {"web": {".csv.gz": 1, "": 1}}
    assert "--text-suffix" not in done.stderr


def test_inspect_prints_how_often_a_recipe_reads_each_domain(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    domain = f"--domain=python={files / 'web.jsonl'}"
    options = [str(out), f"--tokenizer={files / 'tokenizer'}", domain, "--text-field=body", "--holdout=0.2"]
    CliRunner().invoke(prepare_command, options, catch_exceptions=False)
    shown = CliRunner().invoke(inspect_command, [str(out), "--recipe=quickstart"], catch_exceptions=False).stdout
    assert "under quickstart: python " in shown
    assert "domains that the corpus lacks: cpp" in " ".join(shown.split())


def test_verify_notices_a_changed_byte(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    CliRunner().invoke(prepare_command, arguments(files, out), catch_exceptions=False)
    shard = out / "web-train-00000.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert CliRunner().invoke(inspect_command, [str(out)], catch_exceptions=False).exit_code == 0
    with pytest.raises(CorpusError, match="web-train-00000"):
        CliRunner().invoke(inspect_command, [str(out), "--verify"], catch_exceptions=False)


def test_inspect_needs_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus.json"):
        CliRunner().invoke(inspect_command, [str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--tokenizer and --domain are missing\nAdd --tokenizer MODEL and .* or --demo"),
        (["--tokenizer=x"], "--domain is missing.*\nAdd --domain NAME=PATH for each domain, for example --domain web="),
        (["--domain=web=x"], "--tokenizer is missing\nAdd --tokenizer MODEL, the model to prune"),
        (["--demo", "--domain=a=b"], "--demo has its own text"),
        (["--tokenizer=x", "--domain=web"], "expected NAME=PATH"),
        (["--tokenizer=x", "--domain=web="], "expected NAME=PATH"),
        (["--tokenizer=x", "--recipe=redpyjama"], "unknown recipe 'redpyjama'\nDid you mean redpajama"),
        (["--tokenizer=x", "--domain=web=absent.txt"], "absent.txt does not exist.*\nCorrect the path of --domain"),
    ],
)
def test_options_that_cannot_work_are_named(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(prepare_command, [str(tmp_path / "corpus"), *options], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


def test_a_share_outside_its_range_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(prepare_command, [str(tmp_path / "corpus"), "--demo", "--holdout=1"])
    assert done.exit_code == 2
    assert "--holdout" in done.stderr
