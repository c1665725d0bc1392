"""Output of `drpruning inspect RUN`: recipe, stages, mixture, losses, corpus, checkpoints and folders of a run."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpruning.formatting import printable
from drpruning.records import Evaluated, ModelMeasured, RunEnded, RunStarted, StageEnded, StageStarted, StepTaken
from drpruning.records import read_records as read
from drpruning.run_folder import CHECKPOINTS, COMPARE, EXPORT, PRUNED, RECIPE, RunFolder

if TYPE_CHECKING:
    from rich.console import Console

    from drpruning.config import RunConfig
    from drpruning.tables import Table

MODELS = ("base", "pruned", "recovered")
FOLDERS = {PRUNED: "the pruned model", EXPORT: "the recovered model", CHECKPOINTS: "to resume from"}
CHECKPOINT = re.compile(r"(?P<stage>[a-z]+)-(?P<step>[0-9]{9})")


def run_facts(folder: Path) -> dict[str, Any]:
    """Read the facts of a run from its folder, as JSON-able data; unknown values are None.

    Raises:
        ConfigError: The recipe of the run is damaged.
    """
    config = _recipe(folder)
    seen: dict[type, Any] = {}
    stages: dict[str, dict[str, Any]] = {}
    models: dict[str, ModelMeasured] = {}
    for record in read(RunFolder(folder).metrics) if RunFolder(folder).metrics.is_file() else ():
        seen[type(record)] = record
        if isinstance(record, StageStarted):
            known = {"planned_steps": record.steps, "parameters": record.parameters, "shape": record.shape}
            stages.setdefault(record.stage, {"steps": 0, "tokens": 0}).update(known, complete=False)
        elif isinstance(record, StepTaken | Evaluated):
            counts = {"steps": record.step, "tokens": record.tokens}
            stages.setdefault(record.stage, {"complete": False}).update(counts)
        elif isinstance(record, StageEnded):
            counts = {"steps": record.steps, "tokens": record.tokens}
            stages.setdefault(record.stage, {}).update(counts, flops=record.flops, complete=True)
        elif isinstance(record, ModelMeasured):
            models[record.model] = record
    started, evaluated = seen.get(RunStarted), seen.get(Evaluated)
    return {
        "kind": "run",
        "folder": str(folder),
        "complete": RunEnded in seen,
        "recipe": None if config is None else _recipe_facts(config),
        "corpus": _corpus(config, started),
        "stages": stages,
        "domains": _domains(config, evaluated, models),
        "models": {name: {"parameters": item.parameters, "shape": item.shape} for name, item in models.items()},
        "checkpoints": _checkpoints(RunFolder(folder).checkpoints),
        "folders": [name for name in FOLDERS if (folder / name).is_dir()],
        "compared": sorted(path.parent.name for path in folder.glob(f"{COMPARE}/*/{RECIPE}")),
    }


def _recipe(folder: Path) -> RunConfig | None:
    from drpruning.errors import ConfigError
    from drpruning.recipes import parse_recipe

    path = RunFolder(folder).recipe
    if not path.is_file():
        return None
    try:
        return parse_recipe(RunFolder(folder).read_recipe())
    except ConfigError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} is damaged: {reason}", "Restore it, or start the run again.") from error


def _recipe_facts(config: RunConfig) -> dict[str, Any]:
    return {
        "name": config.name,
        "strategy": config.mixture.strategy,
        "seed": config.seed,
        "source": config.model.source,
        "target": None if config.prune is None else config.prune.target.model_dump(exclude_none=True),
        "hash": config.hash(),
    }


def _corpus(config: RunConfig | None, started: RunStarted | None) -> dict[str, Any]:
    """Return the corpus that the run was trained on, and whether the recipe's folder still has it (None: unknown)."""
    from drpruning.corpus import Corpus
    from drpruning.errors import CorpusError

    place = None if config is None else config.data.corpus
    fingerprint = None if started is None else started.environment.get("corpus")
    unchanged = None
    if place is not None and fingerprint is not None and (Path(place).expanduser() / "corpus.json").is_file():
        try:
            unchanged = Corpus.open(Path(place).expanduser()).fingerprint == fingerprint
        except CorpusError:
            unchanged = False
    return {"place": place, "fingerprint": fingerprint, "unchanged": unchanged}


def _domains(
    config: RunConfig | None, evaluated: Evaluated | None, models: dict[str, ModelMeasured]
) -> dict[str, dict[str, Any]]:
    ratio = {} if config is None else dict(config.reference_ratio)
    names = dict.fromkeys([*ratio, *(evaluated.losses if evaluated else ())])
    latest = evaluated.losses if evaluated else {}
    weights = evaluated.weights if evaluated else {}
    reference = (evaluated.reference_loss or {}) if evaluated else {}
    return {
        name: _finite(
            {
                "started_with": ratio.get(name),
                "weight": weights.get(name),
                "reference_loss": reference.get(name),
                "last_loss": latest.get(name),
                **{model: item.losses.get(name) for model, item in models.items()},
            }
        )
        for name in names
    }


def _finite(numbers: dict[str, float | None]) -> dict[str, float | None]:
    """Replace values that are not finite by None, because JSON has no form for them."""
    return {key: value if value is None or math.isfinite(value) else None for key, value in numbers.items()}


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Return the complete checkpoints, in the order of their names."""
    found = []
    for path in sorted(folder.glob("*/complete.json")):
        if match := CHECKPOINT.fullmatch(path.parent.name):
            size = sum(item.stat().st_size for item in path.parent.rglob("*") if item.is_file())
            found.append({"stage": match["stage"], "step": int(match["step"]), "bytes": size})
    return found


def print_run(console: Console, facts: dict[str, Any]) -> None:
    """Print the facts of :func:`run_facts`."""
    from drpruning.formatting import count, size_in_words
    from drpruning.tables.terminal import print_table

    def line(title: str, text: str) -> None:
        console.print(f"{title:<13}{printable(text)}", highlight=False, markup=False, soft_wrap=True)

    for title, text in _recipe_lines(facts):
        line(title, text)
    if facts["stages"]:
        print_table(console, _stage_table(facts["stages"]))
    if facts["domains"]:
        print_table(console, _domain_table(facts["domains"], [name for name in MODELS if name in facts["models"]]))
    for name, model in facts["models"].items():
        sizes = ", ".join(f"{size} {value}" for size, value in model["shape"].items())
        line(name, f"{count(model['parameters'])} parameters: {sizes}")
    if facts["checkpoints"]:
        kept = (f"{item['stage']} {item['step']:,} ({size_in_words(item['bytes'])})" for item in facts["checkpoints"])
        line("checkpoints", ", ".join(kept))
    if facts["folders"]:
        line("folders", ", ".join(f"{name}/ ({FOLDERS[name]})" for name in facts["folders"]))
    if facts["compared"]:
        line("comparison", ", ".join(facts["compared"]))
    if not facts["complete"] and facts["recipe"] is not None:
        line("to resume", _resume_command(Path(facts["folder"])))


def _recipe_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield title and text of the lines on folder, recipe and corpus."""
    recipe, corpus = facts["recipe"], facts["corpus"]
    yield "run", f"{facts['folder']}, {'complete' if facts['complete'] else 'not complete'}"
    if recipe is not None:
        yield "recipe", f"{recipe['name']}, strategy {recipe['strategy']}, seed {recipe['seed']}"
        target = ", ".join(f"{name} {size}" for name, size in (recipe["target"] or {}).items())
        yield "prunes" if target else "continues", f"{recipe['source']}{' to ' if target else ''}{target}"
    if corpus["place"] is not None:
        state = {None: "", True: ", unchanged", False: ", but that folder has another corpus now"}
        fingerprint = corpus["fingerprint"] or "not known yet"
        yield "corpus", f"{corpus['place']}, fingerprint {fingerprint[:16]}{state[corpus['unchanged']]}"


def _stage_table(stages: dict[str, dict[str, Any]]) -> Table:
    from drpruning.formatting import count
    from drpruning.tables import Row, Table

    rows = []
    for name, stage in stages.items():
        planned, parameters = stage.get("planned_steps"), stage.get("parameters")
        rows.append(
            Row.of(
                name,
                f"{stage.get('steps', 0):,}",
                "–" if planned is None else f"{planned:,}",
                count(stage.get("tokens", 0)),
                "–" if parameters is None else count(parameters),
                "complete" if stage.get("complete") else "not complete",
            )
        )
    return Table(["stage", "steps", "of", "tokens", "parameters", "state"], rows, text_columns=("state",))


def _domain_table(domains: dict[str, dict[str, Any]], models: Sequence[str]) -> Table:
    from drpruning.formatting import number
    from drpruning.tables import Row, Table

    rows = []
    for name, domain in domains.items():
        shares = ("–" if share is None else f"{share:.1%}" for share in (domain["started_with"], domain["weight"]))
        losses = (domain[key] for key in (*models, "last_loss", "reference_loss"))
        rows.append(Row.of(name, *shares, *(number(math.nan if loss is None else loss) for loss in losses)))
    return Table(["domain", "started\nwith", "weight", *models, "last\nevaluation", "reference\nloss"], rows)


def _resume_command(folder: Path) -> str:
    """Return the command that resumes the run, quoted for a shell."""
    recipe = RunFolder(folder).recipe
    return shlex.join(["drpruning", "train", str(recipe), "--out", str(folder), "--resume"])
