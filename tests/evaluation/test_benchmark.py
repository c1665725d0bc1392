"""The benchmark: passages, groups in which guessing is chance, filters, and a build that can be stopped anywhere."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from drpruning.cli import group, main
from drpruning.corpus import Corpus
from drpruning.errors import CorpusError, StateError
from drpruning.evaluation.benchmark.build import JOURNAL, BenchmarkPlan, Prices, build_benchmark, plan_benchmark
from drpruning.evaluation.benchmark.generator import GeneratedChoices, WrongChoice
from drpruning.evaluation.benchmark.items import make_item
from drpruning.evaluation.benchmark.judge import Judge, ScoringModel
from drpruning.evaluation.benchmark.local import Local
from drpruning.evaluation.benchmark.neighbors import Neighbors, overlap
from drpruning.evaluation.benchmark.offline import Offline
from drpruning.evaluation.benchmark.passages import Passage, cut, find_passages
from drpruning.hf.tokenizers import corpus_tokenizer
from tests.evaluation.conftest import HALF, items, planned, tiny_model


def offline(plan: BenchmarkPlan) -> Offline:
    neighbors = {domain: Neighbors.of(passages) for domain, passages in plan.passages.items()}
    return Offline(neighbors, plan.num_choices, plan.seed, num_neighbors=10)


def test_passages_are_the_text_cut_where_sentences_end() -> None:
    text = "One two three four. Five six seven eight. Nine ten eleven. Twelve thirteen fourteen. Fifteen sixteen."
    found = find_passages("web", [text], context_chars=40)
    assert found
    for item in found:
        assert text[item.start :].startswith(item.first + item.second)
        assert item.first.endswith(".")
        assert item.lead == " "
    assert find_passages("web", ["-" * 500, "", "short"], context_chars=40) == []


@pytest.mark.parametrize(
    ("text", "most", "left"), [("one two three", 9, "one two"), ("one two", 20, "one two"), ("x" * 9, 4, "xxxx")]
)
def test_texts_are_cut_at_words(text: str, most: int, left: str) -> None:
    assert cut(text, most) == left


def test_items_are_deterministic_and_say_where_they_come_from(stories: Corpus, tmp_path: Path) -> None:
    plan = planned(stories)
    for name in ("one", "two"):
        build_benchmark(plan, tmp_path / name, offline(plan), Judge(), Prices())
    by_name = {item.name: item for passages in plan.passages.values() for item in passages}
    for domain in ("sea", "sky"):
        assert (tmp_path / "one" / f"{domain}.jsonl").read_bytes() == (
            tmp_path / "two" / f"{domain}.jsonl"
        ).read_bytes()
        found = items(tmp_path / "one", domain)
        assert len(found) == 12
        for item in found:
            passage = by_name[item.name]
            assert item.context == passage.first
            assert passage.second.startswith(item.choices[item.label])
            lengths = list(map(len, item.choices))
            assert min(lengths) > max(lengths) - 12  # one word
            for choice, source in zip(item.choices, item.provenance["choices"], strict=True):
                assert by_name[source["passage"]].second.strip().startswith(choice.strip())
                assert source["passage"] == item.name or not overlap(by_name[source["passage"]], passage)
        assert len({item.label for item in found}) > 1


def test_without_the_first_half_one_of_each_group_is_right(stories: Corpus, tmp_path: Path) -> None:
    plan = planned(stories, per_domain=16)
    build_benchmark(plan, tmp_path / "bench", offline(plan), Judge(), Prices())
    found = items(tmp_path / "bench", "sea")
    groups = Counter(item.provenance["group"] for item in found)
    assert set(groups.values()) == {4}
    for score in (len, lambda text: sum(map(ord, text)), lambda text: text.count("a")):
        right: Counter[str] = Counter()
        for item in found:
            best = max(range(4), key=lambda at: (score(item.choices[at]), item.choices[at]))
            right[item.provenance["group"]] += best == item.label
        assert all(right[name] == 1 for name in groups)


class Unsteady:
    """A generator that fails for some passages at first, and counts what it is calls."""

    num_parallel = 1

    def __init__(self, inner: Offline, fail: int = 0, stop_after: int | None = None) -> None:
        self.inner, self.fail, self.stop_after, self.calls = inner, fail, stop_after, 0

    def settings(self) -> dict[str, Any]:
        return self.inner.settings()

    def order(self, passages: Any) -> Any:
        return self.inner.order(passages)

    def expected(self, passage: Passage, count: int) -> Any:
        return self.inner.expected(passage, count)

    def make(self, passage: Passage, count: int) -> GeneratedChoices:
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        if self.calls <= self.fail:
            return GeneratedChoices(dropped="no answer", failed=True)
        return self.inner.make(passage, count)


def test_a_stopped_build_resumes_and_gives_the_same_items(stories: Corpus, tmp_path: Path) -> None:
    plan = planned(stories, per_domain=20)
    build_benchmark(plan, tmp_path / "whole", offline(plan), Judge(), Prices())
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / f".{JOURNAL}.partial").write_text('{"form')  # what a kill before the first line leaves
    stopped = Unsteady(offline(plan), stop_after=25)
    with pytest.raises(KeyboardInterrupt):
        build_benchmark(plan, tmp_path / "parts", stopped, Judge(), Prices())
    with (tmp_path / "parts" / JOURNAL).open("a") as journal:
        journal.write('{"domain": "sky", "pass')  # what a kill leaves
    rest = Unsteady(offline(plan))
    build_benchmark(plan, tmp_path / "parts", rest, Judge(), Prices())
    assert rest.calls < 40
    for domain in ("sea", "sky"):
        assert (tmp_path / "parts" / f"{domain}.jsonl").read_bytes() == (
            tmp_path / "whole" / f"{domain}.jsonl"
        ).read_bytes()
    assert not list((tmp_path / "parts").glob(".*"))
    more = planned(stories, per_domain=24)
    build_benchmark(more, tmp_path / "parts", offline(more), Judge(), Prices())
    assert len(items(tmp_path / "parts", "sky")) == 24
    other = plan_benchmark(
        stories, name="stories", domains=["sea", "sky"], per_domain=20, num_choices=4, context_chars=HALF, seed=6
    )
    with pytest.raises(StateError, match="created with other settings; different: seed"):
        build_benchmark(other, tmp_path / "parts", offline(other), Judge(), Prices())


def test_failed_passages_are_tried_again(stories: Corpus, tmp_path: Path) -> None:
    plan = planned(stories, per_domain=12)
    flaky = Unsteady(offline(plan), fail=5)
    build_benchmark(plan, tmp_path / "bench", flaky, Judge(), Prices())
    failed = [json.loads(line) for line in (tmp_path / "bench" / JOURNAL).read_text().splitlines()[1:]]
    assert sum(line["failed"] for line in failed) == 5
    more = planned(stories, per_domain=36)
    again = Unsteady(offline(more))
    build_benchmark(more, tmp_path / "bench", again, Judge(), Prices())
    names = {item.name for item in items(tmp_path / "bench", "sea")}
    assert {line["passage"] for line in failed if line["failed"]} <= names


def test_too_few_documents_are_counted(stories: Corpus, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"too few passages for 400 in each domain: sea \d+, sky \d+") as caught:
        planned(stories, per_domain=400)
    assert "--per-domain" in str(caught.value.next_step)
    plan = planned(stories, per_domain=12)

    class Never(Judge):
        def judge(self, items: Any) -> Any:
            return [("not good enough", {}) for _ in items]

    with pytest.raises(CorpusError, match="too few usable items for 12 in each domain: sea 0, sky 0"):
        build_benchmark(plan, tmp_path / "bench", offline(plan), Never(), Prices())


def test_models_keep_what_the_strong_one_answers_and_the_weak_one_does_not(stories: Corpus, tmp_path: Path) -> None:
    tokenizer = corpus_tokenizer(stories)
    strong, weak = (
        ScoringModel(f"r{seed}", tiny_model(vocabulary=400, seed=seed, max_position_embeddings=128), tokenizer)
        for seed in (1, 2)
    )
    plan = planned(stories, per_domain=1)
    summary = build_benchmark(plan, tmp_path / "bench", offline(plan), Judge(strong, weak), Prices())
    assert set(summary["domains"]["sea"]["dropped"]) <= {
        "the strong model answers it wrongly",
        "the weak model answers it correctly",
    }
    for item in items(tmp_path / "bench", "sea"):
        right = {}
        for reader in (strong, weak):
            (after,), (alone,) = reader.nats([item]), reader.nats([replace(item, context="")])
            right[reader.name] = int(np.argmax(alone - after)) == item.label
        assert right == {"r1": True, "r2": False}
        assert item.provenance["strong"]["margin"] > 0 > item.provenance["weak"]["margin"]


def test_a_strong_model_that_ignores_the_first_half_answers_nothing(stories: Corpus, tmp_path: Path) -> None:
    class Blind(ScoringModel):
        def nats(self, items: Any) -> Any:
            return [np.array([float(sum(map(ord, choice))) for choice in item.choices]) for item in items]

    plan = planned(stories, per_domain=16)
    build_benchmark(plan, tmp_path / "bench", offline(plan), Judge(), Prices())
    found = items(tmp_path / "bench", "sea")
    reasons = [reason for reason, _ in Judge(strong=Blind("blind", None, None)).judge(found)]
    assert reasons == ["the strong model answers it wrongly"] * 16
    assert [reason for reason, _ in Judge(weak=Blind("blind", None, None)).judge(found)] == [None] * 16


def test_a_local_model_continues_corrupted_halves_the_same_way_each_time(stories: Corpus) -> None:
    plan = planned(stories)
    neighbors = {domain: Neighbors.of(passages) for domain, passages in plan.passages.items()}
    model = tiny_model(vocabulary=400, max_position_embeddings=256)
    passage = plan.passages["sea"][3]
    made = [Local("tiny", model, corpus_tokenizer(stories), neighbors, seed=4).make(passage, 3) for _ in range(2)]
    assert made[0] == made[1]
    assert len({wrong.text for wrong in made[0].wrong}) == 3
    for wrong in made[0].wrong:
        assert 0 < len(wrong.text) <= len(passage.second.strip())
        assert passage.first.startswith(wrong.source["corrupted"][:20])
        assert wrong.source["corrupted"] != passage.first


def test_choices_that_are_nearly_the_same_or_too_short_make_no_item() -> None:
    passage = Passage("web", 0, 0, 0, "It rained all night.", " The river rose and by dawn the bridge was gone.")
    near = WrongChoice("The river rose and by dawn the bridge was lost.", {})
    assert make_item(passage, GeneratedChoices([near]), seed=1) == "two choices are nearly the same"
    assert (
        make_item(passage, GeneratedChoices([WrongChoice("No one came.", {})]), seed=1)
        == "a wrong choice is less than half as long"
    )


def test_the_command_builds_and_refuses(stories: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [
        "benchmark",
        "build",
        str(stories.folder),
        str(tmp_path / "bench"),
        "--per-domain",
        "8",
        "--context-chars",
        str(HALF),
    ]
    result = CliRunner().invoke(group, [*common, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["domains"]["sky"]["items"] == 8
    calls = [
        "--generator",
        "openai:http://localhost:9/v1",
        "--endpoint-model",
        "m",
        "--price-in",
        "1",
        "--price-out",
        "2",
    ]
    estimate = CliRunner().invoke(group, [*common, *calls, "--estimate"])
    assert estimate.stdout.startswith("about 16 requests, ")
    assert "$0.0" in estimate.stdout
    for arguments, message in [
        (["--generator", "oracle"], "--generator is 'oracle'"),
        (["--generator", "openai:http://localhost:9/v1"], "needs the name of a model"),
        (["--generator", "openai:ftp://x", "--endpoint-model", "m"], "is not a http(s) address"),
        (["--max-cost", "3"], "--max-cost needs the endpoint's prices"),
        (["--seed", "18"], "created with other settings; different: seed"),
        (["--per-domain", "900"], "too few passages for 900 in each domain"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main([*common, *arguments])
        error = capsys.readouterr().err
        assert stop.value.code == 2, error
        assert message in error
