"""Does the prune stage of a shipped recipe end at its target, from every seed? `python benches/miniature/run.py`.

Runs the prune stage of a recipe in miniature (all its steps) and one step of the stage continue, seed by seed, and
appends the verdicts of each to a JSON file. Seeds that the file has are not run again.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from drpruning.files import write_text
from drpruning.recipes import load_recipe
from drpruning.recipes.miniature import miniature
from drpruning.records import StageEnded, read_records
from drpruning.report.verdicts import verdicts
from drpruning.train.run import train

FOLDER = Path(__file__).parent


def run(recipe: str, seed: int) -> dict[str, Any]:
    """Run one seed; return its verdicts and the seconds of its prune stage."""
    config = miniature(load_recipe(recipe, [f"seed={seed}"]), continue_steps=1)
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run")
        records = list(read_records(Path(folder) / "run" / "metrics.jsonl"))
    seconds = next(record.seconds for record in records if isinstance(record, StageEnded) and record.stage == "prune")
    found = verdicts(records)
    return {
        "seed": seed,
        "seconds": seconds,
        **{verdict.name: {"passed": verdict.passed, "value": round(verdict.value, 6)} for verdict in found},
        "detail": next(verdict.detail for verdict in found if verdict.name == "targets"),
    }


@click.command()
@click.option("--recipe", default="llama2-7b-to-1.3b", show_default=True)
@click.option("--seeds", default=20, show_default=True, help="Number of seeds; they are 1, 2, and so on.")
def main(recipe: str, seeds: int) -> None:
    """Write benches/miniature/RECIPE.json and print how many seeds pass each verdict."""
    file = FOLDER / f"{recipe}.json"
    body: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"runs": []}
    known = {item["seed"]: item for item in body["runs"]}
    for seed in range(1, seeds + 1):
        if seed not in known:
            known[seed] = run(recipe, seed)
            body = {
                "command": f"python benches/miniature/run.py --recipe {recipe} --seeds {seeds}",
                "date": date.today().isoformat(),
                "machine": f"{platform.machine()}, {platform.system()}, one thread",
                "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
                "runs": [known[each] for each in sorted(known)],
            }
            write_text(file, json.dumps(body, indent=1) + "\n")
        print(time.strftime("%H:%M:%S"), json.dumps(known[seed]), flush=True)
    for name in ("targets", "cut", "finite"):
        passed = sum(known[seed][name]["passed"] for seed in range(1, seeds + 1))
        most = max(known[seed][name]["value"] for seed in range(1, seeds + 1))
        print(f"{name}: {passed} of {seeds}, largest value {most:.5f}")


if __name__ == "__main__":
    sys.exit(main())
