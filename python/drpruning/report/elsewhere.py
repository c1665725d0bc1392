"""Draws the settled parts of the page in a process that ends: one that follows a run for weeks needs no matplotlib.

The records go to the other process as the lines they were read from, and the parts come back, both as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path

from markupsafe import Markup

from drpruning.records import Incident, Record, StageEnded, StageStarted, from_json, to_json
from drpruning.report.follow import Collected
from drpruning.report.run import Run

PATIENCE = 120  # seconds for a second's work
BESIDE_THE_POINT = (Incident, StageStarted, StageEnded)  # records that change none of these parts


class DrawnElsewhere:
    """Makes the settled parts of runs that go on, again only when one of their records has come."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self.parts: dict[str, Markup] = {}

    def __call__(self, run: Run) -> dict[str, Markup]:
        """The parts; those of the last call where drawing failed, for want of memory for instance."""
        runs = [run, *run.others]
        key = tuple((each.label, each.collected.began, len(_records(each)), each.recipe) for each in runs)
        if key != self.key:
            self.key = key
            self.parts = _draw(runs) or self.parts
        return self.parts


def _records(run: Run) -> list[Record]:
    return [record for record in run.records if not isinstance(record, BESIDE_THE_POINT)]


def _draw(runs: list[Run]) -> dict[str, Markup] | None:
    sent = [
        {
            "folder": str(run.folder),
            "label": run.label,
            "recipe": run.recipe,
            "records": [to_json(record) for record in _records(run)],
        }
        for run in runs
    ]
    words = [sys.executable, "-c", "from drpruning.report.elsewhere import answer; answer()"]
    try:
        done = subprocess.run(  # noqa: S603 - this very program
            words, input=json.dumps(sent), capture_output=True, text=True, timeout=PATIENCE, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return {name: Markup(html) for name, html in json.loads(done.stdout).items()}  # noqa: S704 - rendered, escaped


def answer() -> None:
    """The other process: reads runs from stdin, writes their parts to stdout."""
    from drpruning.report.settled import settled_parts  # noqa: PLC0415 - not in the process that asks

    runs = []
    for each in json.load(sys.stdin):
        found = [from_json(line) for line in each["records"]]
        collected = Collected(records=[record for record in found if record is not None])
        runs.append(Run(Path(each["folder"]), each["label"], collected, each["recipe"]))
    first, *others = runs
    parts = settled_parts(Run(first.folder, first.label, first.collected, first.recipe, tuple(others)))
    json.dump({name: str(html) for name, html in parts.items()}, sys.stdout)
