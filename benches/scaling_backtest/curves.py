"""Read the curves of the backtest, and select the held-out ones."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.scaling import LearningRates

Vector = NDArray[np.float64]

LUO_WARMUP = 2160
"""Steps of linear warm-up before the first evaluation of Luo et al. (2025): src/config.py of their code."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One loss curve: one domain of one run.

    Attributes:
        run: Name of the run; its domains are correlated, so statistics count runs, not curves.
        domain: Name of the domain.
        group: Family of runs.
        steps: Optimizer steps, increasing, ``[n]``; the law's ``T`` up to a factor, the batch size.
        params: Parameters in use, ``[n]``.
        losses: Held-out loss, nats per token, ``[n]``.
        rates: Learning rate at each point in any unit, ``[n]``, or None where it is not known.
        schedule: Description of the schedule in the source.
    """

    run: str
    domain: str
    group: str
    steps: Vector
    params: Vector
    losses: Vector
    rates: Vector | None
    schedule: str

    @property
    def family(self) -> str:
        """Runs of one project: data, code and tuning are common to a family, and no choice crosses from one to another.

        The first word of the group: `mpl` has the groups `mpl-constant`, `mpl-cosine` and `mpl-wsd`.
        """
        return self.group.split("-")[0]

    @property
    def learning_rates(self) -> LearningRates | None:
        """The schedule up to the end of the run, None where it is not known."""
        if self.rates is None:
            return None
        corners, rates = self.steps, self.rates
        if self.family == "mpl":
            later = corners > LUO_WARMUP
            corners, rates = np.append([0, LUO_WARMUP], corners[later]), np.append([0, max(rates)], rates[later])
        return LearningRates(corners, rates)

    @property
    def held_out(self) -> bool:
        """Whether the curve took no part in any choice: a third of the runs, by hash of the name."""
        return int(hashlib.sha256(self.run.encode()).hexdigest(), 16) % 3 == 0


def read(path: Path) -> list[Curve]:
    """Read the curves of a folder (``manifest.json`` and one CSV a run) or of a packed file (``.json.gz``)."""
    if path.is_dir():
        runs = [read_run(path, entry) for entry in json.loads((path / "manifest.json").read_text(encoding="utf-8"))]
    else:
        runs = json.loads(gzip.decompress(path.read_bytes()))["runs"]
    return [curve for run in runs for curve in _curves(run)]


def read_run(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Return a run in the form of the packed file: the manifest's entry and the CSV's columns, null for empty cells."""
    with (folder / f"{entry['id']}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ["step", "lr", *(["params"] if "params" in rows[0] else []), *entry["losses"]]
    columns = {name: [float(row[name]) if row[name] else None for row in rows] for name in names}
    return {key: entry[key] for key in ("id", "group", "source", "licence", "schedule", "params", "losses")} | {
        "columns": columns
    }


def _cosine(steps: float) -> tuple[Vector, Vector]:
    """Return the schedule of Muennighoff et al. (2023), not in their logs: warm-up over 1%, cosine to a tenth."""
    schedule = LearningRates.cosine(steps, warmup=0.01 * steps, floor=0.1)
    return np.array(schedule.tokens), np.array(schedule.rates)


def _curves(run: dict[str, Any]) -> list[Curve]:
    columns = {name: np.array(values, dtype=np.float64) for name, values in run["columns"].items()}
    steps = columns["step"]
    params = columns.get("params", np.full(steps.size, run["params"] or 1.0))
    rates = columns["lr"] if np.isfinite(columns["lr"]).all() else None
    if rates is None and run["schedule"].startswith("warmup + cosine to 10%;"):
        rates = np.interp(steps, *_cosine(steps[-1]))
    return [
        Curve(
            run=run["id"],
            domain=domain,
            group=run["group"],
            steps=steps,
            params=params,
            losses=columns[domain],
            rates=rates,
            schedule=run["schedule"],
        )
        for domain in run["losses"]
    ]
