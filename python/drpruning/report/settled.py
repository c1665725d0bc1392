"""The parts of the page that few records decide: before and after, runs side by side, maps, scores, the recipe."""

from __future__ import annotations

import math
from functools import cached_property

from markupsafe import Markup

from drpruning.formatting import held_out
from drpruning.records import Kept, recorded_corpus
from drpruning.report import losses
from drpruning.report.benchmarks import TaskTable, task_table
from drpruning.report.drawing import VARIABLES, Panel, drawing, series_color
from drpruning.report.kept import LEGEND, what_was_kept
from drpruning.report.methods import method_table
from drpruning.report.page import environment, write_part
from drpruning.report.run import Run, last, shown
from drpruning.report.tables import Comparison, comparison, summary_table

PER_RUN = ("outcome", "kept", "tasks", "recipe")


class View:
    """What these parts show of one run.

    Args:
        run: The run.
        prefix: Tells the ids of its figures from those of other runs.
    """

    kept_keys = LEGEND

    def __init__(self, run: Run, prefix: str) -> None:
        self.run = run
        self.prefix = prefix
        self.label = run.label
        self.summary = summary_table(run.records)
        self.colors = [VARIABLES[series_color(index)] for index in range(len(self.summary.rows))]
        self.started = run.started
        self.recipe = run.recipe
        self.held_out = held_out(run.started.measurement_tokens) if run.started else ""

    @cached_property
    def recovery(self) -> Panel | None:
        """The figure beside the table of losses."""
        return losses.recovery(self.summary)

    @cached_property
    def kept(self) -> list[Panel]:
        """The maps of what was kept."""
        record = last(self.run.records, Kept)
        return what_was_kept(record) if record else []

    @property
    def kept_missing(self) -> str:
        """Why there are none."""
        if last(self.run.records, Kept) is None:
            return "The pruned model has not been exported yet, so nothing is known about what was kept."
        return "The record of what was kept holds no indices that can be drawn."

    @cached_property
    def tasks(self) -> TaskTable:
        """Scores on benchmarks."""
        return task_table(self.run.records)


def settled_parts(run: Run) -> dict[str, Markup]:
    """The parts, by the name of their place, for ``run`` and those beside it."""
    runs = [run, *run.others]
    with drawing():
        views = [View(each, f"run-{at}-" if at else "") for at, each in enumerate(runs)]
        parts = {name: write_part(name, views) for name in PER_RUN}
        compared = comparison({each.label: each.records for each in runs}) if run.others else None
        panel = losses.outcome(compared) if compared else None
        said = verdict(compared) if compared else []
        if len({corpus for each in runs if (corpus := recorded_corpus(each.records)) is not None}) > 1:
            said = ["These runs were measured on different corpora: their losses do not compare."]
        macros = environment().get_template("parts.html.j2").module
        if not any(view.summary.prunes for view in views):
            parts["kept"] = Markup("")  # the page has no section for it then
        parts["strategies"] = macros.strategies(method_table(run), said, panel)  # type: ignore[attr-defined]
    return parts


def verdict(compared: Comparison) -> list[str]:
    """One sentence per comparison run, naming what is worse as plainly as what is better."""
    sentences = []
    first = compared.rows[0]
    for other in compared.rows[1:]:
        parts = [
            f"{what} {abs(ours - theirs):.3f} {'lower' if ours <= theirs else 'higher'}"
            for what, ours, theirs in (
                ("the worst excess is", first.worst_excess, other.worst_excess),
                ("the plain mean", first.mean, other.mean),
                ("the ratio-weighted mean", first.ratio_weighted, other.ratio_weighted),
            )
            if math.isfinite(ours - theirs)
        ]
        if parts:
            joined = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
            sentences.append(f"With {shown(first.name)} instead of {shown(other.name)}, {joined}.")
        else:
            sentences.append(f"{shown(other.name)} has no recovered model to compare yet.")
    return sentences
