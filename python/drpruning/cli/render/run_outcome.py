"""The end of ``drpruning train`` on the terminal: the headline, losses before and after, strategies side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from drpruning.formatting import held_out, number, printable, signed
from drpruning.report.flops_table import flops_table
from drpruning.report.headline import headline_of
from drpruning.report.loss_tables import LossRow, StrategyComparison, Summary, compare_strategies, summary_table
from drpruning.report.read.run import open_run
from drpruning.tables.cells import Row, RowKind, Table
from drpruning.tables.terminal import print_table, split_columns

if TYPE_CHECKING:
    from rich.console import Console


def print_tables(console: Console, run_folder: Path) -> None:
    """Print the headline, losses before and after by domain, and strategies side by side if others were run.

    Raises:
        StateError: ``run_folder`` does not exist or is not a run folder.
    """
    run = open_run(run_folder)
    summary = summary_table(run.records)
    if not summary.rows:
        console.print("No model has been measured yet.")
        return
    headline = headline_of(run)
    for at, sentence in enumerate(filter(None, [headline.sentence, *headline.notes])):
        console.print(sentence, style="" if at else "bold", markup=False, highlight=False)
    console.print()
    tokens = held_out(run.started.final_eval_tokens, "test") if run.started else ""
    console.print("Held-out loss, nats per token" + (f"; {tokens}" if tokens else ""), style="bold")
    print_table(console, _summary_table(summary))
    if compute := flops_table(run.records):
        console.print()
        print_table(console, compute)
    if not run.others:
        return
    compared = compare_strategies({run.label: run.records, **{other.label: other.records for other in run.others}})
    console.print("\nStrategies after recovery, nats per token", style="bold", end="")
    for part in split_columns(_strategy_table(compared), console.width, repeated=2):
        console.print()
        print_table(console, part)


def _summary_table(summary: Summary) -> Table:
    """Tabulate losses before and after; the domain with the largest excess is highlighted."""
    after = ["pruning", "recovery", "recovered"] if summary.prunes else ["recovered"]
    worst = None if summary.worst is None else summary.worst.name
    rows = [_loss_row(row, summary.prunes, "highlight" if row.name == worst else "plain") for row in summary.rows]
    rows += [_loss_row(row, summary.prunes, "summary") for row in (summary.mean, summary.ratio_weighted)]
    return Table(["domain", "base", *after, "excess"], rows)


def _loss_row(row: LossRow, prunes: bool, kind: RowKind) -> Row:
    after = [number(row.recovered)]
    if prunes:
        after = [signed(row.excess_pruned), signed(row.recovery), *after]
    return Row.of(row.name, number(row.base), *after, signed(row.excess), kind=kind)


def _strategy_table(compared: StrategyComparison) -> Table:
    """Tabulate strategies as columns; of one run each there is no interval, so no value is marked."""
    rows = compared.rows

    def row(name: str, values: list[float], write: Callable[[float], str] = number, kind: RowKind = "plain") -> Row:
        return Row.of(name, *map(write, values), kind=kind)

    return Table(
        ["", *(printable(strategy.name) for strategy in rows)],
        [
            *(row(domain, [each.recovered.get(domain, math.nan) for each in rows]) for domain in compared.domains),
            row("worst excess", [each.worst_excess for each in rows], signed, "summary"),
            row("plain mean", [each.mean for each in rows], kind="summary"),
            row("ratio-weighted mean", [each.ratio_weighted for each in rows], kind="summary"),
        ],
    )
