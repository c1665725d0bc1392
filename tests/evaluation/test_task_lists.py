"""Lists of tasks with their shots: the shipped ones against the installed harness, and scores by a list."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from drpruning.cli import group
from drpruning.cli.render.task_scores import print_scores
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.evaluation.benchmark.build import Prices, build_benchmark
from drpruning.evaluation.benchmark.judge import Judge
from drpruning.evaluation.models import NamedModel
from drpruning.evaluation.task_lists import ListedTask, read_list, shipped_lists
from drpruning.evaluation.tasks import Tasks, TaskScore, find_tasks
from drpruning.formatting import NONE
from drpruning.hf.tokenizers import corpus_tokenizer
from tests.evaluation.conftest import planned, tiny_model
from tests.evaluation.test_benchmark import offline


@pytest.fixture(scope="module")
def manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.fixture
def indexed(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Index the harness's tasks once: that takes many seconds."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: manager)


@pytest.fixture(scope="module")
def bench(stories: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "made"
    plan = planned(stories, per_domain=12)
    build_benchmark(plan, folder, offline(plan), Judge(), Prices())
    return folder


def test_the_lists_of_the_papers() -> None:
    assert shipped_lists() == ["paper", "sheared"]
    paper = {item.task: (item.shots, item.metric) for item in read_list("paper")}
    sheared = {item.task: (item.shots, item.metric) for item in read_list("sheared")}
    assert (len(paper), len(sheared)) == (15, 11)
    assert sheared.items() <= paper.items()  # the paper adds four
    assert set(paper) - set(sheared) == {"squadv2", "triviaqa", "truthfulqa_mc2", "wsc"}
    with_shots = {task: shots for task, (shots, _) in paper.items() if shots}
    assert with_shots == {"arc_challenge": 25, "hellaswag": 10, "boolq": 32, "nq_open": 32, "mmlu": 5, "triviaqa": 5}


@pytest.mark.parametrize("name", ["paper", "sheared"])
def test_the_harness_has_every_task_and_metric_of_a_shipped_list(name: str, manager: Any) -> None:
    assert name not in manager.all_tasks  # a list would hide it
    for item in read_list(name):
        entry = manager.task_index[item.task]
        assert entry.kind.name in {"TASK", "PY_TASK", "GROUP"}, item.task
        listed = entry.cfg.get("metric_list") or entry.cfg.get("aggregate_metric_list")
        if listed is not None:
            assert item.metric in {each["metric"] for each in listed}, item.task
        else:
            assert item.task == "squadv2"  # written in Python: its class has the metrics
    from lm_eval.tasks.squadv2.task import SQuAD2

    assert "HasAns_f1" in SQuAD2.higher_is_better(object.__new__(SQuAD2))


def listed(bench: Path, **shots: int) -> Tasks:
    """Return the benchmark's tasks in the form of a list; ``both`` is a group of the two."""
    found = find_tasks([str(bench)])
    items = {name: ListedTask(task=name, shots=count, metric="acc_norm") for name, count in shots.items()}
    members = {"both": ["stories_sea", "stories_sky"]} if "both" in shots else {}
    return Tasks(tuple(items), found.loaded, items, members)


def test_each_task_has_its_own_shots(bench: Path, stories: Corpus) -> None:
    model, tokenizer = tiny_model(vocabulary=400, max_position_embeddings=512), corpus_tokenizer(stories)
    tasks = listed(bench, stories_sky=0, stories_sea=0)
    scores = tasks.score(model, tokenizer)
    assert [(score.task, score.shots, score.counts) for score in scores] == [
        ("stories_sky", 0, "acc_norm"),
        ("stories_sea", 0, "acc_norm"),
    ]
    loaded = tasks.loaded["stories_sea"]
    listed(bench, stories_sea=3)._set_listed_examples()
    assert loaded.get_config("num_fewshot") == 0
    three = Tasks(
        ("stories_sea",), tasks.loaded, {"stories_sea": ListedTask(task="stories_sea", shots=3, metric="acc")}
    )
    three._set_listed_examples()
    assert loaded.get_config("num_fewshot") == 3
    with pytest.raises(ConfigError, match="sets the number of examples"):
        tasks.score(model, tokenizer, num_fewshot=2)


def test_a_group_of_a_list_is_one_score(bench: Path, stories: Corpus) -> None:
    model, tokenizer = tiny_model(vocabulary=400, max_position_embeddings=512), corpus_tokenizer(stories)
    single = find_tasks([str(bench)]).score(model, tokenizer)
    (both,) = listed(bench, both=0).score(model, tokenizer)
    assert (both.task, both.samples, both.counts) == ("both", 24, "acc_norm")
    assert both.metrics["acc"] == pytest.approx(sum(score.metrics["acc"] for score in single) / 2)  # 12 documents each
    errors = [score.errors["acc"] for score in single]
    assert both.errors["acc"] == pytest.approx(math.hypot(*errors) / 2)


@pytest.mark.usefixtures("indexed")
def test_a_task_of_a_list_must_be_known_and_not_named_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: stories_sea, shots: 1, metric: acc}]")
    with pytest.raises(ConfigError, match="there is no task 'stories_sea'"):
        find_tasks([str(path)])
    with pytest.raises(ConfigError, match="task 'stories_sea' is in a list and named separately"):
        find_tasks([str(path), "stories_sea"])


def test_one_table_for_a_list() -> None:
    def score(task: str, value: float, counts: str = "exact_match,strict") -> TaskScore:
        return TaskScore(task, {counts: value, "other": 0.9}, {counts: 0.01}, 50, "1", shots=5, counts=counts)

    models = [NamedModel("a", "a"), NamedModel("b", "b")]
    scored = [
        (models[0], [score("one", 0.5), score("two", 0.3, "acc"), TaskScore("free", {"f1": 0.25}, {}, 7, "1")]),
        (models[1], [score("one", 0.7), score("two", 0.4, "acc"), TaskScore("free", {"f1": 0.75}, {}, 7, "1")]),
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    print_scores(console, scored)
    titles, one, two, mean, *rest = [line for line in console.export_text().splitlines() if line.strip()]
    assert titles.split() == ["task", "shots", "metric", "a", "b", "documents"]
    assert one.split() == ["one", "5", "exact_match", "0.500", "±", "0.020", "0.700", "±", "0.020", "50"]
    assert two.split()[:4] == ["two", "5", "acc", "0.300"]
    assert mean.split() == ["mean", "0.400", "0.550"]
    assert rest[0] == "f1"
    assert "other" not in console.export_text()


@pytest.mark.parametrize("first", [True, False])
def test_a_task_whose_score_is_not_finite_for_one_model_keeps_its_row(first: bool) -> None:
    both = TaskScore("both", {"perplexity": 20.0}, {}, 7, "1")
    fine, broken = TaskScore("wikitext", {"perplexity": 30.0}, {}, 7, "1"), TaskScore("wikitext", {}, {}, 7, "1")
    scores = [[both, fine], [both, broken]] if first else [[both, broken], [both, fine]]
    console = Console(width=120, record=True, file=io.StringIO())
    print_scores(console, [(NamedModel(name, name), found) for name, found in zip("ab", scores, strict=True)])
    row = next(line.split() for line in console.export_text(clear=False).splitlines() if "wikitext" in line)
    assert row == (["wikitext", "30.000", NONE] if first else ["wikitext", NONE, "30.000"])
    mean = next(line.split() for line in console.export_text().splitlines() if "mean" in line)
    assert mean == ["mean", "25.000"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks: [", "is not YAML"),
        ("- sciq", "the file: expected"),
        ("tasks: []", "tasks: Tuple should have at least 1 item"),
        ("tasks: [{task: sciq, shots: 0}]", "tasks.0.metric: Field required"),
        ("tasks: [{task: sciq, shots: -1, metric: acc}]", "tasks.0.shots: expected at least 0"),
        ("tasks: [{task: sciq, shot: 0, metric: acc}]", "tasks.0.shots: Field required"),
        (
            "tasks: [{task: sciq, shots: 0, metric: acc}, {task: sciq, shots: 1, metric: acc}]",
            "task 'sciq' is listed twice",
        ),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as refusal:
        find_tasks([str(path)])
    assert message in refusal.value.message


@pytest.mark.usefixtures("indexed")
def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file '.*none\.yaml'\nGive .* paper, sheared"):
        find_tasks([str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="there is no task 'papper'"):
        find_tasks(["papper"])


@pytest.mark.usefixtures("indexed")
def test_a_list_in_a_command_with_unknown_tasks_is_an_error(tmp_path: Path) -> None:
    tiny_model(vocabulary=400).save_pretrained(tmp_path / "model")
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"tasks": [{"task": "sciqq", "shots": 0, "metric": "acc"}]}))
    result = CliRunner().invoke(group, ["eval", "tasks", str(tmp_path / "model"), "--task", str(path)])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.message == "there is no task 'sciqq'"
