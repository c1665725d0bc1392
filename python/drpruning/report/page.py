"""The page: its parts in text and tables, the data and the script of its figures, and the template they go into."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from drpruning.formatting import number, percent, signed
from drpruning.records import Incident
from drpruning.report.data import page_data
from drpruning.report.headline import facts_of, loss_remarks, mixture_remarks, state_of
from drpruning.report.run import Run, of_kind, shown
from drpruning.report.tables import summary_table

CONTENTS = (
    ("outcome", "Before and after"), ("strategies", "Runs"), ("losses", "Losses"), ("mixture", "The mixture"),
    ("sparsity", "Sparsity"), ("kept", "What was kept"), ("training", "Training"), ("tasks", "Benchmarks"),
    ("incidents", "Incidents"), ("recipe", "Recipe"),
)  # fmt: skip
PRUNING = ("sparsity", "kept")  # sections of runs that prune
MOST_INCIDENTS = 200  # in the page


Settle = Callable[[Run], dict[str, Markup]]


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
    template = environment().get_template("report.html.j2")
    left_out = PRUNING if values.get("parts", {}).get("kept") == "" else ()
    return template.render(**{**defaults, **values}, contents=CONTENTS, left_out=left_out, uplot_css=style)


def render_parts(run: Run, settle: Settle | None = None) -> dict[str, Markup]:
    """The parts of the page that are text and tables, by the name of their place, for ``run`` and those beside it.

    Args:
        run: The first run.
        settle: Makes the parts that only few records decide, the figures among them; by default here and now.
    """
    if settle is None:
        from drpruning.report.settled import settled_parts  # noqa: PLC0415 - brings matplotlib

        settle = settled_parts
    runs = [run, *run.others]
    names = [each.started.name if each.started else each.folder.resolve().name for each in runs]
    views = [View(each) for each in runs]
    parts = {"title": Markup(" · ").join(shown(name) for name in dict.fromkeys(names))}
    parts |= {name: write_part(name, views) for name in ("head", "losses", "mixture", "incidents")}
    return parts | settle(run)


class View:
    """What a run's changing parts show."""

    def __init__(self, run: Run) -> None:
        self.state = state_of(run)
        self.facts = facts_of(run, summary_table(run.records))
        self.loss_remarks = loss_remarks(run)
        self.remarks = mixture_remarks(run)
        self.incidents = of_kind(run.records, Incident)[:MOST_INCIDENTS]
        self.incident_notes = _incident_notes(run)


def write_part(name: str, views: Sequence[object]) -> Markup:
    """The part ``name`` of the page, a macro of ``parts.html.j2``, for every run; the script shows one of them."""
    macros: Any = environment().get_template("parts.html.j2").module
    written = [getattr(macros, name)(view) for view in views]
    if len(written) == 1:
        return Markup(written[0])  # noqa: S704 - the macro escapes
    wrap = Markup('<div data-run="{}"{}>{}</div>')
    return Markup("").join(wrap.format(at, Markup(" hidden") if at else "", html) for at, html in enumerate(written))


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


@cache
def _vendored(name: str) -> str:
    return (resources.files("drpruning.report") / "vendor" / name).read_text(encoding="utf-8")


@cache
def environment() -> jinja2.Environment:
    """The templates, escaping whatever a run says."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("drpruning.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "number": number, "signed": signed, "percent": percent}
    return environment
