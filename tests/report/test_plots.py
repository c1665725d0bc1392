"""Figures and numbers in a notebook, and figures as files."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import drpruning as dp
from drpruning.cli.report import report
from drpruning.errors import MissingExtraError, StateError
from drpruning.records import Evaluated, StepTaken
from tests.report.synthetic import DOMAINS, synthetic, write_run


def test_metrics_are_typed_columns_of_every_row(run: Path) -> None:
    metrics = dp.read_metrics(run)
    steps = [record for record in synthetic() if isinstance(record, StepTaken)]
    assert metrics.steps.num_rows == len(steps)
    assert metrics.steps["stage"].tolist() == [record.stage for record in steps]
    assert metrics.steps["step"].dtype == np.int64
    assert metrics.steps["loss"].tolist() == [record.loss for record in steps]
    assert np.isnan(metrics.steps["expected/head"][-1])
    evaluated = [record for record in synthetic() if isinstance(record, Evaluated) and record.stage == "continue"]
    losses = metrics.evaluations.where("continue").group("losses")
    assert list(losses) == DOMAINS
    assert losses["math"].tolist() == [record.losses["math"] for record in evaluated]
    assert "losses/math" in repr(metrics.evaluations)


def test_metrics_of_no_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "started").mkdir()
    (tmp_path / "started" / "recipe.yaml").write_text("")
    cases = {"nowhere": "does not exist", "file": "is a file", ".": "not a run folder", "started": "no metrics.jsonl"}
    for name, message in cases.items():
        with pytest.raises(StateError, match=message) as refused:
            dp.read_metrics(tmp_path / name)
        assert "drpruning train" in str(refused.value.next_step)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_metrics_go_to_data_frames_where_those_are_installed(
    run: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = dp.read_metrics(str(run)).evaluations
    convert = getattr(table, f"to_{library}")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, library, None)
        with pytest.raises(MissingExtraError, match=library):
            convert()
    pytest.importorskip(library)
    assert list(convert().columns) == list(table)


def test_figures_are_drawn_where_there_is_data(run: Path, tmp_path: Path) -> None:
    plot = dp.Plots(dp.Run.open(run))
    losses = plot.losses()
    assert losses is not None
    assert len(losses.axes) == len(DOMAINS)
    drawn = [line.get_ydata() for line in losses.axes[0].lines]
    expected = [record.losses["python"] for record in synthetic() if isinstance(record, Evaluated)]
    assert any(len(line) > 5 and set(np.round(line, 9)) <= set(np.round(expected, 9)) for line in drawn)
    assert losses._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    empty = dp.Plots(dp.Run.open(write_run(tmp_path / "empty", [])))
    assert empty.losses() is None
    assert empty.names() == []


def test_every_figure_becomes_a_file(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(report, [str(run), "--figures", str(tmp_path / "figures")])
    assert result.exit_code == 0, result.output
    stems = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert stems == {
        "recovery", "outcome", "pareto", "losses", "held-out", "weights", "reference-ratio", "excess", "divergence",
        "sparsity", "multipliers-linear", "multipliers-quadratic", "training-loss", "throughput", "learning-rate",
        "gradient-norm", "kept-heads", "kept-intermediate", "kept-hidden",
    }  # fmt: skip
    assert result.output.split() == [
        str(tmp_path / "figures" / f"{stem}.{kind}") for stem in _order(result.output) for kind in ("png", "svg")
    ]
    assert (tmp_path / "figures" / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figures" / "losses.svg").read_text()


def test_twenty_domains_and_numbers_that_cannot_be_drawn(tmp_path: Path) -> None:
    names = [f"domain {at}" for at in range(20)]
    records = [
        Evaluated(
            stage="continue", step=step, tokens=step * 10**9, parameters=1.0,
            losses={name: 2.0 + at if at else math.nan for at, name in enumerate(names)},
            weights=dict.fromkeys(names, 0.05), reference_ratio=dict.fromkeys(names, 0.05), divergence=1e300,
        )
        for step in range(3)
    ]  # fmt: skip
    run = dp.Run.open(write_run(tmp_path / "run", records))
    losses = dp.Plots(run).losses()
    assert losses is not None
    assert len(losses.axes) == 19
    assert dp.Plots(run).divergence() is None
    weights = dp.Plots(run).weights()
    assert weights is not None
    assert len(weights.legends[0].get_texts()) == 20


def test_a_band_that_is_open_at_one_end_is_not_drawn(tmp_path: Path) -> None:
    records = [
        Evaluated(
            stage="continue", step=step, tokens=step * 10**9, parameters=1.0, losses={"web": 2.0, "code": 1.0},
            weights={}, reference_ratio={}, predicted_loss={"web": 1.9, "code": 0.9},
            predicted_band={"web": [1.8, math.inf], "code": [0.8, 1.0 if step else math.inf]},
        )
        for step in range(3)
    ]  # fmt: skip
    losses = dp.Plots(dp.Run.open(write_run(tmp_path / "run", records))).losses()
    assert losses is not None
    assert [len(ax.collections) for ax in losses.axes] == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "--figures", "F"], "at most one of --out, --figures, --json and --watch"),
        (["--watch", "--out", "P"], "at most one of --out, --figures, --json and --watch"),
        (["--out", "P", "--json"], "at most one of --out, --figures, --json and --watch"),
        (["--port", "8642"], "need --watch"),
        (["--host", "localhost", "--json"], "need --watch"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(report, [str(run), *options])
    assert result.exit_code == 2
    assert message in result.output
    assert not list(run.glob("*.html"))


def _order(output: str) -> list[str]:
    return list(dict.fromkeys(Path(line).stem for line in output.split()))
