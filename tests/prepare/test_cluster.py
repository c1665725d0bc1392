"""datatrove's executors write the bytes that one process writes."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass
class Planted:
    """An object whose unpickling creates a file."""

    file: Path

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


DAMAGES: dict[str, Callable[[Any], Any]] = {
    "other domains": lambda body: {**body, "domains": {}},
    "no notes": lambda body: {"domains": body["domains"]},
    "a list": lambda body: [body],
    "a block outside": lambda body: web(body)["blocks"][0].__setitem__(0, "../../x"),
    "a negative count": lambda body: web(body)["blocks"][0].__setitem__(1, -1),
    "a block without numbers": lambda body: web(body)["blocks"].__setitem__(0, ["0" * 40]),
    "a place after the end": lambda body: web(body)["shards"]["train"].append([99]),
    "a negative place": lambda body: web(body)["shards"]["train"].append([-1]),
    "a fraction of 2": lambda body: web(body).update(fraction=2),
    "left_out is a list": lambda body: web(body).update(left_out=[]),
    "shards are null": lambda body: web(body)["shards"].update(test=None),
}


def web(body: Any) -> Any:
    return body["domains"]["web"]


@pytest.mark.parametrize("damage", [*DAMAGES, "a pickle"])
def test_a_damaged_layout_is_an_error_and_executes_nothing(
    damage: str, tmp_path: Path, domains: dict[str, str], tokenizer: str
) -> None:
    first, second, third, _ = new_stages(tmp_path / "many", domains, tokenizer)
    run(first, 1)
    run(second, 1)
    file = tmp_path / ".many.work" / "layout.json"
    body = json.loads(file.read_text())
    if damage == "a pickle":
        file.write_bytes(pickle.dumps(Planted(tmp_path / "executed")))
    else:
        changed = DAMAGES[damage](body)
        file.write_text(json.dumps(changed or body))
    with pytest.raises(CorpusError, match=r"layout\.json"):
        run(third, 1)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", pickle.dumps(None), b'{"tokens": Infinity}'])
def test_a_damaged_description_of_a_shard_is_an_error(
    content: bytes, tmp_path: Path, domains: dict[str, str], tokenizer: str
) -> None:
    *before, publish = new_stages(tmp_path / "many", domains, tokenizer)
    for stage in before:
        run(stage, 1)
    (tmp_path / ".many.work" / "written" / "web train 0.json").write_bytes(content)
    with pytest.raises(CorpusError, match=r"web train 0\.json"):
        run(publish, 1)


def test_a_damaged_result_is_an_error(tmp_path: Path, domains: dict[str, str], tokenizer: str) -> None:
    first, second, *_ = new_stages(tmp_path / "many", domains, tokenizer)
    run(first, 1)
    file = next((tmp_path / ".many.work" / "results" / "web").iterdir())
    whole = json.loads(file.read_text())["blocks"][0]
    for change in ({"name": "../x"}, {"name": "0" * 40}, {"errors": {"json": -1}}, {"error_examples": [{"a": 1}]}):
        file.write_text(json.dumps({"blocks": [{**whole, **change}]}))
        with pytest.raises(CorpusError, match=file.name):
            run(second, 1)


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
