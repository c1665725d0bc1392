"""A comparison of tiny runs that is made once, and results made up without any run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from drpruning.comparison.methods import Method, choose_methods
from drpruning.comparison.results import DocumentSums, Point, Results, RunResult
from drpruning.comparison.runs import Comparison, Job
from drpruning.comparison.scheduler import ScheduleResult, run_jobs
from tests.train.conftest import Recipe, corpus_folder, recipe

__all__ = ["corpus_folder", "recipe"]

METHODS = """
methods:
  constant:
    strategy: constant
  moving:
    strategy: drpruning
    set: {mixture.delta: 0.5}
  wrong:
    strategy: sheared
    references: base
    shift: {sums: 0.5}
  mean:
    average_of: moving
  explodes:
    set: {prune.learning_rate: 1.0e+30}
"""


@pytest.fixture(scope="session")
def recipe_file(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    body = recipe(
        pretrain={"steps": 4, "seed": 5},
        prune={"steps": 4},
        training={"checkpoint_every": 2, "final_eval_tokens": 2048},
        **{"continue": {"steps": 4}},
    ).to_dict()
    file = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    file.write_text(yaml.safe_dump(body))
    return file


@pytest.fixture(scope="session")
def comparison(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Return a comparison without runs."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "methods.yaml").write_text(METHODS)
    methods = choose_methods(
        ["constant", "mean", "moving", "wrong", "sheared", "explodes"], [str(folder / "methods.yaml")]
    )
    return Comparison(str(recipe_file), [], methods, [17, 18], folder / "out")


@pytest.fixture(scope="session")
def progress(
    comparison: Comparison, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ScheduleResult, list[tuple[str, str]]]:
    """Return the outcomes of it, and what was outcomes."""
    outcomes: list[tuple[str, str]] = []

    def collect_outcome(job: Job, outcome: str, _detail: str) -> None:
        outcomes.append((job.label, outcome))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRPRUNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        return run_jobs(comparison, parallel=2, on_end=collect_outcome, stop=lambda: False), outcomes


Sampled = Callable[..., Results]


@pytest.fixture(scope="session")
def sampled() -> Sampled:
    """Makes results of two methods whose true difference is known; noise of seeds, documents, and both together."""
    return sample


def sample(
    generator: np.random.Generator,
    *,
    seeds: int,
    effect: float = 0.0,
    of_seeds: float = 0.02,
    of_documents: float = 0.1,
    of_both: float = 0.05,
    documents: int = 20,
) -> Results:
    domains = ["web", "code"]
    tokens = {domain: generator.integers(50, 200, documents) for domain in domains}
    level = {domain: generator.normal(3.0, 0.5, documents) for domain in domains}
    favour = {domain: generator.normal(0.0, of_documents, documents) for domain in domains}

    def measured(losses: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, DocumentSums]]:
        nats = {domain: losses[domain] * tokens[domain] for domain in domains}
        return (
            {domain: float(nats[domain].sum() / tokens[domain].sum()) for domain in domains},
            {domain: DocumentSums(tokens=tokens[domain].tolist(), nats=nats[domain].tolist()) for domain in domains},
        )

    base, base_documents = measured(level)
    runs = []
    for seed in range(seeds):
        common = {domain: generator.normal(0.2, 0.1) for domain in domains}
        own = {domain: generator.normal(0.0, of_seeds) for domain in domains}
        for method in ("constant", "moving"):
            losses = {}
            for domain in domains:
                losses[domain] = level[domain] + common[domain] + generator.normal(0.0, of_both, documents)
                if method == "moving":
                    losses[domain] = losses[domain] + effect + own[domain] + favour[domain]
            recovered, by_document = measured(losses)
            points = [
                Point(
                    stage="continue",
                    tokens=at * 100,
                    losses={k: v + 1 - at / 2 for k, v in recovered.items()},
                    weights=weights,
                )
                for at, weights in (
                    (0, {"web": 0.8, "code": 0.2}),
                    (1, {"web": 0.6, "code": 0.4}),
                    (2, {"web": 0.1, "code": 0.9}),
                )
            ]
            runs.append(
                RunResult(
                    method=method,
                    seed=seed,
                    parameters=1000,
                    seconds=60.0,
                    recovered=recovered,
                    documents=by_document,
                    points=points,
                )
            )
    return Results(
        name="made_up",
        recipe={},
        environment={},
        methods={"constant": Method(strategy="constant"), "moving": Method(what="50% | of_all")},
        seeds=list(range(seeds)),
        domains=domains,
        reference_ratio={"web": 0.8, "code": 0.2},
        base=dict.fromkeys(range(seeds), base),
        base_documents=dict.fromkeys(range(seeds), base_documents),
        base_parameters=2000,
        runs=runs,
    )
