"""`drpruning sample`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import drpruning as dp
from drpruning.cli import group
from drpruning.errors import ConfigError, CorpusError, WeightError
from drpruning.prepare import prepare
from drpruning.prepare.tokenize.tokenizer import train_tokenizer
from tests.conftest import MakeCorpus


def run(*arguments: str) -> str:
    done = CliRunner(env={"COLUMNS": "100"}).invoke(group, ["sample", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def corpus(make_corpus: MakeCorpus) -> str:
    return str(make_corpus({"web": [600, 300], "code": [100]}))


SMALL = ("--seq-len=10", "--batch-size=8")


def test_the_mixture_reached_is_printed_next_to_the_weights(corpus: str) -> None:
    found = json.loads(run(corpus, *SMALL, "--weights=web=3,code=1", "--steps=10", "--json"))
    assert (found["steps"], found["rows"]) == (10, 80)
    web, code = found["domains"]["web"], found["domains"]["code"]
    assert (web["weight"], web["reached"], web["rows"], web["tokens"], web["off_by_rows"]) == (0.75, 0.75, 60, 600, 0)
    assert (web["epochs"], code["epochs"]) == (60 / 90, 2.0)
    # Speeds are of one clock; the files hold 4 bytes a token.
    assert found["rows_per_second"] * found["seconds"] == pytest.approx(80)
    assert found["tokens_per_second"] == pytest.approx(10 * found["rows_per_second"])
    assert found["megabytes_per_second"] * 1e6 == pytest.approx(4 * found["tokens_per_second"])
    assert 0 < found["median_batch_seconds"] <= found["p95_batch_seconds"] <= found["seconds"]
    assert 0 < found["first_batch_seconds"] <= found["seconds"]


@pytest.mark.parametrize(
    ("name", "web"), [("uniform", 0.5), ("natural", 0.9), ("temperature:0.5", 0.75), ("unimax:2", 0.75)]
)
def test_weights_of_a_static_mixture(corpus: str, name: str, web: float) -> None:
    found = json.loads(run(corpus, *SMALL, f"--weights={name}", "--steps=10", "--json"))  # 800 tokens; code has 100
    assert found["domains"]["web"]["weight"] == pytest.approx(web)


def test_people_get_a_table(corpus: str) -> None:
    lines = run(corpus, *SMALL, "--weights= web = .7 , code=.3", "--steps=1").splitlines()
    assert lines[0].split() == ["domain", "weight", "reached", "rows", "off", "by", "tokens", "epochs"]
    assert [line.split()[:3] for line in lines[1:3]] in (
        [["web", "0.7000", "0.7500"], ["code", "0.3000", "0.2500"]],
        [["web", "0.7000", "0.6250"], ["code", "0.3000", "0.3750"]],
    )
    assert lines[3].startswith("1 batches of 8 rows of 10 tokens in ")
    assert "on one thread" in lines[3]
    assert "rows/s" in lines[4]


def test_without_weights_all_domains_are_gone_through_at_one_pace(corpus: str) -> None:
    found = json.loads(run(corpus, *SMALL, "--steps=25", "--json"))
    assert {name: domain["epochs"] for name, domain in found["domains"].items()} == {"web": 2.0, "code": 2.0}


def test_the_rows_shown_are_the_streams_first(corpus: str) -> None:
    files = {name: f"{corpus}/{name}-train-00000.bin" for name in ("web", "code")}
    weights = {"web": 0.5, "code": 0.5}
    sampler = dp.DomainSampler(dp.Corpus(files), weights, seq_len=10, batch_size=8, seed=3, draw="random")
    first = [row for batch in (next(sampler), next(sampler)) for row in batch.tokens.tolist()][:11]
    loose = [f"{name}={path}" for name, path in files.items()]
    arguments = [*loose, *SMALL, "--weights=web=.5,code=.5", "--seed=3", "--draw=random", "--steps=3", "--json"]
    shown = json.loads(run(*arguments, "--show=11"))["shown"]
    assert [row["begins"] for row in shown] == [" ".join(map(str, tokens)) for tokens in first]
    assert [10_000 * (row["domain"] == "code") + 10 * row["row"] for row in shown] == [row[0] for row in first]
    assert json.loads(run(*arguments))["shown"] == []


def test_rows_are_decoded_with_the_corpus_tokenizer(tmp_path: Path) -> None:
    texts = [f"row {number} of [bold]plain[/bold] words, again and again. " * 4 for number in range(40)]
    train_tokenizer(texts, 280).save(tmp_path / "tokenizer")
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(tmp_path / "corpus", {"web": str(tmp_path / "web.jsonl")}, str(tmp_path / "tokenizer"))
    arguments = (str(tmp_path / "corpus"), "--seq-len=60", "--batch-size=4", "--steps=2", "--show=3")
    shown = json.loads(run(*arguments, "--json"))["shown"]
    assert len(shown) == 3
    assert all("again" in row["begins"] for row in shown)
    assert "[bold]" in run(*arguments)


def test_flat_files_need_their_dtype(tmp_path: Path) -> None:
    np.arange(1000, dtype="uint16").tofile(tmp_path / "flat.bin")
    item = f"flat={tmp_path / 'flat.bin'}"
    assert "32,000" in run(item, "--dtype=uint16", "--seq-len=10", "--steps=100")
    with pytest.raises(CorpusError, match="expected an index next to it"):
        run(item)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--weights=web=.7"], WeightError, "domain 'code' has no weight"),
        (["--weights=web=1,code=0,wiki=1"], WeightError, "a weight for unknown domain 'wiki'"),
        (["--weights=web=a,code=1"], WeightError, "'web=a' is not NAME=NUMBER"),
        (["--weights=web,code=1"], WeightError, "'web' is not NAME=NUMBER"),
        (["--weights=web=1,web=2"], WeightError, "'web' has two weights"),
        (["--weights=web=nan,code=1"], WeightError, "NaN"),
        (["--seq-len=5000"], CorpusError, "no row of 5000 tokens"),
        (["--dtype=uint16"], ConfigError, "--dtype is for NAME=PATH files"),
        (["more=x"], ConfigError, "expected NAME=PATH"),
    ],
)
def test_wrong_input_is_named(corpus: str, arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(corpus, *arguments)


def test_domains_shorter_than_a_row_are_named(corpus: str) -> None:
    done = CliRunner().invoke(group, ["sample", corpus, "--seq-len=200", "--steps=1"], catch_exceptions=False)
    assert done.stderr == "weight 0, fewer tokens than a row of 200: code (100)\n"


def test_text_in_place_of_tokens_is_named(tmp_path: Path) -> None:
    path = tmp_path / "manual.jsonl"
    path.write_text("{}")
    for arguments in ([f"web={path}", "--dtype=uint16"], [str(tmp_path)]):
        with pytest.raises(CorpusError) as refused:
            run(*arguments)
        assert "jsonl.bin" not in refused.value.message
        assert "`drpruning prepare`" in str(refused.value.next_step)


def test_a_domain_given_twice_is_refused(corpus: str) -> None:
    with pytest.raises(ConfigError, match="domain 'a' is given twice: x and y"):
        run("a=x", "a=y")


def test_a_folder_with_an_equals_sign_is_a_corpus(corpus: str, tmp_path: Path) -> None:
    (tmp_path / "lr=1").symlink_to(corpus)
    with pytest.raises(ConfigError, match=r"the corpus.json of .*lr=1 has the type"):
        run(str(tmp_path / "lr=1"), "--dtype=uint16")
