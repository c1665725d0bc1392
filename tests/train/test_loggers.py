"""Loggers get the same numbers under the same names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from drpruning.config import RunConfig
from drpruning.errors import MissingExtraError
from drpruning.records import Evaluated, Incident, StepTaken
from drpruning.run_folder import RunFolder
from drpruning.train import preflight
from drpruning.train.loggers import open_logger, scalars
from drpruning.train.preflight import check_logger

STEP = StepTaken(
    stage="prune", step=5, tokens=500, loss=2.5, learning_rate=1e-3, grad_norm=1.0, tokens_per_second=100.0,
    domain_losses={"web": 2.0}, expected={"head": 0.25}, loader_wait=0.5,
)  # fmt: skip
EVALUATED = Evaluated(
    stage="prune", step=5, tokens=500, parameters=9.0, losses={"web": 2.0}, weights={"web": 1.0},
    reference_ratio={"web": 1.0},
)  # fmt: skip
LOGGED = {
    "prune/loss": 2.5,
    "prune/learning_rate": 1e-3,
    "prune/grad_norm": 1.0,
    "prune/tokens_per_second": 100.0,
    "prune/loader_wait": 0.5,
    "prune/loss/web": 2.0,
    "prune/sparsity/head": 0.25,
}


def test_scalars_of_records() -> None:
    assert scalars(STEP) == LOGGED
    assert scalars(EVALUATED)["prune/held_out_loss/web"] == 2.0
    assert scalars(Incident(what="resumed", detail="")) == {}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: tiny\nseed: 3\n")
    return tmp_path / "run"


def test_tensorboard(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = open_logger("tensorboard", RunFolder(run))
    for record in (STEP, EVALUATED, Incident(what="resumed", detail="")):
        logger.write(record)
    logger.close()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = {tag: events.Scalars(tag)[0] for tag in events.Tags()["scalars"]}
    assert LOGGED.keys() <= found.keys()
    assert all(math.isclose(found[name].value, value, rel_tol=1e-6) for name, value in LOGGED.items())
    assert found["prune/weight/web"].step == 5


class Recorder:
    """A substitute for trackio and wandb, which records their calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def init(self, **arguments: Any) -> Recorder:
        self.calls.append(("init", arguments))
        return self

    def log(self, numbers: dict[str, float], step: int | None = None) -> None:
        self.calls.append(("log", (numbers, step)))

    def define_metric(self, name: str, **arguments: Any) -> None:
        self.calls.append(("define_metric", name))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.mark.parametrize("kind", ["trackio", "wandb"])
def test_services_get_the_recipe_the_numbers_and_the_end(kind: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(__import__("sys").modules, kind, recorder)  # type: ignore[arg-type]
    logger = open_logger(kind, RunFolder(run))
    logger.write(STEP)
    logger.write(Incident(what="resumed", detail=""))
    logger.close()
    name, arguments = recorder.calls[0]
    assert name == "init"
    assert arguments["name"] == "run"
    assert arguments["resume"] == "allow"
    assert arguments["config"] == {"name": "tiny", "seed": 3}
    logged = [value for name, value in recorder.calls if name == "log"]
    if kind == "trackio":
        assert logged == [(LOGGED, 5)]
    else:
        assert logged == [({**LOGGED, "prune/step": 5}, None)]
    assert recorder.calls[-1] == ("finish", None)


def test_a_logger_that_is_not_installed_is_an_error_before_anything_is_written(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drpruning.train.run import train

    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    config: RunConfig = recipe(training={"logger": "wandb"})
    with pytest.raises(MissingExtraError, match=r"pip install.*wandb"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_logger("none")
