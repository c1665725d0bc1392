"""The page: its parts in text and tables, the data and the script of its figures, and the template they go into."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Hashable
from functools import cache, cached_property
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from drpruning.records import Incident, Kept
from drpruning.report import losses, mixture
from drpruning.report.benchmarks import TaskTable, task_table
from drpruning.report.data import page_data
from drpruning.report.drawing import VARIABLES, Panel, drawing, series_color
from drpruning.report.headline import facts_of, state_of
from drpruning.report.kept import LEGEND, what_was_kept
from drpruning.report.methods import method_table
from drpruning.report.run import Run, last, of_kind, shown
from drpruning.report.tables import Comparison, comparison, summary_table
from drpruning.report.words import number, percent, signed

CONTENTS = (
    ("outcome", "Before and after"), ("strategies", "Runs"), ("losses", "Losses"), ("mixture", "The mixture"),
    ("sparsity", "Sparsity"), ("kept", "What was kept"), ("training", "Training"), ("tasks", "Benchmarks"),
    ("incidents", "Incidents"), ("recipe", "Recipe"),
)  # fmt: skip
CHANGING = ("head", "mixture", "incidents")
SETTLED = ("outcome", "kept", "tasks", "recipe")
MOST_INCIDENTS = 200  # in the page


class View:
    """One run, as the parts of the page show it.

    Args:
        run: The run.
        prefix: Tells the ids of its figures from those of other runs.
    """

    kept_keys = LEGEND

    def __init__(self, run: Run, prefix: str) -> None:
        self.run = run
        self.prefix = prefix
        self.label = run.label
        self.state = state_of(run)
        self.summary = summary_table(run.records)
        self.facts = facts_of(run, self.summary)
        self.colors = [VARIABLES[series_color(index)] for index in range(len(self.summary.rows))]
        self.remarks = mixture.remarks(run)
        self.incidents = of_kind(run.records, Incident)[:MOST_INCIDENTS]
        self.incident_notes = _incident_notes(run)
        self.started = run.started
        self.recipe = run.recipe

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


class Drawn:
    """The parts that only a few records decide, kept between two renderings of runs that go on."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self.parts: dict[str, Markup] = {}


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
    defaults = {
        "live": False,
        "version": 0,
        "nonce": "",
        "policy": "",
        "data": None,
        "parts": {},
        "script": page_script(),
    }
    style = Markup(_vendored("uPlot.min.css"))  # noqa: S704 - shipped with the package
    values["script"] = Markup(values.get("script", defaults["script"]))  # noqa: S704 - shipped with the package
    template = _environment().get_template("report.html.j2")
    return template.render(**{**defaults, **values}, contents=CONTENTS, uplot_css=style)


def render_parts(run: Run, drawn: Drawn | None = None) -> dict[str, Markup]:
    """The parts of the page that are text and tables, by the name of their place, for ``run`` and those beside it.

    Args:
        run: The first run.
        drawn: What an earlier call drew; parts whose records are the same are taken from there.
    """
    macros: Any = _environment().get_template("parts.html.j2").module
    runs = [run, *run.others]
    views = [View(each, f"run-{at}-" if at else "") for at, each in enumerate(runs)]

    def write(name: str) -> Markup:
        return _for_each_run([getattr(macros, name)(view) for view in views])

    names = [each.started.name if each.started else each.folder.resolve().name for each in runs]
    parts = {"title": Markup(" · ").join(shown(name) for name in dict.fromkeys(names))}
    parts |= {name: write(name) for name in CHANGING}
    drawn = Drawn() if drawn is None else drawn
    key = tuple((each.label, each.collected.began, len(each.records), each.recipe) for each in runs)
    if drawn.key != key:
        with drawing():
            drawn.parts = {name: write(name) for name in SETTLED}
            compared = comparison({each.label: each.records for each in runs}) if run.others else None
            panel = losses.outcome(compared) if compared else None
            said = verdict(compared) if compared else []
            drawn.parts["strategies"] = macros.strategies(method_table(run), said, panel)
        drawn.key = key
    return parts | drawn.parts


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
