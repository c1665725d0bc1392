"""What the page's script draws: the numbers of the runs as plain lists, names as indices, rounded to what is seen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from drpruning.records import Incident, RunStarted
from drpruning.report.bins import Bins, Vector
from drpruning.report.follow import EVALUATION_TABLES, STEP_NUMBERS
from drpruning.report.run import Run, base_of_curves, last, of_kind, shown

KINDS = ("layer", "head", "intermediate", "hidden")
MOST_NAMES = 200  # domains or mask kinds that are drawn
LARGEST = 1e12  # no loss, speed or multiplier comes near; memory is drawn in GiB
GIB = 2**30
DIGITS, PLACE_DIGITS = 5, 9
MASKS = ("expected", "wanted", "linear", "quadratic")


def page_data(run: Run) -> dict[str, Any]:
    """``run`` and the runs beside it, for the page's script.

    Names stand in ``domains`` and ``kinds`` once and are indices elsewhere, so that no name from a run folder is ever
    a key of a JavaScript object.
    """
    runs = [run, *run.others]
    domains = list(dict.fromkeys(name for each in runs for name in each.domains))[:MOST_NAMES]
    kinds = mask_kinds(runs)
    return {
        "domains": [shown(name) for name in domains],
        "kinds": [shown(kind) for kind in kinds],
        "runs": [_run(each, domains, kinds) for each in runs],
    }


def mask_kinds(runs: Iterable[Run]) -> list[str]:
    """The mask kinds: the known ones in their order, then any other."""
    seen = {
        str(name[1])
        for run in runs
        for bins in run.collected.steps.values()
        for name in bins.names
        if isinstance(name, tuple) and name[0] in MASKS
    }
    return [*(kind for kind in KINDS if kind in seen), *sorted(seen - set(KINDS))][:MOST_NAMES]


def _run(run: Run, domains: list[str], kinds: list[str]) -> dict[str, Any]:
    started, base = last(run.records, RunStarted), base_of_curves(run.records)
    rho = started.rho if started else None
    return {
        "label": shown(run.label),
        "rho": rho if rho is not None and math.isfinite(rho) else None,
        "base": [_one(base.get(name)) for name in domains],
        "stages": [
            {
                "name": shown(stage.name),
                "tokens": stage.tokens,
                "steps": stage.steps,
                "seconds": stage.seconds,
                "began": stage.began,
                "evaluations": _evaluations(run.collected.evaluations.get(stage.name), domains),
                "taken": _steps(run.collected.steps.get(stage.name), domains, kinds),
                "incidents": [
                    [incident.step, shown(incident.what)]
                    for incident in of_kind(run.records, Incident)[:200]
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
        mean, low, high = (_rounded(column / unit) for column in columns)
        numbers[name] = None if mean is None else {"mean": mean, "low": None, "high": None}
        if mean is not None and bins.width > 1:
            numbers[name] |= {"low": low, "high": high}
    return {
        **_places(bins),
        **numbers,
        "domain_losses": [_mean(bins, "domain_losses", name) for name in domains],
        **{table: [_mean(bins, table, kind) for kind in kinds] for table in MASKS},
    }


def _places(bins: Bins) -> dict[str, Any]:
    return {name: _rounded(bins.mean((name, "")), PLACE_DIGITS, 1e30) for name in ("step", "tokens", "time")}


def _mean(bins: Bins, table: str, name: str = "") -> list[float | None] | None:
    return _rounded(bins.mean((table, name)))


def _rounded(values: Vector, digits: int = DIGITS, largest: float = LARGEST) -> list[float | None] | None:
    """Numbers for JSON, null where there is none or it cannot be drawn; None if there is none at all."""
    drawn = [float(f"{value:.{digits}g}") if abs(value) < largest else None for value in values.tolist()]
    return drawn if any(value is not None for value in drawn) else None


def _one(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if value is not None and abs(value) < LARGEST else None
