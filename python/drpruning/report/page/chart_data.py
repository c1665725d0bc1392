"""The data of the interactive figures: numbers as plain lists, names as indices, rounded to visible digits."""

from __future__ import annotations

import math
from typing import Any

from drpruning.formatting import printable
from drpruning.records import Incident, RunStarted
from drpruning.report.diagrams import LARGEST_DRAWN
from drpruning.report.read.downsample import Bins, Vector
from drpruning.report.read.run import MASK_TABLES, MOST_NAMES, Run, base_of_curves, last, mask_kinds, records_of
from drpruning.report.read.tail import EVALUATION_TABLES, STEP_NUMBERS

GIB = 2**30
DIGITS, PLACE_DIGITS = 5, 9


def page_data(run: Run) -> dict[str, Any]:
    """Return the data of ``run`` and of the runs compared with it for the page's script.

    Names are in ``domains`` and ``kinds`` once; all other fields have indices, so that no name from a run folder is
    a key of a JavaScript object.
    """
    runs = [run, *run.others]
    domains = list(dict.fromkeys(name for each in runs for name in each.domains))[:MOST_NAMES]
    kinds = mask_kinds(runs)
    return {
        "domains": [printable(name) for name in domains],
        "kinds": [printable(kind) for kind in kinds],
        "runs": [_run(each, domains, kinds) for each in runs],
    }


def _run(run: Run, domains: list[str], kinds: list[str]) -> dict[str, Any]:
    started, base = last(run.records, RunStarted), base_of_curves(run.records)
    rho = started.rho if started else None
    return {
        "label": printable(run.label),
        "rho": rho if rho is not None and math.isfinite(rho) else None,
        "base": [_drawable(base.get(name)) for name in domains],
        "stages": [
            {
                "name": printable(stage.name),
                "tokens": stage.tokens,
                "steps": stage.steps,
                "seconds": stage.seconds,
                "began": stage.began,
                "evaluations": _evaluations(run.series.evaluations.get(stage.name), domains),
                "taken": _steps(run.series.steps.get(stage.name), domains, kinds),
                "incidents": [
                    [incident.step, printable(incident.what)]
                    for incident in records_of(run.records, Incident)[:200]
                    if incident.stage == stage.name and incident.step is not None
                ],
            }
            for stage in run.stages
        ],
    }


def _evaluations(bins: Bins | None, domains: list[str]) -> dict[str, Any] | None:
    if bins is None:
        return None
    tables = (*EVALUATION_TABLES, "predicted_low", "predicted_high")
    return {
        **_places(bins),
        "divergence": _mean(bins, "divergence"),
        **{table: [_mean(bins, table, name) for name in domains] for table in tables if table != "epochs"},
    }


def _steps(bins: Bins | None, domains: list[str], kinds: list[str]) -> dict[str, Any] | None:
    if bins is None:
        return None
    numbers: dict[str, Any] = {}
    for name in STEP_NUMBERS:
        if name == "skipped":
            continue
        unit = GIB if name == "memory" else 1
        columns = (bins.mean((name, "")), bins.low((name, "")), bins.high((name, "")))
        mean, low, high = (_drawable_list(column / unit) for column in columns)
        numbers[name] = None if mean is None else {"mean": mean, "low": None, "high": None}
        if mean is not None and bins.width > 1:
            numbers[name] |= {"low": low, "high": high}
    return {
        **_places(bins),
        **numbers,
        "domain_losses": [_mean(bins, "domain_losses", name) for name in domains],
        **{table: [_mean(bins, table, kind) for kind in kinds] for table in MASK_TABLES},
    }


def _places(bins: Bins) -> dict[str, Any]:
    return {name: _drawable_list(bins.mean((name, "")), PLACE_DIGITS, 1e30) for name in ("step", "tokens", "time")}


def _mean(bins: Bins, table: str, name: str = "") -> list[float | None] | None:
    return _drawable_list(bins.mean((table, name)))


def _drawable_list(values: Vector, digits: int = DIGITS, largest: float = LARGEST_DRAWN) -> list[float | None] | None:
    """Return numbers for JSON, null for those that cannot be drawn; None if none can."""
    drawn = [float(f"{value:.{digits}g}") if abs(value) < largest else None for value in values.tolist()]
    return drawn if any(value is not None for value in drawn) else None


def _drawable(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if value is not None and abs(value) < LARGEST_DRAWN else None
