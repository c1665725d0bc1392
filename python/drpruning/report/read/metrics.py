"""Every number of a run's steps and evaluations as tables of NumPy columns, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import MissingExtraError, StateError, install_command
from drpruning.report.read.downsample import Bins
from drpruning.report.read.run import STAGES, check_run
from drpruning.report.read.tail import read_series
from drpruning.run_folder import METRICS, RunFolder

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

WHOLE = ("step", "tokens")


class MetricsTable(Mapping[str, NDArray[Any]]):
    """Columns of equal length: ``stage`` (text), ``step`` and ``tokens`` (int64), all others float64, NaN for missing.

    A quantity per domain or mask kind has a column for each, ``losses/web``.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self._columns = dict(columns)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        """Number of columns."""
        return len(self._columns)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self._columns.values()), []))

    def __repr__(self) -> str:
        return f"MetricsTable({self.num_rows:,} rows: {', '.join(self._columns)})"

    def where(self, stage: str) -> MetricsTable:
        """Return the rows of one stage."""
        rows = self._columns["stage"] == stage
        return MetricsTable({name: column[rows] for name, column in self._columns.items()})

    def group(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the columns ``name/X`` by X: ``evaluations.group("losses")["web"]``."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): column for key, column in self._columns.items() if key.startswith(prefix)}

    def to_pandas(self) -> pd.DataFrame:
        """Convert to a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415
        except ImportError:
            raise MissingExtraError("`to_pandas` needs pandas", install_command("pandas")) from None
        return pd.DataFrame(self._columns)

    def to_polars(self) -> pl.DataFrame:
        """Convert to a polars DataFrame.

        Raises:
            MissingExtraError: polars is not installed.
        """
        try:
            import polars as pl  # noqa: PLC0415
        except ImportError:
            raise MissingExtraError("`to_polars` needs polars", install_command("polars")) from None
        return pl.DataFrame(self._columns)


@dataclass(frozen=True)
class Metrics:
    """All numbers of a run: ``steps`` has a row for each optimizer step, ``evaluations`` for each evaluation."""

    steps: MetricsTable
    evaluations: MetricsTable


def read_metrics(folder: Path | str) -> Metrics:
    """Read every step and evaluation of a run; of a step that was taken twice, the later row.

    Args:
        folder: The run folder that ``drpruning train`` wrote; the run may still be in progress.

    Returns:
        Two tables. A table without a row has no columns but ``stage``.

    Raises:
        StateError: There is no such folder, or it holds no ``metrics.jsonl``.

    Example:
        ``drpruning.read_metrics("runs/quickstart").steps["loss"]``
    """
    run = RunFolder(Path(folder))
    check_run(run.path)
    if not run.metrics.is_file():
        raise StateError(
            f"run {str(folder)!r} has no {METRICS}; expected one, with a record of each step",
            f"Start the run: drpruning train {run.recipe} --out {folder} --resume",
        )
    series = read_series(run.metrics, most=0)
    return Metrics(_table(series.steps), _table(series.evaluations))


def _table(stages: Mapping[str, Bins]) -> MetricsTable:
    order = sorted(stages, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))
    tables = [stages[name] for name in order]
    names = dict.fromkeys(name for bins in tables for name in bins.names)
    columns: dict[str, NDArray[Any]] = {
        "stage": np.repeat(np.array(order, dtype=np.str_), [len(bins) for bins in tables])
    }
    for name in names:
        assert isinstance(name, tuple)
        column = np.concatenate([bins.mean(name) for bins in tables])
        key = "/".join(filter(None, name))
        columns[key] = column.astype(np.int64) if key in WHOLE else column
    return MetricsTable(columns)
