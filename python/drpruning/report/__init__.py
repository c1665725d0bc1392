"""The report of a run: one self-contained page, figures, and tables of plain data."""

from collections.abc import Sequence
from pathlib import Path

from drpruning.files import write_text
from drpruning.report.loss_tables import (
    LossRow,
    StrategyComparison,
    StrategyRow,
    Summary,
    compare_strategies,
    summary_table,
)
from drpruning.report.read.run import Run, open_run
from drpruning.run_folder import RunFolder

__all__ = [
    "LossRow",
    "Run",
    "StrategyComparison",
    "StrategyRow",
    "Summary",
    "compare_strategies",
    "open_run",
    "summary_table",
    "write_report",
]


def write_report(run_folder: Path, out: Path | None = None, *, others: Sequence[Path] = ()) -> Path:
    """Write the report of a run, finished or not, as one HTML file that needs no network and no server.

    Args:
        run_folder: A folder that ``drpruning train`` wrote.
        out: Where to write; ``report.html`` in the run folder if None.
        others: Runs to compare with it; by default those in its ``compare/NAME``.

    Returns:
        The file written. An earlier one is replaced only when the new one is complete.

    Raises:
        StateError: ``run_folder`` does not exist or is not a run folder.
    """
    # matplotlib and jinja2 take a second to load; only who writes a page pays for them.
    from drpruning.report.page.render import render_page  # noqa: PLC0415

    out = RunFolder(run_folder).report if out is None else out
    page = render_page(open_run(run_folder, *others))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page, errors="replace")  # a record may hold half a surrogate pair
    return out
