"""A run with a named reference ratio: its folder holds the shares, resumes with the name, and has an average."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.errors import StateError, WeightError
from drpruning.mixture.static import average_mixture, drawn_tokens, static_mixture
from drpruning.records import Evaluated, Incident, JsonlSink, RunStarted, StepTaken, read_records
from drpruning.run_folder import RunFolder
from drpruning.train.loop import Interrupted
from drpruning.train.run import train
from drpruning.train.stored_recipe import open_run_folder
from tests.train.conftest import Recipe


def test_the_run_folder_holds_shares_and_resumes_with_the_name(
    recipe: Recipe, corpus_folder: Path, tmp_path: Path
) -> None:
    config = recipe(
        pretrain={"steps": 2, "mixture": "natural"},
        prune={"steps": 4},
        mixture={"delta": 0.5},
        **{"continue": {"steps": 4}},
    )
    named = config.model_copy(update={"data": config.data.model_copy(update={"reference_ratio": "temperature:0.5"})})
    calls = iter([False] * 5 + [True])
    with pytest.raises(Interrupted):
        train(named, tmp_path / "run", stop=lambda: next(calls))
    train(named, tmp_path / "run", resume=True)

    sizes = Corpus.open(corpus_folder).tokens()
    ratio = static_mixture("temperature:0.5", sizes)
    folder = RunFolder(tmp_path / "run")
    assert folder.read_recipe()["data"]["reference_ratio"] == ratio
    assert folder.read_recipe()["pretrain"]["mixture"] == static_mixture("natural", sizes)
    records = list(read_records(folder.metrics))
    assert isinstance(records[0], RunStarted)
    assert records[0].reference_ratio == ratio
    shares = ", ".join(f"{domain} {share:.3f}" for domain, share in ratio.items())
    details = [each.detail for each in records if isinstance(each, Incident) and each.what == "static mixture"]
    assert details[0] == f"data.reference_ratio temperature:0.5: {shares}"
    assert details[1].startswith("pretrain.mixture natural: ")
    assert len(details) == 2

    # the average is of the rows drawn in the stages prune and continue; steps of both processes count once
    evaluations = [each for each in records if isinstance(each, Evaluated) and each.stage != "pretrain"]
    drawn = drawn_tokens(records)
    assert sum(drawn.values()) == config.tokens("prune", "continue")
    planned = dict.fromkeys(ratio, 0.0)
    for now, after in pairwise(evaluations):
        if now.stage == after.stage:
            for domain in planned:
                planned[domain] += now.weights[domain] * (after.tokens - now.tokens)
    for domain, tokens in drawn.items():  # balanced draws: within a row of its weight in each span of two steps
        assert tokens == pytest.approx(planned[domain], abs=32 * len(evaluations))

    average = average_mixture(tmp_path / "run")
    assert average == pytest.approx({domain: tokens / sum(drawn.values()) for domain, tokens in drawn.items()})

    other = config.model_copy(update={"data": config.data.model_copy(update={"reference_ratio": "uniform"})})
    with pytest.raises(StateError, match=r"different: data\.reference_ratio\."):
        train(other, tmp_path / "run", resume=True)


def test_shares_that_differ_in_the_last_bits_are_those_of_the_folder(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(pretrain={"mixture": {"sums": 0.5, "words": 0.3, "records": 0.2}})
    folder = RunFolder(tmp_path / "run")
    open_run_folder(folder, config, resume=False)

    def with_change(by: float) -> RunConfig:
        shares = {"sums": 0.7 + by, "words": 0.2 - by, "records": 0.1}
        mixture = {"sums": 0.5 + by, "words": 0.3 - by, "records": 0.2}
        return recipe(data={"reference_ratio": shares}, pretrain={"mixture": mixture})

    assert with_change(1e-12).hash() != config.hash()
    assert open_run_folder(folder, with_change(1e-12), resume=True) == config
    with pytest.raises(StateError, match=r"different: data\.reference_ratio\.sums, .*pretrain\.mixture\.sums"):
        open_run_folder(folder, with_change(1e-7), resume=True)


def test_an_average_counts_repeated_steps_once_and_needs_all_domains(tmp_path: Path) -> None:
    step = StepTaken(
        stage="prune", step=1, tokens=64, loss=1.0, learning_rate=0.1, grad_norm=1.0, tokens_per_second=1.0,
        domain_tokens={"web": 32, "code": 32},
    )  # fmt: skip
    started = RunStarted(
        name="r", recipe_hash="", strategy="constant", seed=1, domains=["web", "code"], reference_ratio={}
    )
    steps = [
        replace(step, stage="pretrain", domain_tokens={"web": 640}),
        step,
        replace(step, domain_tokens={"web": 64}),
        replace(step, stage="continue", domain_tokens={"web": 32, "code": 96}),
    ]
    assert drawn_tokens([started, *steps]) == {"web": 96, "code": 96}
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for record in [started, *steps[:3]]:
        sink.write(record)
    sink.close()
    with pytest.raises(WeightError, match="drew nothing from domain 'code'"):
        average_mixture(tmp_path)
