"""The sections of the page that are text, tables and fixed figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from drpruning.formatting import held_out, number, percent, printable, signed
from drpruning.records import Incident, Kept
from drpruning.report import diagrams
from drpruning.report.diagrams import CellMap, DotPlot
from drpruning.report.excess import excess_of, excesses, same_corpus
from drpruning.report.flops_table import flops_table
from drpruning.report.headline import OTHER_CORPORA, headline_of
from drpruning.report.loss_tables import compare_strategies, summary_table
from drpruning.report.method_table import method_table
from drpruning.report.page.summary_cards import facts_of, loss_remarks, mixture_remarks, state_of
from drpruning.report.page.svg import cell_map_svg, dot_plot_svg, pareto_svg
from drpruning.report.pareto import pareto_of_runs
from drpruning.report.read.run import Run, last, records_of
from drpruning.report.stage_costs import cost_table
from drpruning.report.task_table import task_table
from drpruning.tables import Table
from drpruning.tables.html import table_html

PER_RUN = ("head", "outcome", "losses", "mixture", "kept", "compute", "tasks", "incidents", "recipe")
MOST_INCIDENTS = 200  # in the page


class RunSections:
    """The values that the templates show of one run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.label = run.label
        self.started = run.started
        self.recipe = run.recipe
        self.summary = summary_table(run.records)
        self.colors = [diagrams.SERIES[index % len(diagrams.SERIES)] for index in range(len(self.summary.rows))]
        self.held_out = held_out(run.started.final_eval_tokens, "test") if run.started else ""
        self.state = state_of(run)
        self.facts = facts_of(run)
        self.costs = cost_table(run)
        self.headline = headline_of(run)
        self.own = excess_of(run)
        self.loss_remarks = loss_remarks(run)
        self.remarks = mixture_remarks(run)
        self.incidents = records_of(run.records, Incident)[:MOST_INCIDENTS]

    @cached_property
    def outcome(self) -> DotPlot | None:
        """The figure of the headline: the excess of this run and of its rival."""
        rival = None if self.headline.rival is None else excess_of(self.run.others[self.headline.rival])
        return diagrams.outcome(self.own, [rival] if rival else []) if self.own else None

    def half_width(self, domain: str) -> float:
        """Return half the width of the interval of a domain's excess after recovery; NaN if unknown."""
        own = self.own
        known = own is not None and own.model == "recovered" and domain in own.excess
        return own.domain(domain).half_width if own and known else math.nan

    @cached_property
    def recovery(self) -> DotPlot | None:
        """The figure next to the table of losses."""
        return diagrams.recovery(self.summary)

    @cached_property
    def kept(self) -> list[CellMap]:
        """The maps of kept units."""
        record = last(self.run.records, Kept)
        return diagrams.mask_maps(record) if record else []

    @cached_property
    def tasks(self) -> Table:
        """Scores on benchmarks."""
        return replace(task_table(self.run.records), title=f"Benchmarks, {self.label}")

    @cached_property
    def compute(self) -> Table | None:
        """Floating point operations by stage and purpose."""
        table = flops_table(self.run.records)
        return table and replace(table, title=f"{table.title}, {self.label}")

    @property
    def incident_notes(self) -> list[str]:
        """Sentences below the list of incidents."""
        series = self.run.series
        notes = []
        if series.incidents > MOST_INCIDENTS:
            notes.append(f"{series.incidents - MOST_INCIDENTS:,} more are in metrics.jsonl.")
        if series.skipped:
            notes.append(f"{series.skipped:,} steps were skipped: their loss or gradient was not finite.")
        if series.unreadable:
            notes.append(f"{series.unreadable:,} lines of metrics.jsonl could not be read and are left out.")
        return notes


def render_sections(run: Run) -> dict[str, Markup]:
    """Render the sections, by name, for ``run`` and the runs compared with it; the page's script shows one run."""
    runs = [run, *run.others]
    names = [each.started.name if each.started else each.folder.resolve().name for each in runs]
    sections = {"title": Markup(" · ").join(printable(name) for name in dict.fromkeys(names))}
    views = [RunSections(replace(each, others=tuple(other for other in runs if other is not each))) for each in runs]
    sections |= {name: _render(name, views) for name in PER_RUN}
    compared = compare_strategies({each.label: each.records for each in runs}) if run.others else None
    found = excesses(run) if run.others else []
    own, others = (found[0], found[1:]) if found and found[0].label == run.label else (None, [])
    remark = "" if all(same_corpus(run, other) for other in run.others) else OTHER_CORPORA
    plot = diagrams.outcome(own, others) if own and len(others) > 1 else None
    macros: Any = environment().get_template("parts.html.j2").module
    static = [each.started is not None and each.started.strategy == "constant" for each in runs]
    trade = pareto_of_runs(compared, static) if compared and len(runs) > 2 else None
    sections["strategies"] = macros.strategies(method_table(run), remark, plot, trade)
    return sections


@cache
def environment() -> jinja2.Environment:
    """Return the templates, which escape every text of a run."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(resources.files("drpruning.report.page") / "templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["nan"] = math.nan
    environment.filters |= {
        "shown": printable,
        "number": number,
        "signed": signed,
        "percent": percent,
        "table": lambda table, css_class="": Markup(table_html(table, css_class)),  # noqa: S704 - every text is escaped
        "dot_plot": dot_plot_svg,
        "pareto": pareto_svg,
        "cell_map": cell_map_svg,
    }
    return environment


def _render(name: str, views: Sequence[RunSections]) -> Markup:
    """Render a section, the macro of that name in ``parts.html.j2``, for every run; empty if it is for all."""
    macros: Any = environment().get_template("parts.html.j2").module
    written = [getattr(macros, name)(view) for view in views]
    if not any(str(html).strip() for html in written):
        return Markup("")  # the page then has no such section
    if len(written) == 1:
        return Markup(written[0])  # noqa: S704 - the macro escapes
    wrap = Markup('<div data-run="{}"{}>{}</div>')
    return Markup("").join(wrap.format(at, Markup(" hidden") if at else "", html) for at, html in enumerate(written))
