"""The page: its parts in text and tables, the data and the script of its figures, and the template they go into."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from drpruning.records import Incident, Kept, RunStarted
from drpruning.report import losses, mixture
from drpruning.report.benchmarks import TaskTable, task_table
from drpruning.report.data import page_data
from drpruning.report.drawing import VARIABLES, Key, Panel, drawing, series_color
from drpruning.report.headline import Fact, facts_of, state_of
from drpruning.report.kept import LEGEND, what_was_kept
from drpruning.report.methods import method_table
from drpruning.report.run import Run, last, of_kind, shown
from drpruning.report.tables import Comparison, Summary, comparison, summary_table
from drpruning.report.words import number, percent, signed

CONTENTS = (
    ("outcome", "Before and after"), ("strategies", "Runs"), ("losses", "Losses"), ("mixture", "The mixture"),
    ("sparsity", "Sparsity"), ("kept", "What was kept"), ("training", "Training"), ("tasks", "Benchmarks"),
    ("incidents", "Incidents"), ("recipe", "Recipe"),
)  # fmt: skip
PER_RUN = ("head", "outcome", "mixture", "kept", "tasks", "incidents", "recipe")
MOST_INCIDENTS = 200  # in the page


@dataclass(frozen=True)
class View:
    """One run, as the parts of the page show it."""

    label: str
    prefix: str
    state: str
    facts: list[Fact]
    summary: Summary
    colors: list[str]
    recovery: Panel | None
    remarks: str
    kept: list[Panel]
    kept_missing: str
    tasks: TaskTable
    incidents: list[Incident]
    incident_notes: list[str]
    started: RunStarted | None
    recipe: str | None
    kept_keys: tuple[Key, ...] = LEGEND


def render_page(run: Run) -> str:
    """The whole report of ``run`` as HTML."""
    script = page_script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render_shell(
        title=title_of(run),
        parts=render_parts(run),
        data=Markup(to_script_json(page_data(run))),  # noqa: S704 - every < is written as an escape
        script=script,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def render_shell(**values: Any) -> str:
    """The page around its parts; ``values`` are what the template ``report.html.j2`` names."""
    defaults = {"live": False, "nonce": "", "policy": "", "data": None, "parts": {}, "script": page_script()}
    style = Markup(_vendored("uPlot.min.css"))  # noqa: S704 - shipped with the package
    values["script"] = Markup(values.get("script", defaults["script"]))  # noqa: S704 - shipped with the package
    template = _environment().get_template("report.html.j2")
    return template.render(**{**defaults, **values}, contents=CONTENTS, uplot_css=style)


def render_parts(run: Run) -> dict[str, Markup]:
    """The parts of the page that are text and tables, by the name of their place, for ``run`` and those beside it."""
    macros: Any = _environment().get_template("parts.html.j2").module
    runs = [run, *run.others]
    with drawing():
        views = [_view(each, f"run-{at}-" if at else "") for at, each in enumerate(runs)]
        parts = {name: _for_each_run([getattr(macros, name)(view) for view in views]) for name in PER_RUN}
        compared = comparison({each.label: each.records for each in runs}) if run.others else None
        panel = losses.outcome(compared) if compared else None
        parts["strategies"] = macros.strategies(method_table(run), verdict(compared) if compared else [], panel)
    names = [each.started.name if each.started else each.folder.resolve().name for each in runs]
    parts["title"] = Markup(" · ").join(shown(name) for name in dict.fromkeys(names))
    return parts


def title_of(run: Run) -> str:
    """The title of the browser's tab."""
    return f"{shown(run.started.name if run.started else run.folder.resolve().name)} · drpruning"


@cache
def page_script() -> str:
    """The script of the page: uPlot, and what draws the figures with it."""
    own = (resources.files("drpruning.report") / "templates" / "report.js").read_text(encoding="utf-8")
    return f"{_vendored('uPlot.iife.min.js')}\n{own}"


def to_script_json(value: Any) -> str:
    """JSON that may stand in a ``<script>`` element: without ``<`` it cannot end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


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


def _view(run: Run, prefix: str) -> View:
    summary = summary_table(run.records)
    record = last(run.records, Kept)
    return View(
        label=run.label,
        prefix=prefix,
        state=state_of(run),
        facts=facts_of(run, summary),
        summary=summary,
        colors=[VARIABLES[series_color(index)] for index in range(len(summary.rows))],
        recovery=losses.recovery(summary),
        remarks=mixture.remarks(run),
        kept=what_was_kept(record) if record else [],
        kept_missing="The pruned model has not been exported yet, so nothing is known about what was kept."
        if record is None
        else "The record of what was kept holds no indices that can be drawn.",
        tasks=task_table(run.records),
        incidents=of_kind(run.records, Incident)[:MOST_INCIDENTS],
        incident_notes=_incident_notes(run),
        started=run.started,
        recipe=run.recipe,
    )


def _incident_notes(run: Run) -> list[str]:
    seen = run.collected
    notes = []
    if not seen.incidents:
        notes.append("Nothing out of the ordinary was recorded.")
    elif seen.incidents > MOST_INCIDENTS:
        notes.append(f"{seen.incidents - MOST_INCIDENTS:,} more are in metrics.jsonl.")
    if seen.skipped:
        notes.append(f"{seen.skipped:,} steps were skipped: their loss or gradient was not finite.")
    if seen.unreadable:
        notes.append(f"{seen.unreadable:,} lines of metrics.jsonl could not be read and are left out.")
    return notes


def _for_each_run(written: list[Markup]) -> Markup:
    """The part of each run in an element of its own; the script shows one of them."""
    if len(written) == 1:
        return written[0]
    wrap = Markup('<div data-run="{}"{}>{}</div>')
    return Markup("").join(wrap.format(at, Markup(" hidden") if at else "", html) for at, html in enumerate(written))


@cache
def _vendored(name: str) -> str:
    return (resources.files("drpruning.report") / "vendor" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("drpruning.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "number": number, "signed": signed, "percent": percent}
    return environment
