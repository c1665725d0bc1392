"""Strategies that update between evaluations (ODM) and that train probes (Aioli): records, resume, replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drpruning.errors import ConfigError
from drpruning.records import Evaluated, MixtureUpdated, Record, StageEnded, StepTaken, read_records
from drpruning.report import write_report
from drpruning.train.loop import Interrupted
from drpruning.train.run import train
from tests.train.test_run import Recipe, stop_after, weights

ODM = {"strategy": "odm", "update_every": 2, "update_after_fraction": 0.0}
AIOLI = {"strategy": "aioli", "sweeps": 1, "probe_steps": 2, "round_fraction": 0.5}
STRATEGIES = {"odm": ODM, "aioli": AIOLI}


def scratch(recipe: Recipe, mixture: dict[str, Any], **stage: Any) -> Any:
    """Return a recipe that trains new weights for 16 steps, evaluated every 5."""
    return recipe(
        model={"source": "scratch"},
        prune=None,
        mixture={"stages": ["continue"], **mixture},
        **{"continue": {"steps": 16, "eval_every": 5, **stage}},
    )


def records_of(run: Path, *kinds: type[Record]) -> list[Any]:
    return [record for record in read_records(run / "metrics.jsonl") if isinstance(record, kinds)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_stopped_between_two_updates_resumes_to_the_same_bits_and_is_replayed(
    name: str, recipe: Recipe, tmp_path: Path
) -> None:
    config = scratch(recipe, STRATEGIES[name])
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", stop=stop_after(3))  # between two updates, and within a probe
    train(config, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    mixtures = [
        [(each.step, each.weights, each.status) for each in records_of(tmp_path / run, Evaluated, MixtureUpdated)]
        for run in ("whole", "parts")
    ]
    assert mixtures[0] == mixtures[1]
    train(scratch(recipe, {"strategy": "schedule", "schedule": str(tmp_path / "whole")}), tmp_path / "replay")
    assert weights(tmp_path / "replay") == weights(tmp_path / "whole")


def test_updates_between_evaluations_have_the_training_losses_since_the_last_one(
    recipe: Recipe, tmp_path: Path
) -> None:
    train(scratch(recipe, ODM), tmp_path / "run")
    records = records_of(tmp_path / "run", StepTaken, Evaluated, MixtureUpdated)
    updates = [record for record in records if isinstance(record, MixtureUpdated)]
    assert [record.step for record in updates] == [2, 4, 6, 8, 12, 14]  # 10 and 16 are evaluations
    assert {record.status for record in updates} == {"bandit"}
    since: list[StepTaken] = []
    for record in records:
        if isinstance(record, StepTaken):
            since.append(record)
            continue
        if isinstance(record, MixtureUpdated):
            for domain, loss in record.training_losses.items():
                parts = [(step.domain_losses or {}, step.domain_tokens or {}) for step in since]
                tokens = sum(counts.get(domain, 0) for _, counts in parts)
                total = sum(losses[domain] * counts[domain] for losses, counts in parts if domain in losses)
                assert loss == pytest.approx(total / tokens, rel=1e-12)
            assert {domain for step in since for domain in step.domain_losses or {}} == set(record.training_losses)
        since = []
    assert write_report(tmp_path / "run").is_file()


def test_probes_are_training_steps_with_an_evaluation_at_the_end_of_each(recipe: Recipe, tmp_path: Path) -> None:
    train(scratch(recipe, AIOLI), tmp_path / "run")
    assert [record.step for record in records_of(tmp_path / "run", StepTaken)] == list(range(1, 17))
    evaluated = records_of(tmp_path / "run", Evaluated)
    found = [(record.step, record.status) for record in evaluated]
    # A probe of each domain from step 0 and, in the second half, from step 10, whose end leaves no step: no round there
    assert found == [
        (0, "probing"),
        (2, "probing"),
        (4, "probing"),
        (5, "probing"),
        (6, "interaction"),
        (10, "interaction"),
        (15, "interaction"),
        (16, "interaction"),
    ]
    probed = [max(record.weights, key=record.weights.__getitem__) for record in evaluated[:3]]
    assert sorted(probed) == ["records", "sums", "words"]
    for record, domain in zip(evaluated[:3], probed, strict=True):
        assert record.weights == pytest.approx({name: 0.75 if name == domain else 0.125 for name in record.weights})
    assert evaluated[3].weights == evaluated[2].weights
    assert len({tuple(record.weights.values()) for record in evaluated[4:]}) == 1
    (ended,) = records_of(tmp_path / "run", StageEnded)
    assert ended.flops["probes"] / 6 == pytest.approx(ended.flops["training"] / 10)
    assert ended.charged_flops == ended.flops["probes"] + ended.flops["training"]


def test_a_stage_shorter_than_its_probes_is_refused_before_anything_is_written(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"continue.steps is 6; a round of probes of aioli takes 6 steps"):
        train(scratch(recipe, AIOLI, steps=6), tmp_path / "run")
    assert not (tmp_path / "run").exists()
