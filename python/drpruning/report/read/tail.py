"""Read a run's `metrics.jsonl` as it grows: numbers are downsampled, other records are stored, memory is bounded.

Steps and evaluations are read straight from JSON, since a long run has millions of them; a line that is not a record is
skipped and a field that is not a number is left out. A line without its newline is still being written and waits.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pydantic_core

from drpruning.records import Evaluated, Incident, Record, RunStarted, StepTaken, from_json
from drpruning.report.read.downsample import MOST, Bins

Signature = list[tuple[str, tuple[str, ...]]]
"""The tables of a record, such as its losses, each with the domains or mask kinds that it has numbers for."""

STEP_NUMBERS = (
    "loss", "learning_rate", "grad_norm", "tokens_per_second", "utilisation", "loader_wait", "memory", "skipped",
    "charged_flops",
)  # fmt: skip
STEP_TABLES = ("domain_losses", "expected", "scheduled")
EVALUATION_NUMBERS = ("parameters", "divergence")
EVALUATION_TABLES = (
    "losses", "reference_loss", "predicted_loss", "excess_loss", "weights", "reference_ratio", "epochs",
)  # fmt: skip
PLACES = ("step", "tokens", "time")
STEP_FIELDS, EVALUATION_FIELDS = PLACES + STEP_NUMBERS, PLACES + EVALUATION_NUMBERS
BLOCK = 1 << 18  # bytes read at a time
COMPARED = 64  # bytes
MOST_INCIDENTS = 2000
"""Incidents that are stored; later ones are only counted."""
LONGEST = 1 << 22  # bytes of a line; the largest record, of which units were kept, has a tenth of that for a 7B model


class Rows:
    """Rows of one stage, in parts that have the same columns."""

    def __init__(self) -> None:
        self.parts: list[tuple[Signature, list[int], list[list[object]]]] = []

    def add(self, step: int, signature: Signature, values: list[object]) -> None:
        """Add a row; ``signature`` is the names in each of its tables."""
        if not self.parts or self.parts[-1][0] != signature:
            self.parts.append((signature, [], []))
        _, steps, rows = self.parts[-1]
        steps.append(step)
        rows.append(values)

    def into(self, bins: Bins, numbers: tuple[str, ...]) -> None:
        """Move the rows to ``bins``; ``numbers`` are the fields before the tables."""
        for signature, steps, rows in self.parts:
            names = [(name, "") for name in numbers]
            names += [(table, name) for table, inner in signature for name in inner]
            bins.add(steps, names, rows)


@dataclass
class RunSeries:
    """The contents of a `metrics.jsonl` so far.

    Attributes:
        records: All records but steps and evaluations, in order; of incidents the first ``MOST_INCIDENTS``.
        steps: The numbers of the optimizer steps, by stage.
        evaluations: The numbers of the evaluations, by stage.
        domains: Names of domains in losses, weights and measurements, in the order in which they first came.
        held: Evaluations at which a bound decided a domain's weight.
        num_evaluations: All evaluations.
        average_weights: Of the last evaluation that had them.
        skipped: Steps that changed nothing because their loss or gradient was not finite.
        incidents: All incidents, kept or not.
        unreadable: Lines that are no records.
        began: Time of the first record that has one, in seconds since the epoch.
        latest: Time of the last one.
    """

    most: int = MOST
    records: list[Record] = field(default_factory=list)
    steps: dict[str, Bins] = field(default_factory=dict)
    evaluations: dict[str, Bins] = field(default_factory=dict)
    domains: dict[str, None] = field(default_factory=dict)
    held: Counter[str] = field(default_factory=Counter)
    num_evaluations: int = 0
    average_weights: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    incidents: int = 0
    unreadable: int = 0
    began: float | None = None
    latest: float | None = None

    def take(self, lines: list[bytes]) -> None:
        """Add whole lines."""
        steps: dict[str, Rows] = {}
        evaluations: dict[str, Rows] = {}
        for line in lines:
            try:
                body = _parse_line(line)
                kind = body.get("kind")
            except (ValueError, AttributeError, RecursionError):
                self.unreadable += bool(line.strip())
                continue
            self._note_time(body)
            if kind == StepTaken.kind:
                self._step(body, steps)
            elif kind == Evaluated.kind:
                self._evaluation(body, evaluations)
            else:
                self._record(line)
        for found, tables, numbers in (
            (steps, self.steps, STEP_FIELDS),
            (evaluations, self.evaluations, EVALUATION_FIELDS),
        ):
            for stage, rows in found.items():
                rows.into(tables.setdefault(stage, Bins(self.most)), numbers)

    def _note_time(self, body: dict[str, Any]) -> None:
        time = body.get("time")
        if isinstance(time, (int, float)) and 0 < time < 1e12:
            self.began = float(time) if self.began is None else self.began
            self.latest = float(time)

    def _step(self, body: dict[str, Any], into: dict[str, Rows]) -> None:
        rows = self._rows(body, into)
        if rows is None:
            return
        skipped = body.get("skipped") is True
        self.skipped += skipped
        body["skipped"] = 1 if skipped else None
        values = [*map(body.get, STEP_FIELDS)]
        signature = _spread(body, STEP_TABLES if self.most else (*STEP_TABLES, "domain_tokens"), values)
        multipliers = body.get("multipliers")
        if isinstance(multipliers, dict):
            pairs = {kind: pair for kind, pair in multipliers.items() if isinstance(pair, list) and len(pair) == 2}
            for at, name in enumerate(("linear", "quadratic")):
                signature.append((name, tuple(pairs)))
                values += [pair[at] for pair in pairs.values()]
        rows.add(body["step"], signature, values)

    def _evaluation(self, body: dict[str, Any], into: dict[str, Rows]) -> None:
        rows = self._rows(body, into)
        if rows is None:
            return
        values = [*map(body.get, EVALUATION_FIELDS)]
        signature = _spread(body, EVALUATION_TABLES, values)
        bands = body.get("predicted_band")
        if isinstance(bands, dict):
            pairs = {name: band for name, band in bands.items() if isinstance(band, list) and len(band) == 2}
            for at, name in enumerate(("predicted_low", "predicted_high")):
                signature.append((name, tuple(pairs)))
                values += [band[at] for band in pairs.values()]
        rows.add(body["step"], signature, values)
        self.num_evaluations += 1
        losses, at_bound, average = body.get("losses"), body.get("at_bound"), body.get("average_weights")
        if isinstance(losses, dict) and not losses.keys() <= self.domains.keys():
            self.domains.update(dict.fromkeys(losses))
        if isinstance(at_bound, list):
            self.held.update(name for name in at_bound if isinstance(name, str))
        if isinstance(average, dict):
            self.average_weights = {name: share for name, share in average.items() if type(share) is float}

    def _rows(self, body: dict[str, Any], into: dict[str, Rows]) -> Rows | None:
        """Return the rows of the record's stage; None for a record without a stage or a place."""
        stage, step, tokens = body.get("stage"), body.get("step"), body.get("tokens")
        if not (isinstance(stage, str) and _is_place(step) and _is_place(tokens)):
            self.unreadable += 1
            return None
        rows = into.get(stage)
        if rows is None:
            rows = into[stage] = Rows()
        return rows

    def _record(self, line: bytes) -> None:
        try:
            record = from_json(line.decode("utf-8", errors="replace"))
        except ValueError:
            self.unreadable += 1
            return
        if isinstance(record, Incident):
            self.incidents += 1
            if self.incidents > MOST_INCIDENTS:
                return
        if record is not None:
            self.records.append(record)


class MetricsTail:
    """Reads the new lines of a `metrics.jsonl` at each call.

    A file that took its place, or that was cut back, is read from its start: as a run from its first record where it
    begins with one (a resumed or restarted run), as what follows where it does not (a rotated log).

    Args:
        path: The file; it need not exist yet.
        most: Groups of a stage, 0 for every step; see :class:`~drpruning.report.bins.Bins`.
    """

    def __init__(self, path: Path, most: int = MOST) -> None:
        self.path = path
        self.most = most
        self.series = RunSeries(most)
        self._identity: tuple[int, int] | None = None  # of the file that was read last
        self._at = 0  # bytes of it that were read
        self._rest = b""  # a line that has not ended yet
        self._before = b""  # the last bytes read, to notice a file that was cut and has grown again

    def read(self, blocks: int | None = None) -> bool:
        """Read the lines written since the last call.

        Args:
            blocks: Most blocks of 256 KiB to read; None: all.

        Returns:
            Whether anything is new.
        """
        try:
            file = self.path.open("rb")
        except OSError:
            return False  # not there yet, or between the two moves of a rotation: what was read stays
        with file:
            if not self._find_place(file):
                return False
            start = self._at
            while blocks is None or blocks > 0:
                block = file.read(BLOCK)
                if not block:
                    break
                self._at += len(block)
                self._before = (self._before + block)[-COMPARED:]
                *lines, self._rest = (self._rest + block).split(b"\n")
                if len(self._rest) > LONGEST:
                    self._rest = b""
                self.series.take(lines)
                blocks = None if blocks is None else blocks - 1
            return self._at > start

    def progress(self) -> float:
        """Return the share of the file that has been read, 0 to 1."""
        try:
            size = self.path.stat().st_size
        except OSError:
            return 1.0
        return min(1.0, self._at / size) if size else 1.0

    def finish(self) -> None:
        """Add a last line without a newline, if it is whole."""
        if self._rest.rstrip().endswith(b"}"):  # else it was cut off
            self.series.take([self._rest])
            self._rest = b""

    def _find_place(self, file: BinaryIO) -> bool:
        """Move ``file`` to the place of the next read; return False if a new file has no complete line yet."""
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino)
        if self._identity == identity and status.st_size >= self._at:
            file.seek(self._at - len(self._before))
            if file.read(len(self._before)) == self._before:
                return True
        file.seek(0)
        if self._identity is not None:
            first = file.readline(LONGEST)
            if not first.endswith(b"\n"):
                return False
            if _begins_a_run(first):
                self.series = RunSeries(self.most)
            file.seek(0)
        self._identity, self._at, self._rest, self._before = identity, 0, b"", b""
        return True


def read_series(path: Path, most: int = MOST) -> RunSeries:
    """Read a whole `metrics.jsonl`; a missing file has no records."""
    follower = MetricsTail(path, most)
    follower.read()
    follower.finish()
    return follower.series


def _spread(body: dict[str, Any], tables: tuple[str, ...], values: list[object]) -> Signature:
    """Appends the numbers of the tables to ``values``; returns their names."""
    signature: Signature = []
    for table in tables:
        inner = body.get(table)
        if isinstance(inner, dict) and inner:
            signature.append((table, tuple(inner)))
            values += inner.values()
    return signature


def _parse_line(line: bytes) -> Any:
    try:
        return pydantic_core.from_json(line, cache_strings="keys")
    except ValueError:
        return json.loads(line)  # reads lone surrogates and any depth too, at a quarter of the speed


def _begins_a_run(line: bytes) -> bool:
    try:
        return bool(json.loads(line).get("kind") == RunStarted.kind)
    except (ValueError, AttributeError, RecursionError):
        return False


def _is_place(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62
