"""Comparisons as swarms: rows, left-out methods, effects of seeds, and the loop from a design to a mixture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.comparison.methods import Method
from drpruning.comparison.results import DocumentSums, Results, RunResult, write_results
from drpruning.comparison.swarm import base_losses, read_comparison, swarm_of, write_design
from drpruning.corpus import Corpus
from drpruning.errors import StateError
from drpruning.mixture.static import static_mixture
from drpruning.records import ModelMeasured, read_records
from drpruning.swarm import propose
from tests.train.conftest import Recipe

METHODS = {
    "constant": Method(strategy="constant"),
    "moving": Method(set={"mixture.rho": 0.2}, times={"continue.eval_every": 2}),
    "even": Method(strategy="constant", set={"data.reference_ratio": "uniform"}),
    "faster": Method(set={"continue.learning_rate": 0.1}),
    "scratch": Method(strategy="constant", scratch=True),
    "other": Method(model="somewhere/model"),
}
DRAWN = {"constant": (80, 20), "moving": (60, 40), "even": (50, 50)}


def run_result(method: str, seed: int, effect: float) -> RunResult:
    drawn = dict(zip(("web", "code"), DRAWN.get(method, (80, 20)), strict=True))
    losses = {domain: 3 - tokens / 100 + effect for domain, tokens in drawn.items()}
    documents = {domain: DocumentSums(tokens=[1], nats=[loss]) for domain, loss in losses.items()}
    return RunResult(
        method=method,
        seed=seed,
        parameters=10,
        seconds=1.0,
        recovered=losses,
        documents=documents,
        points=[],
        drawn={} if method == "other" else drawn,
    )


@pytest.fixture
def results() -> Results:
    """Return results of two seeds, the second with higher losses; the run of ``even`` with the first seed failed."""
    runs = [run_result(name, seed, effect) for name in METHODS for seed, effect in ((1, 0.0), (2, 0.5))]
    return Results(
        name="made_up",
        recipe={},
        environment={},
        methods=METHODS,
        seeds=[1, 2],
        domains=["web", "code"],
        reference_ratio={"web": 0.8, "code": 0.2},
        base={1: {"web": 1.0, "code": 2.0}, 2: {"web": 2.0, "code": 2.0}},
        base_documents={},
        base_parameters=20,
        runs=[run for run in runs if (run.method, run.seed) != ("even", 1)],
    )


def test_a_row_is_a_method_without_the_effects_of_its_seeds(results: Results) -> None:
    swarm, left_out = swarm_of(results)
    assert swarm.runs == ("constant", "moving", "even")
    assert left_out == {
        "faster": "sets continue.learning_rate",
        "scratch": "trained from new weights",
        "other": "a model that is not trained",
    }
    assert swarm.mixtures.tolist() == [[0.8, 0.2], [0.6, 0.4], [0.5, 0.5]]
    np.testing.assert_allclose(swarm.losses, 3.25 - swarm.mixtures)  # 0.25 is the mean effect of the seeds
    assert swarm.tokens.tolist() == [100, 100, 100]
    assert base_losses(results) == {"web": 1.5, "code": 2.0}


def test_the_effects_of_seeds_need_no_method_with_all_seeds(results: Results) -> None:
    pairs = {"constant": (1, 2), "moving": (2, 3), "even": (4,)}  # no other method has run with seed 4
    effects = {1: 0.0, 2: 0.5, 3: -0.2, 4: 1.0}
    runs = [run_result(name, seed, effects[seed]) for name, seeds in pairs.items() for seed in seeds]
    swarm, _ = swarm_of(results.model_copy(update={"runs": runs, "seeds": [1, 2, 3, 4]}))
    np.testing.assert_allclose(swarm.losses, 3.0 + np.array([[0.1], [0.1], [1.0]]) - swarm.mixtures)


def test_a_method_without_a_finished_run_is_named(results: Results) -> None:
    runs = [run for run in results.runs if run.method != "even"]
    swarm, left_out = swarm_of(results.model_copy(update={"runs": runs}))
    assert swarm.runs == ("constant", "moving")
    assert left_out["even"] == "no finished run"


def test_two_rows_at_least(results: Results) -> None:
    few = results.model_copy(update={"runs": results.of("constant")})
    with pytest.raises(StateError, match="1 methods of 'made_up' differ in the mixture alone"):
        swarm_of(few)


def test_the_command_reads_a_folder_of_results(results: Results, tmp_path: Path) -> None:
    file = write_results(results, tmp_path)
    assert read_comparison(tmp_path) == read_comparison(file) == results
    found = CliRunner().invoke(group, ["mix", str(tmp_path), "--reference-loss", "base", "--rho", "0.1", "--json"])
    assert found.exit_code == 0, found.output
    assert "left out: faster, sets continue.learning_rate" in found.stderr
    body = json.loads(found.stdout)
    assert body["domains"]["web"]["prior"] == 0.8  # that of the comparison
    assert body["support"] != "supported"
    with pytest.raises(StateError, match=r"has no results\.json"):
        read_comparison(tmp_path / "empty" / "results.json")


def test_a_design_is_a_file_of_methods(tmp_path: Path) -> None:
    tokens = {"web": 9e9, "code": 1e8, "math": 1e9}
    design = propose(
        {"web": 0.8, "code": 0.1, "math": 0.1}, 12, domain_tokens=tokens, run_tokens=1e9, target_tokens=4e9
    )
    write_design(tmp_path / "design.yaml", design, domain_tokens=tokens, run_tokens=1e9, target_tokens=4e9)
    text = (tmp_path / "design.yaml").read_text()
    assert "# Not matched: runs of 1e+09 tokens repeat text 4 times less often" in text
    methods = yaml.safe_load(text)["methods"]
    assert next(iter(methods)) == "mixture-01"
    assert len(methods) == 12
    for method, mixture in zip(methods.values(), design.mixtures, strict=True):
        shares = method["set"]["data.reference_ratio"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
        assert min(shares.values()) > 0
        np.testing.assert_allclose(list(shares.values()), mixture, atol=1e-5)


def test_a_design_is_compared_and_mixed_without_certainty(
    recipe: Recipe, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRPRUNING_CACHE", str(tmp_path / "cache"))
    config = recipe(
        pretrain={"steps": 2, "seed": 5},
        prune=None,
        mixture={"strategy": "constant", "stages": ["continue"]},
        training={"final_eval_tokens": 256},
        **{"continue": {"steps": 3, "eval_every": 3}},
    )
    small, design, out = (tmp_path / name for name in ("small.yaml", "design.yaml", "out"))
    small.write_text(config.to_yaml())

    def command(*words: object) -> str:
        found = CliRunner().invoke(group, [str(word) for word in words], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.stdout

    command("mix", "--design", 8, "--recipe", small, "--methods-file", design)
    body = yaml.safe_load(design.read_text())
    body["methods"]["natural"] = {"strategy": "constant", "set": {"data.reference_ratio": "natural"}}
    design.write_text(yaml.safe_dump(body, sort_keys=False))
    command("compare", small, "--methods", design, "--seeds", 1, "--out", out, "--jobs", 2)
    shares = {
        name: each["set"]["data.reference_ratio"]
        for name, each in yaml.safe_load(design.read_text())["methods"].items()
    }
    shares["natural"] = static_mixture("natural", Corpus.open(corpus_folder).tokens())
    results = read_comparison(out)
    records = [record for name in shares for record in read_records(out / "runs" / name / "seed-17" / "metrics.jsonl")]
    bases = {each.path for each in records if isinstance(each, ModelMeasured) and each.model == "base"}
    assert len(bases) == 1  # although the reference ratios differ
    assert results.reference_ratio == config.reference_ratio
    assert len(results.runs) == 9
    for run in results.runs:
        total = sum(run.drawn.values())
        assert total == config.tokens("continue")
        for domain, tokens in run.drawn.items():  # balanced draws: less than one row from the share
            assert abs(tokens - shares[run.method][domain] * total) < config.data.seq_len
    body = json.loads(command("mix", out, "--recipe", small, "--reference-loss", "base", "--rho", "0.1", "--json"))
    assert {name: entry["prior"] for name, entry in body["domains"].items()} == config.reference_ratio
    assert body["support"] in ("uncertain", "unsupported")
    assert any("9 runs determine laws of 7 parameters; expected at least 14" in reason for reason in body["reasons"])

    section = command("mix", out, "--recipe", small, "--yaml", "--plot", tmp_path / "trade.svg")
    assert section.startswith(f"# {body['support']}: ")
    ratio = yaml.safe_load(section)["data"]["reference_ratio"]
    small.write_text(
        yaml.safe_dump({**config.to_dict(), "data": {**config.to_dict()["data"], "reference_ratio": ratio}})
    )
    assert json.loads(command("plan", "cost", small, "--json"))["stages"]
    assert "weight of the prior (kl)" in (tmp_path / "trade.svg").read_text()
