"""lm-evaluation-harness, run for real on the benchmark's tasks, and what becomes of the scores."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, MissingExtraError, StateError, install_command
from drpruning.evaluation.benchmark.build import Prices, build_benchmark
from drpruning.evaluation.benchmark.generator import GeneratedChoices
from drpruning.evaluation.benchmark.judge import Judge, ScoringModel
from drpruning.evaluation.benchmark.offline import Offline
from drpruning.evaluation.benchmark.passages import Passage
from drpruning.evaluation.tasks import TaskScore, find_tasks, record_scores
from drpruning.files import locked
from drpruning.hf.tokenizers import corpus_tokenizer
from drpruning.records import TaskMeasured, read_records
from drpruning.report.task_table import task_table
from drpruning.train.run import train
from tests.evaluation.conftest import items, planned, tiny_model
from tests.evaluation.test_benchmark import offline
from tests.train.conftest import tiny


@pytest.fixture(scope="module")
def bench(stories: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "made"
    plan = planned(stories, per_domain=12)
    build_benchmark(plan, folder, offline(plan), Judge(), Prices())
    moved = folder.with_name("moved")
    shutil.move(folder, moved)  # tasks do not remember where they were written
    return moved


def test_the_harness_scores_the_tasks_as_the_items_say(bench: Path, stories: Corpus) -> None:
    tasks = find_tasks([str(bench)])
    assert tasks.names == ("stories_sea", "stories_sky")
    model, tokenizer = tiny_model(vocabulary=400, max_position_embeddings=256), corpus_tokenizer(stories)
    model.train()
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    scores = {score.task: score for score in tasks.score(model, tokenizer)}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training
    model.eval()
    for domain in ("sea", "sky"):
        found = items(bench, domain)
        nats = ScoringModel("tiny", model, tokenizer).nats(found)
        right = [int(np.argmin(each)) == item.label for each, item in zip(nats, found, strict=True)]
        score = scores[f"stories_{domain}"]
        assert set(score.metrics) == {"acc", "acc_norm", "acc_mutual_info"}
        assert score.metrics["acc"] == pytest.approx(np.mean(right))
        assert score.errors["acc"] == pytest.approx(np.std(right, ddof=1) / 12**0.5)
        chosen = [
            int(
                np.argmin(
                    [
                        _nats(model, tokenizer, item.context, choice) - _nats(model, tokenizer, "", choice)
                        for choice in item.choices
                    ]
                )
            )
            == item.label
            for item in found
        ]
        assert score.metrics["acc_mutual_info"] == pytest.approx(np.mean(chosen))
        assert score.samples == 12
    assert [score.samples for score in tasks.score(model, tokenizer, limit=3)] == [3, 3]


def _nats(model: Any, tokenizer: Any, context: str, choice: str) -> float:
    """Return the nats of a choice like the harness: after the context, or after a start token without a context."""
    known, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, context + choice))
    ids = torch.tensor(whole if known else [tokenizer.eos_token_id, *whole])
    with torch.no_grad():
        chances = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return -float(chances.gather(1, ids[1:, None])[max(len(known), 1) - 1 :].sum())


class OddLines(Offline):
    """Its choices have ends of lines that JSON does not escape, within them."""

    def make(self, passage: Passage, count: int) -> GeneratedChoices:
        made = super().make(passage, count)
        return replace(
            made, wrong=[replace(item, text=item.text.strip().replace(" ", "\u2028", 2)) for item in made.wrong]
        )


def test_ends_of_lines_within_text_end_no_line(stories: Corpus, tmp_path: Path) -> None:
    for per_domain in (4, 8):
        plan = planned(stories, per_domain=per_domain)
        odd = OddLines(offline(plan).neighbors, plan.num_choices, plan.seed, num_neighbors=10)
        build_benchmark(plan, tmp_path / "bench", odd, Judge(), Prices())
    loaded = find_tasks([str(tmp_path / "bench")]).loaded
    documents = list(loaded["stories_sea"].test_docs())
    assert len(documents) == 8
    assert any("\u2028" in choice for item in documents for choice in item["choices"])


def test_scores_of_a_run_are_added_to_its_records(bench: Path, stories: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(tiny(Path(str(stories.folder)), {}).to_yaml())
    tiny_model(vocabulary=400, max_position_embeddings=256).save_pretrained(run / "export")
    corpus_tokenizer(stories).save_pretrained(run / "export")
    result = CliRunner().invoke(group, ["eval", "tasks", str(run), "--task", str(bench), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)["models"][0]["tasks"]
    recorded = [item for item in read_records(run / "metrics.jsonl") if isinstance(item, TaskMeasured)]
    assert [(item.model, item.task, item.metrics) for item in recorded] == [
        ("recovered", task["task"], task["metrics"]) for task in printed
    ]
    few = ["eval", "tasks", str(run), "--task", str(bench), "--num-fewshot", "2"]
    assert "stories_sea, 2-shot" in CliRunner().invoke(group, few).stdout
    labels = [item.label for item in read_records(run / "metrics.jsonl") if isinstance(item, TaskMeasured)]
    assert labels == ["stories_sea", "stories_sky", "stories_sea, 2-shot", "stories_sky, 2-shot"]
    rows = task_table(read_records(run / "metrics.jsonl")).rows
    assert {row.cells[0].text for row in rows} == set(labels)
    recorded = list(read_records(run / "metrics.jsonl"))
    shown = CliRunner().invoke(group, ["eval", "tasks", str(run), "--task", str(bench), "--limit", "2"]).stdout
    assert "stories_sea" in shown
    assert "acc_norm" in shown
    assert len(list(read_records(run / "metrics.jsonl"))) == len(recorded)
    with locked(run), pytest.raises(StateError, match="scores of its model 'pruned' were not recorded"):
        record_scores(run, "pruned", [TaskScore("t", {"acc": 1.0}, {}, 1, "1")])


def test_a_run_scores_its_models_and_the_one_in_training_and_learns_the_same(
    bench: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path / "cache"))
    task = tmp_path / "task"
    task.mkdir()
    for name in ("sea.yaml", "sea.jsonl", "items.py"):
        shutil.copy(bench / name, task)
    changes: dict[str, object] = {
        "model": {
            "source": "pretrain",
            "architecture": {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 48, "positions": 256},
        },
        "pretrain": {"steps": 2},
        "prune": {"steps": 2, "target": {"layers": 2, "hidden": 24, "heads": 2, "intermediate": 32}},
        "continue": {"steps": 3},
        "mixture": {"strategy": "constant"},
    }
    plain = tiny(corpus_folder, changes)
    scored = tiny(corpus_folder, changes | {"task_eval": {"tasks": [str(task)], "at_steps": [1, 2], "limit": 2}})
    assert plain.hash() == scored.hash()
    train(plain, tmp_path / "plain")
    train(scored, tmp_path / "scored")
    weights = [(tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("plain", "scored")]
    assert weights[0] == weights[1]
    found = [item for item in read_records(tmp_path / "scored" / "metrics.jsonl") if isinstance(item, TaskMeasured)]
    assert {(item.task, item.samples) for item in found} == {("stories_sea", 2)}
    assert [(item.model, item.stage, item.step) for item in found] == [
        ("base", None, None),
        ("pruned", None, None),
        ("recovered", "continue", 1),
        ("recovered", "continue", 2),
        ("recovered", None, None),
    ]
    with pytest.raises(ConfigError, match="holds no tasks"):
        train(tiny(corpus_folder, {"task_eval": {"tasks": [str(tmp_path / "cache")]}}), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_what_cannot_be_scored_is_an_error(
    bench: Path, tmp_path: Path, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer"):
        find_tasks([str(bench)]).score(tiny_model(), None)
    with pytest.raises(ConfigError, match="holds no tasks"):
        find_tasks([str(tmp_path)])
    broken = tmp_path / "broken"
    shutil.copytree(bench, broken)
    (broken / "sea.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*sea\.jsonl"):
        find_tasks([str(broken)])
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingExtraError, match="lm-evaluation-harness, which is not installed") as caught:
        find_tasks([str(bench)])
    assert caught.value.next_step == install_command("lm-eval", "accelerate")
