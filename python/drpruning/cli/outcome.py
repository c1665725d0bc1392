"""What ``drpruning train`` prints when it is done: losses before and after, and strategies side by side."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpruning.cli.tables import new_table
from drpruning.report.run import open_run, shown
from drpruning.report.tables import LossRow, best, comparison, summary_table
from drpruning.report.words import number, percent, signed


def print_tables(console: Console, run_folder: Path) -> None:
    """Prints losses before and after per domain and, where other strategies were run, how they compare.

    Raises:
        StateError: ``run_folder`` does not exist or is not a run folder.
    """
    run = open_run(run_folder)
    summary = summary_table(run.records)
    if not summary.rows:
        console.print("No model has been measured yet.")
        return
    table = new_table(["domain", "base", "pruned", "recovered", "gap closed", "excess"])
    for row in summary.rows:
        worst = summary.worst is not None and row.name == summary.worst.name
        table.add_row(*_cells(row), style="bold" if worst else "")
    table.add_section()
    table.add_row(*_cells(summary.mean))
    table.add_row(*_cells(summary.ratio_weighted))
    console.print("Held-out loss, nats per token", style="bold")
    console.print(table)
    if not run.others:
        return
    compared = comparison({run.label: run.records, **{other.label: other.records for other in run.others}})
    table = new_table(["", *(shown(row.name) for row in compared.rows)])
    for domain in compared.domains:
        _compare(table, domain, [row.recovered.get(domain, math.nan) for row in compared.rows])
    table.add_section()
    _compare(table, "worst excess", [row.worst_excess for row in compared.rows], sign=True)
    _compare(table, "plain mean", [row.mean for row in compared.rows])
    _compare(table, "ratio-weighted mean", [row.ratio_weighted for row in compared.rows])
    console.print("\nStrategies after recovery, nats per token", style="bold")
    console.print(table)


def _cells(row: LossRow) -> list[Text]:
    values = [number(row.base), number(row.pruned), number(row.recovered), percent(row.gap_closed), signed(row.excess)]
    return [Text(shown(row.name)), *map(Text, values)]


def _compare(table: Table, name: str, values: list[float], *, sign: bool = False) -> None:
    texts = [signed(value) if sign else number(value) for value in values]
    cells = [Text(text, style="bold" if lowest else "") for text, lowest in zip(texts, best(values), strict=True)]
    table.add_row(Text(shown(name)), *cells)
