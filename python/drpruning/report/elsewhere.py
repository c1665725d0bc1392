"""Draws the settled parts of the page in a process that ends: one that follows a run for weeks needs no matplotlib.

The records go to the other process as the lines they were read from, and the parts come back, both as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable
from pathlib import Path
from typing import IO

from markupsafe import Markup

from drpruning.records import Incident, Record, StageEnded, StageStarted, from_json, to_json
from drpruning.report.follow import Collected
from drpruning.report.run import Run

PATIENCE = 120  # seconds for a second's work
BESIDE_THE_POINT = (Incident, StageStarted, StageEnded)  # records that change none of these parts


class DrawnElsewhere:
    """Makes the settled parts of runs that go on, again only when one of their records has come.

    Nobody waits for them: until new ones are drawn the earlier ones are given, at first none. Question and answer are
    in files without a name, so that neither process waits for the other to read.
    """

    def __init__(self) -> None:
        self.key: Hashable = None
        self.parts: dict[str, Markup] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: IO[bytes] | None = None
        self._until = 0.0

    def __call__(self, run: Run) -> dict[str, Markup]:
        """The parts as last drawn; those of ``run`` are begun if it says something new and none are under way."""
        runs = [run, *run.others]
        key = tuple((each.label, each.collected.began, len(_records(each)), each.recipe) for each in runs)
        if key != self.key and self._process is None:
            self.key = key
            self._begin(runs)
        return self.parts

    def has_new_parts(self) -> bool:
        """Whether a drawing has succeeded since this was last asked; where one fails the earlier parts stay."""
        if self._process is None or self._answer is None:
            return False
        if self._process.poll() is None:
            if time.monotonic() > self._until:
                self._process.kill()
            return False
        self._answer.seek(0)
        text = self._answer.read() if self._process.returncode == 0 else b"{}"
        drawn = {name: Markup(html) for name, html in json.loads(text).items()}  # noqa: S704 - rendered, escaped
        self.close()
        self.parts = drawn or self.parts
        return bool(drawn)

    def close(self) -> None:
        """Ends a drawing under way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _begin(self, runs: list[Run]) -> None:
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
            self._answer = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
            with tempfile.TemporaryFile() as question:
                question.write(json.dumps(sent).encode())
                question.seek(0)
                self._process = subprocess.Popen(  # noqa: S603 - this very program
                    words, stdin=question, stdout=self._answer, stderr=subprocess.DEVNULL
                )
        except OSError:  # no room for a file or a process
            self.close()
        self._until = time.monotonic() + PATIENCE


def _records(run: Run) -> list[Record]:
    return [record for record in run.records if not isinstance(record, BESIDE_THE_POINT)]


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
