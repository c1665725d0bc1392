"""datatrove's executors write the bytes that one process writes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("datatrove")

from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor

from drpruning.errors import ConfigError, CorpusError
from drpruning.files import rename_folder
from drpruning.prepare import Holdout, prepare
from drpruning.prepare.cluster import Stage, executors, stages
from drpruning.prepare.preparation import Options, Preparation, domain_texts
from tests.prepare.conftest import WORDS, contents, write_jsonl

RULE = Holdout(fraction=0.2, min_tokens=0)


@pytest.fixture
def domains(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "text"
    folder.mkdir()
    write_jsonl(folder / "web-0.jsonl", WORDS[:40])
    body = "".join(json.dumps({"text": text}) + "\n" for text in WORDS[30:])
    (folder / "web-1.jsonl.gz").write_bytes(gzip.compress(body.encode()))
    write_jsonl(folder / "code.jsonl", [text.upper() for text in WORDS])
    return {"web": str(folder / "web-*"), "code": str(folder / "code.jsonl")}


@pytest.fixture(autouse=True)
def silence_datatrove() -> Iterator[None]:
    from loguru import logger

    logger.disable("datatrove")
    yield
    logger.enable("datatrove")


def new_stages(out: Path, domains: dict[str, str], tokenizer: str, **options: object) -> list[Stage]:
    all_options = Options(holdout=RULE, shard_tokens=100, **options)  # type: ignore[arg-type]
    return stages(Preparation(out, domain_texts(domains), all_options), tokenizer)


def run(stage: Stage, tasks: int) -> None:
    """Run each task of a stage in this process, in reverse order."""
    count = tasks if stage.parallel else 1
    for rank in reversed(range(count)):
        for step in stage.steps:
            list(step.run(None, rank, count))


@pytest.mark.parametrize("tasks", [1, 3, 7])
def test_any_number_of_tasks_in_any_order_writes_the_same_bytes(
    tmp_path: Path, domains: dict[str, str], tokenizer: str, tasks: int
) -> None:
    prepare(tmp_path / "one", domains, tokenizer, holdout=RULE, shard_tokens=100)
    for stage in new_stages(tmp_path / "many", domains, tokenizer):
        run(stage, tasks)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one", "text"]


def test_the_local_executor_runs_them(tmp_path: Path, domains: dict[str, str], tokenizer: str) -> None:
    prepare(tmp_path / "one", domains, tokenizer, holdout=RULE, shard_tokens=100)
    last = executors(
        new_stages(tmp_path / "many", domains, tokenizer), 2, LocalPipelineExecutor, tmp_path / "logs", workers=1
    )
    last.run()
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_slurm_gets_a_job_for_each_stage_that_waits_for_the_one_before(
    tmp_path: Path, domains: dict[str, str], tokenizer: str
) -> None:
    last = executors(
        new_stages(tmp_path / "many", domains, tokenizer),
        512,
        SlurmPipelineExecutor,
        tmp_path / "logs",
        time="02:00:00",
        partition="cpu",
    )
    tasks = []
    while last is not None:
        tasks.append((last.pipeline[0].name, last.tasks, last.job_name))
        last = last.depends
    assert tasks == [
        ("publish", 1, "prepare-publish"),
        ("shards", 512, "prepare-shards"),
        ("layout", 1, "prepare-layout"),
        ("tokenize", 512, "prepare-tokenize"),
    ]


def test_publishing_can_be_killed_and_run_again(
    tmp_path: Path, domains: dict[str, str], tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "one", domains, tokenizer, holdout=RULE, shard_tokens=100)
    *before, publish = new_stages(tmp_path / "many", domains, tokenizer)
    for stage in before:
        run(stage, 2)
    for how in (killed, renamed_and_killed):
        with monkeypatch.context() as patch:
            patch.setattr("drpruning.prepare.cluster.rename_folder", how)
            with pytest.raises(KeyboardInterrupt):
                run(publish, 1)
    run(publish, 1)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one", "text"]


def killed(folder: Path, target: Path) -> None:
    raise KeyboardInterrupt


def renamed_and_killed(folder: Path, target: Path) -> None:
    rename_folder(folder, target)
    raise KeyboardInterrupt


def test_the_standard_input_is_refused(tmp_path: Path, tokenizer: str) -> None:
    with pytest.raises(ConfigError, match="standard input"):
        new_stages(tmp_path / "many", {"web": "-"}, tokenizer)


def test_input_errors_stop_the_layout(tmp_path: Path, domains: dict[str, str], tokenizer: str) -> None:
    Path(domains["code"]).write_text("{broken\n")
    first, second, *_ = new_stages(tmp_path / "many", domains, tokenizer)
    run(first, 2)
    with pytest.raises(CorpusError, match=r"code.jsonl, line 1: expected a JSON object"):
        run(second, 1)
    assert not (tmp_path / "many").exists()
