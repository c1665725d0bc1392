"""Reference losses from a file of finished models: numbers at the target's size, kept in the run's recipe."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml

from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, LossTableError, StateError
from drpruning.loss_table import read_size_losses
from drpruning.pruning import Target, parameter_count
from drpruning.records import Evaluated, RunEnded, read_records
from drpruning.run_folder import RunFolder
from drpruning.train import stages
from drpruning.train.loop import Interrupted
from drpruning.train.preflight import check_recipe, with_reference_losses
from drpruning.train.run import train
from drpruning.train.stored_recipe import open_run_folder
from tests.train.conftest import Recipe

DOMAINS = ["sums", "words", "records"]


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    rows = [f"{P},{1 + 50 * P**-0.3!r},{2 + 9 * P**-0.2!r},{1 + 70 * P**-0.4!r}" for P in (10**5, 10**6, 10**7)]
    path = tmp_path / "sizes.csv"
    path.write_text("\n".join([",".join(["params", *DOMAINS]), *rows]))
    return path


def test_the_losses_are_those_at_the_size_of_the_target(recipe: Recipe, corpus_folder: Path, sizes: Path) -> None:
    config = recipe(mixture={"reference_loss": str(sizes)})
    source = check_recipe(config, Corpus.open(corpus_folder))
    count = parameter_count(source, Target(layers=2, hidden=24, heads=2, intermediate=32).resolve(source))
    expected = [1 + 50 * count**-0.3, 2 + 9 * count**-0.2, 1 + 70 * count**-0.4]
    losses = with_reference_losses(config, source).mixture.reference_loss
    assert isinstance(losses, dict)
    assert list(losses) == DOMAINS
    # Rounded to four digits, and the law is an extrapolation by a factor of 10 of an exact fit
    assert list(losses.values()) == pytest.approx(expected, rel=1e-4)
    assert losses == read_size_losses(sizes).reference_losses(count)
    assert with_reference_losses(recipe(), source) == recipe()


def test_the_run_keeps_the_numbers_and_resumes_without_the_file(recipe: Recipe, tmp_path: Path, sizes: Path) -> None:
    config = recipe(mixture={"reference_loss": str(sizes), "predictions": "lower"})
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config, folder, stop=lambda: True)
    stored = yaml.safe_load((folder / "recipe.yaml").read_text())["mixture"]["reference_loss"]
    assert list(stored) == DOMAINS
    sizes.unlink()
    train(config, folder, resume=True)
    records = list(read_records(folder / "metrics.jsonl"))
    assert any(isinstance(item, RunEnded) for item in records)
    measured = [item for item in records if isinstance(item, Evaluated) and item.reference_loss]
    assert measured[0].reference_loss == pytest.approx(stored)  # of the prune stage, before there are predictions


def test_a_run_with_numbers_is_not_taken_up_with_base(recipe: Recipe, tmp_path: Path) -> None:
    losses = dict.fromkeys(DOMAINS, 2.0)
    open_run_folder(RunFolder(tmp_path / "run"), recipe(mixture={"reference_loss": losses}), resume=False)
    with pytest.raises(StateError, match=r"mixture\.reference_loss"):
        open_run_folder(RunFolder(tmp_path / "run"), recipe(), resume=True)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, ConfigError, "mixture.reference_loss: there is no file"),
        ("params,sums,words\n1e6,2,2\n1e7,1,1\n", LossTableError, "has no losses of domain 'records'"),
        ("params,sums,words,records\n1e6,2,2,2\n", LossTableError, "at 1 size; expected at least 2 sizes"),
        ("params,sums,words,records\n1e6,2,2,2\n1e7,1,1,2\n", LossTableError, "'records' has no law over sizes"),
    ],
)
def test_a_file_that_gives_no_losses_is_refused_before_anything_is_written(
    recipe: Recipe, tmp_path: Path, content: str | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "sizes.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        train(recipe(mixture={"reference_loss": str(path)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Alive:
    """Masked models and optimizers that are alive while a model is loaded to be measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[str] = []
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        build, optimize, load = stages.masked_model, stages.make_optimizer, stages.load_for_evaluation

        def noted(made: Any) -> Any:
            self.seen.add(made)
            return made

        def load_for_evaluation(run: stages.Run, folder: str) -> Any:
            gc.collect()
            assert not list(self.seen)
            self.loaded.append(Path(folder).name if Path(folder).name in ("pruned", "export") else "base")
            return load(run, folder)

        monkeypatch.setattr(stages, "masked_model", lambda *args: noted(build(*args)))
        monkeypatch.setattr(stages, "make_optimizer", lambda *args: noted(optimize(*args)))
        monkeypatch.setattr(stages, "load_for_evaluation", load_for_evaluation)


@pytest.mark.parametrize("working", [["prune", "continue"], ["continue"]])
def test_models_are_measured_once_and_with_nothing_of_a_stage_in_memory(
    working: list[str], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = Alive(monkeypatch)
    short = {stage: {"steps": 2} for stage in ("pretrain", "prune", "continue")}
    train(recipe(mixture={"reference_loss": "base", "stages": working}, **short), tmp_path / "run")
    assert alive.loaded == ["base", "pruned", "export"]


def test_a_run_killed_after_the_base_was_measured_has_the_same_reference_losses(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {stage: {"steps": 2} for stage in ("pretrain", "prune", "continue")}
    config = recipe(mixture={"reference_loss": "base"}, **short)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_prune_into", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            train(config, tmp_path / "broken")
    alive = Alive(monkeypatch)
    train(config, tmp_path / "broken", resume=True)
    assert alive.loaded == ["base", "pruned", "export"]
    whole, broken = (
        [
            record
            for record in read_records(tmp_path / name / "metrics.jsonl")
            if isinstance(record, Evaluated) and record.stage != "pretrain"  # the second run finds the base trained
        ]
        for name in ("whole", "broken")
    )
    assert whole == broken
