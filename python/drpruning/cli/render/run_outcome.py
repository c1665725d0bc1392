"""What ``drpruning train`` prints when it is done: losses before and after, and strategies side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpruning.formatting import held_out, number, percent, printable, signed
from drpruning.report.loss_tables import Comparison, LossRow, best, comparison, summary_table
from drpruning.report.read.run import open_run
from drpruning.tables.terminal import new_table

RATIO_WEIGHTED = "ratio-weighted mean"
GAP, DIGITS = 2, 6  # between columns; of a number


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
    after = ["pruned", "recovered", "gap closed"] if summary.prunes else ["recovered"]
    table = new_table(["domain", "base", *after, "excess"])
    for row in summary.rows:
        worst = summary.worst is not None and row.name == summary.worst.name
        table.add_row(*_cells(row, summary.prunes), style="bold" if worst else "")
    table.add_section()
    table.add_row(*_cells(summary.mean, summary.prunes))
    table.add_row(*_cells(summary.ratio_weighted, summary.prunes))
    tokens = held_out(run.started.measurement_tokens) if run.started else ""
    console.print("Held-out loss, nats per token" + (f"; {tokens}" if tokens else ""), style="bold")
    console.print(table)
    if not run.others:
        return
    compared = comparison({run.label: run.records, **{other.label: other.records for other in run.others}})
    console.print("\nStrategies after recovery, nats per token", style="bold", end="")
    for columns in _that_fit([printable(row.name) for row in compared.rows], console.width):
        console.print()
        console.print(_side_by_side(compared, columns))


def _that_fit(names: list[str], width: int) -> Iterator[list[int]]:
    """Columns of one table or, where there are too many for the terminal, of several, each with the run's own first."""
    first, *others = range(len(names))
    room = width - len(RATIO_WEIGHTED) - GAP
    while others:
        columns = [first]
        while others and (
            len(columns) == 1 or sum(max(len(names[at]), DIGITS) + GAP for at in [*columns, others[0]]) <= room
        ):
            columns.append(others.pop(0))
        yield columns


def _side_by_side(compared: Comparison, columns: list[int]) -> Table:
    rows = compared.rows
    table = new_table(["", *(printable(rows[at].name) for at in columns)])

    def add(name: str, values: list[float], write: Callable[[float], str] = number) -> None:
        lowest = best(values)  # of all strategies, also where they fill several tables
        cells = [Text(write(values[at]), style="bold" if lowest[at] else "") for at in columns]
        table.add_row(Text(printable(name)), *cells)

    for domain in compared.domains:
        add(domain, [row.recovered.get(domain, math.nan) for row in rows])
    table.add_section()
    add("worst excess", [row.worst_excess for row in rows], signed)
    add("plain mean", [row.mean for row in rows])
    add(RATIO_WEIGHTED, [row.ratio_weighted for row in rows])
    return table


def _cells(row: LossRow, prunes: bool) -> list[Text]:
    after = [number(row.recovered)]
    if prunes:
        after = [number(row.pruned), *after, percent(row.gap_closed)]
    return [Text(printable(row.name)), *map(Text, [number(row.base), *after, signed(row.excess)])]
