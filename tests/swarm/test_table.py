"""Reading swarms: the three text forms, names, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drpruning.errors import LossTableError, WeightError
from drpruning.swarm import Swarm, read_swarm


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_one_file(tmp_path: Path) -> None:
    text = "run,mixture/web,mixture/code,loss/web,loss/mmlu,tokens\nx,.8,.2,3.1,1.2,9e8\ny,.5,.5,3.3,,3e8\n"
    swarm = read_swarm(write(tmp_path, "swarm.csv", text))
    assert (swarm.domains, swarm.targets, swarm.runs) == (("web", "code"), ("web", "mmlu"), ("x", "y"))
    np.testing.assert_array_equal(swarm.mixtures, [[0.8, 0.2], [0.5, 0.5]])
    np.testing.assert_array_equal(swarm.losses, [[3.1, 1.2], [3.3, np.nan]])
    np.testing.assert_allclose(swarm.amounts, [[0.8, 0.2], [0.5 / 3, 0.5 / 3]])


def test_files_of_regmix(tmp_path: Path) -> None:
    mixtures = write(tmp_path, "m.csv", "index,train_the_pile_arxiv,train_the_pile_pile_cc\n1,0.204,0.799\n2,1.0,0.0\n")
    losses = write(
        tmp_path, "l.csv", "index,metric/the_pile_arxiv_val_loss,metric/the_pile_pile_cc_val_loss\n2,7,8\n1,5,6\n"
    )
    swarm = read_swarm(mixtures, losses)
    assert (swarm.domains, swarm.targets) == (("arxiv", "pile_cc"), ("arxiv", "pile_cc"))
    np.testing.assert_array_equal(swarm.losses, [[5, 6], [7, 8]])  # matched by index
    np.testing.assert_allclose(swarm.mixtures.sum(axis=1), 1, rtol=1e-15)  # 1.003 was rounding


def test_tokens_may_be_in_the_file_of_the_losses(tmp_path: Path) -> None:
    mixtures = write(tmp_path, "m.csv", "run,a,b\nx,.4,.6\ny,.5,.5\n")
    losses = write(tmp_path, "l.csv", "run,t,tokens\ny,1,3e8\nx,2,9e8\n")
    assert read_swarm(mixtures, losses).tokens.tolist() == [9e8, 3e8]
    both = write(tmp_path, "both.csv", "run,a,b,tokens\nx,.4,.6,1\ny,.5,.5,2\n")
    assert read_swarm(both, losses).tokens.tolist() == [1, 2]


def test_files_of_olmix(tmp_path: Path) -> None:
    mixtures = write(tmp_path, "ratios.csv", "run,name,index,dclm,wiki\nab,s-0,0,.4,.6\ncd,s-1,1,.7,.3\n")
    losses = write(tmp_path, "metrics.csv", "run,name,index,arc_bpb,mmlu_bpb\nab,s-0,0,1.2,1.4\ncd,s-1,1,1.1,1.3\n")
    swarm = read_swarm(mixtures, losses)
    assert (swarm.domains, swarm.targets, swarm.runs) == (("dclm", "wiki"), ("arc_bpb", "mmlu_bpb"), ("s-0", "s-1"))


def test_equal_names_are_kept_whole(tmp_path: Path) -> None:
    mixtures = write(tmp_path, "m.csv", "run,web_a,web_b\nx,.4,.6\n")
    losses = write(tmp_path, "l.csv", "run,web_a,web_b\nx,2,3\n")
    swarm = read_swarm(mixtures, losses)
    assert swarm.domains == swarm.targets == ("web_a", "web_b")


def test_columns_with_a_prefix_of_two_files(tmp_path: Path) -> None:
    both = write(tmp_path, "swarm.csv", "run,mixture/en_web,mixture/en_code,loss/en_web,loss/en_code\nx,.4,.6,2,3\n")
    design = write(tmp_path, "design.csv", "run,mixture/en_web,mixture/en_code\nx,.4,.6\n")
    losses = write(tmp_path, "l.csv", "run,en_web_loss,en_code_loss\nx,2,3\n")
    for shares, values, targets in (
        (both, both, ("en_web", "en_code")),
        (design, both, ("en_web", "en_code")),
        (design, losses, ("en_web_loss", "en_code_loss")),
    ):
        swarm = read_swarm(shares, values)
        assert (swarm.domains, swarm.targets) == (("en_web", "en_code"), targets)
        np.testing.assert_array_equal(swarm.losses, [[2, 3]])
    with pytest.raises(LossTableError, match=r"design\.csv has no column of losses"):
        read_swarm(both, design)
    with pytest.raises(LossTableError, match="expected a file, found none"):
        read_swarm(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("run,mixture/a,loss/a\n", "no rows"),
        ("run,a,b\nx,1,2\n", "0 columns mixture/<domain> and 0 columns loss/<target>"),
        ("run,mixture/a,loss/a\nx,one,2\n", r"line 2, column 'mixture/a' holds 'one'"),
        ("run,mixture/a,loss/a\nx,1\n", "line 2 has 2 cells; the header has 3"),
    ],
)
def test_text_that_is_no_swarm(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LossTableError, match=message):
        read_swarm(write(tmp_path, "swarm.csv", text))


def test_rows_that_do_not_match(tmp_path: Path) -> None:
    mixtures = write(tmp_path, "m.csv", "run,a,b\nx,.4,.6\ny,.5,.5\n")
    with pytest.raises(LossTableError, match="the run y is not in"):
        read_swarm(mixtures, write(tmp_path, "l.csv", "run,t,u\nx,1,2\n"))
    with pytest.raises(LossTableError, match="repeats the run x"):
        read_swarm(mixtures, write(tmp_path, "l.csv", "run,t,u\nx,1,2\nx,1,2\n"))
    twice = write(tmp_path, "twice.csv", "run,a,b\nx,.4,.6\nx,.5,.5\n")
    with pytest.raises(LossTableError, match=r"twice\.csv, line 3 repeats the run x"):
        read_swarm(twice, write(tmp_path, "l.csv", "run,t,u\nx,1,2\n"))
    with pytest.raises(LossTableError, match="share none of the columns"):
        read_swarm(mixtures, write(tmp_path, "l.csv", "index,t,u\n0,1,2\n"))


@pytest.mark.parametrize(
    ("mixtures", "losses", "message"),
    [
        ([[0.5, 0.6]], [[1.0]], "shares sum to 1.1"),
        ([[1.5, -0.5]], [[1.0]], "share of 'b' is -0.5"),
        ([[np.nan, 1.0]], [[1.0]], "share of 'a' is nan"),
        ([[0.5, 0.5]], [[np.inf]], "infinite loss"),
        ([[0.5, 0.5]], [[np.nan]], "no loss"),
        ([[0.5, 0.5]], [[-1e200]], "the loss of 't' is -1e\\+200"),
        ([[0.5, 0.5]], [[1.0, 2.0]], "shape"),
        ([[1.0]], [[1.0]], "shape"),
    ],
)
def test_numbers_that_are_no_swarm(mixtures: list[list[float]], losses: list[list[float]], message: str) -> None:
    with pytest.raises(WeightError, match=message):
        Swarm.of(("a", "b"), mixtures, ("t",), losses)


def test_tokens_are_positive() -> None:
    with pytest.raises(WeightError, match="tokens are"):
        Swarm.of(("a", "b"), [[0.5, 0.5]], ("t",), [[1.0]], tokens=[0.0])


def test_names_must_differ() -> None:
    with pytest.raises(WeightError, match="each once"):
        Swarm.of(("a", "a"), [[0.5, 0.5]], ("t",), [[1.0]])


def test_select() -> None:
    swarm = Swarm.of(("a", "b"), [[0.5, 0.5], [0.1, 0.9]], ("t", "u"), [[1.0, np.nan], [2.0, 3.0]])
    chosen = swarm.select(["u"])
    assert (chosen.targets, chosen.runs) == (("u",), ("1",))
    np.testing.assert_array_equal(chosen.losses, [[3.0]])
    with pytest.raises(WeightError, match="no target 'v'; it has t, u"):
        swarm.select(["v"])
    empty = Swarm.of(("a", "b"), [[0.5, 0.5]], ("t", "u"), [[1.0, np.nan]])
    with pytest.raises(WeightError, match="no run has a loss of u"):
        empty.select(["u"])
