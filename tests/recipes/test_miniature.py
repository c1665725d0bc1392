"""Shipped recipes in miniature: what is the recipe's, what is scaled down, and that the verdicts can fail."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from drpruning.cli import group
from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.prepare.demo.synthetic import prepare_synthetic
from drpruning.recipes import load_recipe, parse_recipe, shipped_recipes
from drpruning.recipes.miniature import miniature
from drpruning.records import Evaluated, Kept, ModelMeasured, Record, RunEnded, read_records
from drpruning.report.verdicts import LARGEST_JUMP, RunVerdict, verdicts
from drpruning.train.optimizers.build import learning_rate
from drpruning.train.run import train

RECIPES = list(shipped_recipes())


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRPRUNING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def shortened(config: RunConfig, steps: int) -> RunConfig:
    """Return the same with ``steps`` steps in each stage."""
    body = config.to_dict()
    for name in config.stages:
        body[name] |= {"steps": steps, "eval_every": steps}
    return parse_recipe(body)


@pytest.mark.parametrize("name", RECIPES)
def test_the_optimisation_is_the_recipes(name: str) -> None:
    large, small = load_recipe(name), miniature(load_recipe(name))
    assert small.domains == large.domains
    assert small.data.reference_ratio == large.data.reference_ratio
    settings = large.mixture.settings() | {"max_epochs": None}
    assert small.mixture.settings() | {"max_epochs": None} == settings
    assert small.training.betas == large.training.betas
    sized = {"batch_size", "target", "protect"}
    if large.prune is not None:
        assert small.pruning.model_dump(exclude=sized) == large.prune.model_dump(exclude=sized)
        assert large.model.architecture is not None
        assert small.model.architecture is not None
        steps = {  # of which a size is a multiple
            "layers": 1,
            "hidden": small.pruning.target.heads,
            "heads": small.model.architecture.heads // (small.model.architecture.kv_heads or 1),
            "intermediate": 1,
        }
        for size, step in steps.items():
            whole, part = getattr(large.model.architecture, size), getattr(large.prune.target, size) or 0
            units = getattr(small.model.architecture, size)
            own = getattr(small.pruning.target, size) / units
            assert own == pytest.approx((part or whole) / whole, abs=0.5 * step / units)
            assert own < 1 or part in (0, whole)  # what the recipe prunes is pruned in miniature
    ours, theirs = small.continue_, large.continue_
    assert ours.steps == min(480, theirs.steps)
    assert ours.steps / ours.eval_every == pytest.approx(theirs.steps / theirs.eval_every, rel=0.1)
    for part in (0.3, 0.9):
        rates = [learning_rate(stage, round(part * stage.steps)) for stage in (ours, theirs)]
        assert rates[0] == pytest.approx(rates[1], rel=0.02)  # a step is 1/480 of a fall to a tenth
    assert miniature(large, continue_steps=960).continue_.steps == min(960, theirs.steps)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_in_miniature(name: str, tmp_path: Path) -> None:
    train(shortened(miniature(load_recipe(name)), 4), tmp_path / "run")
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert isinstance(records[-1], RunEnded)
    found = {verdict.name: verdict for verdict in verdicts(records)}
    assert found["finite"].passed
    assert ("targets" in found) == ("cut" in found) == (load_recipe(name).prune is not None)


def test_a_recipe_that_does_not_describe_its_source_has_no_miniature() -> None:
    with pytest.raises(ConfigError, match=r"has no model\.architecture"):
        miniature(load_recipe("llama2-7b-to-1.3b", ["model.architecture="]))


def test_the_command_prints_the_verdicts_and_fails_with_them(tmp_path: Path) -> None:
    arguments = ["train", "llama2-7b-to-1.3b", "--miniature", "--continue-steps", "2", "--out", str(tmp_path / "run")]
    shorter = ["--set", "prune.steps=20", "--set", "prune.eval_every=20"]
    result = CliRunner().invoke(group, [*arguments, *shorter, "--json"], catch_exceptions=False)
    assert result.exit_code == 1  # 20 steps do not reach the target
    body = json.loads(result.stdout)
    assert [verdict["name"] for verdict in body["verdicts"]] == ["targets", "cut", "finite"]
    assert not body["verdicts"][0]["passed"]
    assert CliRunner().invoke(group, ["train", "quickstart", "--continue-steps", "2"]).exit_code != 0


@pytest.mark.slow
def test_the_prune_stage_of_1_3b_ends_at_its_target_and_the_cut_costs_nothing(tmp_path: Path) -> None:
    train(miniature(load_recipe("llama2-7b-to-1.3b"), continue_steps=1), tmp_path / "run")
    found = verdicts(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert [verdict.name for verdict in found] == ["targets", "cut", "finite"]
    assert all(verdict.passed for verdict in found), found


def outcome(
    *, expected: float = 0.5, before: float = 2.0, after: float = 2.0, code: float = 2.0, recovered: float = 1.5
) -> list[Record]:
    shape = {"hidden": 8}
    return [
        Evaluated(
            stage="prune", step=1, tokens=1, parameters=1.0, losses={"web": before, "code": 2.0}, weights={"web": 1.0},
            reference_ratio={"web": 1.0}, excess_loss={}, divergence=0.0, status="",
        ),
        Kept(
            source=shape, target={"hidden": 4}, layers=[], hidden=[], heads=[], intermediate=[],
            expected={"hidden": expected},
        ),
        ModelMeasured(
            model="pruned", parameters=1, shape=shape, losses={}, evaluation_losses={"web": after, "code": code}
        ),
        ModelMeasured(model="recovered", parameters=1, shape=shape, losses={"web": recovered}, evaluation_losses={}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("records", "failed"),
    [
        (outcome(), []),
        (outcome(expected=0.4889), ["targets"]),
        (outcome(expected=0.5111), ["targets"]),
        (outcome(expected=0.4911, after=2.0 + LARGEST_JUMP / 2), []),
        (outcome(after=2.0 + 2 * LARGEST_JUMP), ["cut"]),
        (outcome(after=1.0), []),
        (outcome(recovered=math.nan), ["finite"]),
        (outcome(after=math.nan), ["cut", "finite"]),
        (outcome(code=math.nan), ["cut", "finite"]),
    ],
)
def test_each_verdict_can_fail(records: list[Record], failed: list[str]) -> None:
    found: list[RunVerdict] = verdicts(records)
    assert [verdict.name for verdict in found if not verdict.passed] == failed


def test_a_synthetic_corpus_is_a_function_of_its_domains(tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare_synthetic(tmp_path / name, ["web", "code"])
    prepare_synthetic(tmp_path / "one", ["web", "code"])  # costs nothing and changes nothing
    one, two = (Corpus.open(tmp_path / name) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    prepare_synthetic(tmp_path / "three", ["web", "prose"])
    assert Corpus.open(tmp_path / "three").fingerprint != one.fingerprint
