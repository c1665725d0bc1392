"""Render the page: sections of text and tables, the data and the script of the interactive figures."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup

from drpruning.formatting import printable
from drpruning.report.page.chart_data import page_data
from drpruning.report.page.sections import environment, render_sections
from drpruning.report.read.run import Run

CONTENTS = (
    ("outcome", "Before and after"), ("strategies", "Runs"), ("losses", "Losses"), ("mixture", "The mixture"),
    ("sparsity", "Sparsity"), ("kept", "What was kept"), ("training", "Training"), ("tasks", "Benchmarks"),
    ("incidents", "Incidents"), ("recipe", "Recipe"),
)  # fmt: skip
DRAWN = ("losses", "mixture", "sparsity", "training")  # sections of figures, which the script shows if it draws any


def render_page(run: Run) -> str:
    """Render the whole report of ``run`` as HTML."""
    script = page_script()
    return render_shell(
        title=title_of(run),
        parts=render_sections(run),
        data=Markup(to_script_json(page_data(run))),  # noqa: S704 - every < is written as an escape
        script=script,
        policy=script_policy(script),
    )


def render_shell(**values: Any) -> str:
    """Render the page around its sections; ``values`` are the variables of ``report.html.j2``."""
    defaults = {
        "live": False,
        "version": 0,
        "nonce": "",
        "policy": "",
        "data": None,
        "parts": {},
        "script": page_script(),
    }
    style = Markup(_vendor_file("uPlot.min.css"))  # noqa: S704 - shipped with the package
    values["script"] = Markup(values.get("script", defaults["script"]))  # noqa: S704 - shipped with the package
    template = environment().get_template("report.html.j2")
    parts = values.get("parts", {})
    left_out = [name for name, _ in CONTENTS if name in DRAWN or not str(parts.get(name, "")).strip()]
    return template.render(**{**defaults, **values}, contents=CONTENTS, left_out=left_out, uplot_css=style)


def title_of(run: Run) -> str:
    """Return the title of the browser's tab."""
    return f"{printable(run.started.name if run.started else run.folder.resolve().name)} · drpruning"


@cache
def page_script() -> str:
    """Return the script of the page: uPlot and the code of the figures."""
    return "\n".join([_vendor_file("uPlot.iife.min.js"), sort_script(), _template("report.js")])


@cache
def sort_script() -> str:
    """Return the script that sorts tables, also for pages without figures."""
    return _template("sort.js")


def script_policy(script: str) -> str:
    """Return the content security policy of a page that runs only ``script``."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _template(name: str) -> str:
    return (resources.files("drpruning.report.page") / "templates" / name).read_text(encoding="utf-8")


def to_script_json(value: Any) -> str:
    """Return JSON that is safe inside a ``<script>`` element: it contains no ``<``."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _vendor_file(name: str) -> str:
    return (resources.files("drpruning.report.page") / "vendor" / name).read_text(encoding="utf-8")
