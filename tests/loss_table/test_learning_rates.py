"""Learning rates next to the losses, and a whole schedule in a separate file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from drpruning import LearningRates, read_losses
from drpruning.errors import LossTableError
from drpruning.loss_table import read_learning_rates

WITH_RATES = "step,web,code,lr\n100,3.5,2.5,1e-4\n200,3.0,2.0,3e-4\n300,2.8,1.9,\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        WITH_RATES,
        "step,domain,loss,learning_rate\n100,web,3.5,1e-4\n100,code,2.5,1e-4\n200,web,3,3e-4\n300,web,2.8,\n",
        '{"step": 100, "web": 3.5, "lr": 1e-4}\n{"step": 200, "web": 3, "lr": 3e-4}\n{"step": 300, "web": 2}\n',
    ],
)
def test_a_column_of_rates_is_read_on_request(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    rates = read_losses(path, rates=True).rates
    assert rates is not None
    assert rates[:2].tolist() == [1e-4, 3e-4]
    assert math.isnan(rates[2])
    without = read_losses(path)
    assert without.rates is None
    assert without.domains == read_losses(path, rates=True).domains


def test_a_column_with_other_content_matters_only_on_request(tmp_path: Path) -> None:
    path = write(tmp_path, "step,web,lr\n100,3.5,low\n")
    assert read_losses(path).losses.tolist() == [[3.5]]
    with pytest.raises(LossTableError, match=r"line 2, column 'lr' holds 'low'; expected a learning rate"):
        read_losses(path, rates=True)


def test_a_table_without_rates_has_none(tmp_path: Path) -> None:
    rates = read_losses(write(tmp_path, "step,web\n100,3.5\n"), rates=True).rates
    assert rates is not None
    assert np.isnan(rates).all()


def test_a_schedule_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "step;lr\n0;0\n100;3e-4\n1000;3e-5\n")
    in_steps = read_learning_rates(path, counts_tokens=False, tokens_per_step=None)
    assert in_steps == LearningRates([0, 100, 1000], [0, 3e-4, 3e-5])
    in_tokens = read_learning_rates(path, counts_tokens=True, tokens_per_step=2000)
    assert in_tokens == LearningRates([0, 2e5, 2e6], [0, 3e-4, 3e-5])
    both = write(tmp_path, "iteration,consumed_tokens,learning-rate\n1,50,1\n2,80,2\n")
    assert read_learning_rates(both, counts_tokens=True, tokens_per_step=None) == LearningRates([50, 80], [1, 2])
    assert read_learning_rates(both, counts_tokens=False, tokens_per_step=None) == LearningRates([1, 2], [1, 2])


def test_of_a_row_for_every_step_enough_are_kept(tmp_path: Path) -> None:
    heights = [min(step / 37, 1.0) * (1 + math.cos(math.pi * step / 5000)) for step in range(5001)]
    path = write(tmp_path, "step,lr\n" + "".join(f"{step},{rate!r}\n" for step, rate in enumerate(heights)))
    schedule = read_learning_rates(path, counts_tokens=False, tokens_per_step=None)
    assert len(schedule.tokens) <= 1001
    assert max(schedule.rates) == max(heights)
    interpolated = np.interp(np.arange(5001), schedule.tokens, schedule.rates)
    np.testing.assert_allclose(interpolated[40:], heights[40:], atol=1e-3)


@pytest.mark.parametrize(
    ("text", "counts_tokens", "message"),
    [
        ("", False, "is not a CSV file of learning rates"),
        ('step,lr\n"1,2\n', False, "is not a CSV file of learning rates"),
        ("step,web\n1,2\n", False, "needs a column step and a column lr; its columns are step, web"),
        ("tokens,lr\n1,2\n", False, "needs a column step and a column lr"),
        ("step,lr\n1,2\n", True, "has steps, and the losses have tokens"),
        ("step,lr\n1,2,3\n", False, "line 2 has 3 cells; the header has 2"),
        ("step,lr\n1,-2\n", False, "line 2, column 'lr' holds '-2'; expected a learning rate"),
        ("step,lr\n1.5,2\n", False, "line 2, column 'step' holds '1.5'; expected a whole number"),
        ("step,lr\n2,1\n1,1\n", False, "is not a schedule: tokens of a schedule must be finite and increasing"),
        ("step,lr\n1,0\n", False, "is not a schedule: rates of a schedule"),
        ("step,lr\n", False, "is not a schedule: tokens and rates have shapes"),
    ],
)
def test_what_is_no_schedule(tmp_path: Path, text: str, counts_tokens: bool, message: str) -> None:
    with pytest.raises(LossTableError) as caught:
        read_learning_rates(write(tmp_path, text), counts_tokens=counts_tokens, tokens_per_step=None)
    assert message in str(caught.value)
