"""The table of runs: what is bold, what is a difference within its interval, and seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drpruning.records import ModelMeasured, Record, RunStarted, StageEnded
from drpruning.report.method_table import method_table, over_seeds
from drpruning.report.read.run import open_run
from drpruning.tables import Cell, Row, Table
from tests.report.synthetic import DOMAINS, synthetic, write_run
from tests.report.test_headline import with_parts


def run_of(strategy: str, seed: int = 17, shift: float = 0.0) -> list[Record]:
    """Return the records of a run whose recovered losses are shifted."""
    records = []
    for record in synthetic("constant" if strategy == "constant" else "drpruning"):
        if isinstance(record, RunStarted):
            record = replace(record, strategy=strategy, seed=seed)  # noqa: PLW2901
        if isinstance(record, ModelMeasured) and record.model == "recovered":
            losses = {name: loss + shift for name, loss in record.losses.items()}
            record = replace(record, losses=losses)  # noqa: PLW2901
        records.append(record)
    return records


def rows_of(table: Table | None) -> dict[str, Row]:
    assert table is not None
    return {row.cells[0].text: row for row in table.rows}


def cell(table: Table | None, row: str, column: str) -> Cell:
    assert table is not None
    return rows_of(table)[row].cells[list(table.columns).index(column)]


@pytest.mark.parametrize(("noise", "bold"), [(0.001, [True, False]), (0.5, [True, True])])
def test_bold_are_the_lowest_and_those_not_significantly_different(
    tmp_path: Path, noise: float, bold: list[bool]
) -> None:
    folder = write_run(tmp_path / "run", with_parts(run_of("drpruning"), noise))
    write_run(folder / "compare" / "odm", with_parts(run_of("odm", shift=0.01), noise, seed=1))
    table = method_table(open_run(folder))
    assert [cell(table, name, "math").best for name in ("drpruning", "odm")] == bold
    difference = cell(table, "drpruning − odm", "math")
    assert difference.text == "−0.010"
    assert difference.interval.startswith("±")
    assert difference.best == (not bold[1])
    assert table is not None
    assert table.sortable


def test_without_intervals_only_the_lowest_is_bold(run: Path) -> None:
    table = method_table(open_run(run))
    bold = {name: [each.best for each in row.cells[1 : len(DOMAINS) + 4]] for name, row in rows_of(table).items()}
    assert all(one != other for one, other in zip(bold["drpruning"], bold["constant"], strict=True))
    assert not any(bold["unpruned"])
    assert table is not None
    assert "no intervals" in table.note


def test_seeds_are_one_row_and_are_paired(tmp_path: Path) -> None:
    """Check the interval of the paired differences 0.01, 0.02 and 0.03: half its width is 4.3027 * 0.01 / sqrt(3)."""
    folders = []
    for strategy in ("drpruning", "odm"):
        for seed in (1, 2, 3):
            shift = 0.1 * seed + (0.01 * seed if strategy == "odm" else 0.0)
            folders.append(write_run(tmp_path / f"{strategy}-{seed}", run_of(strategy, seed, shift)))
    opened = open_run(*folders)
    table = method_table(opened)
    assert list(rows_of(table)) == ["unpruned", "drpruning", "odm", "drpruning − odm"]
    found = cell(table, "drpruning − odm", "worst excess")
    assert (found.text, found.interval) == ("−0.020", "±0.025")
    assert cell(table, "odm", "math").best  # the interval of the difference includes zero
    assert cell(table, "odm", "tokens").text == "819k"
    sentence = over_seeds(opened, "odm")
    assert sentence.startswith(
        "Over 3 seeds, with drpruning instead of odm the worst excess is 0.020 lower (±0.025, not"
    )
    assert over_seeds(opened, "constant") == ""


def test_costs_that_no_run_recorded_have_no_column(tmp_path: Path) -> None:
    def without_stages(records: list[Record]) -> list[Record]:
        return [record for record in records if isinstance(record, (RunStarted, ModelMeasured, StageEnded))]

    folder = write_run(tmp_path / "run", without_stages(run_of("drpruning")))
    write_run(folder / "compare" / "constant", without_stages(run_of("constant")))
    table = method_table(open_run(folder))
    assert table is not None
    assert table.columns[-1] == "worst excess"
