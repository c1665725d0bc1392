"""The cases of the benchmark: stages of the shipped recipes with other settings, and the bounds of each."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drpruning.config import RunConfig
from drpruning.config.training import TrainingConfig
from drpruning.planning.memory import stage_memory
from drpruning.planning.recipe import source_shape
from drpruning.recipes import load_recipe, shipped_recipes

GIB = 2**30
WARM = 3  # steps that are not counted: kernels are compiled and chosen, the allocator and the optimizer fill up
SAVED_AFTER = 4  # counted steps before the checkpoint, in the case that writes one
BATCH = 32  # rows of a step: the recipes' in the prune stage; an eighth of theirs in the continue stage
TINY = {
    "model.architecture": {"layers": 3, "hidden": 64, "heads": 4, "intermediate": 96, "vocabulary": 512},
    "prune.target": {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 48},
    "data.seq_len": 64,
    "training.eval_tokens": 64,
    "training.final_eval_tokens": 64,
    "training.peak_tflops": 0.1,
    "training.device": "cpu",
    "training.threads": 1,
}
FEW_STEPS = {
    "prune.steps": 8,
    "prune.batch_size": 4,
    "prune.eval_every": 4,
    "continue.steps": 2,
    "continue.eval_every": 2,
    "training.checkpoint_every": 2,
}
"""Of whole runs, with :data:`TINY`."""
SOURCES: dict[str, dict[str, Any]] = {
    "7B to 2.7B": {},
    "2.7B to 1.3B": {
        "model.architecture": {"layers": 32, "hidden": 2560, "heads": 20, "intermediate": 6912, "vocabulary": 32000},
        "prune.target": {"layers": 24, "hidden": 2048, "heads": 16, "intermediate": 5504},
    },
    "1.3B to 370M": {
        "model.architecture": {"layers": 24, "hidden": 2048, "heads": 16, "intermediate": 5504, "vocabulary": 32000},
        "prune.target": {"layers": 24, "hidden": 1024, "heads": 8, "intermediate": 2816},
    },
}
"""Pairs of source and target, the largest first: that of the recipe, and what the recipes make of it."""
NARROW = {"training.weight_format": "bfloat16+low16", "training.optimizer_state_format": "bfloat16"}
SMALL: dict[str, Any] = {
    "model.architecture": {"layers": 8, "hidden": 1024, "heads": 16, "intermediate": 2816, "vocabulary": 32000},
    "prune.target": {"layers": 6, "hidden": 512, "heads": 8, "intermediate": 1408},
    "data.seq_len": 1024,
}
"""A source for whole runs, whose stages take seconds."""

Bound = tuple[str, float]
"""``at least`` or ``at most``, and the number."""


@dataclass(frozen=True)
class Case:
    """One row of a table, measured in a separate process.

    Attributes:
        name: Of the row.
        kind: Which function measures it, see :func:`bench.measure`.
        seconds: Estimate for the process on an H100, generous: a case starts only when this much time is left.
        recipe: A shipped one.
        stage: ``prune`` or ``continue``.
        settings: Changed in the recipe.
        masks: ``open``: all are one; ``target``: those of the target are, the others zero; ``none``: no masks.
        whole: Continue with the source instead of the target.
        checkpoint: Write one in the middle.
        targets: By name of a figure of the result.
    """

    name: str
    kind: str
    seconds: int
    recipe: str = "llama2-7b-to-1.3b"
    stage: str = "continue"
    settings: dict[str, Any] = field(default_factory=dict)
    masks: str = "none"
    whole: bool = False
    checkpoint: bool = False
    targets: dict[str, Bound] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which :meth:`from_dict` makes an equal case."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> Case:
        """Return the case of :meth:`to_dict`, also after JSON."""
        return cls(**{**body, "targets": {name: (word, bound) for name, (word, bound) in body["targets"].items()}})


STEPS: dict[str, Bound] = {"loader_wait_share": ("at most", 0.01), "synchronisations_per_step": ("at most", 0)}
"""Bounds that every training step must meet."""
MEMORY: dict[str, Bound] = {"peak_over_plan": ("at most", 1.1), "plan_over_peak": ("at most", 1.1)}
PHASES: dict[str, Bound] = {"largest_peak_bytes": ("at most", 76 * GIB), "peak_over_plan": ("at most", 1.1)}


def cases(pruned: str) -> list[Case]:
    """Return all cases, the ones that matter most first; ``pruned`` is one of :data:`SOURCES`."""
    return [
        *_pruning(pruned),
        *_continuing(),
        *_whole_runs(),
        *_parts(),
    ]


def _pruning(pruned: str) -> Iterator[Case]:
    """Steps of a prune stage, and its phases from importance to export."""
    full = {"training.compile": True, "training.activation_checkpointing": "full", "training.micro_batch_size": 4}
    common = SOURCES[pruned] | full | NARROW
    recipe = "llama2-7b-to-2.7b"

    def steps(more: str, masks: str = "open", targets: dict[str, Bound] | None = None, **changes: Any) -> Case:
        settings = common | {k.replace("__", "."): v for k, v in changes.items()}
        name, stage = f"prune {pruned}, {more}", "continue" if masks == "none" else "prune"
        return Case(
            name,
            "steps",
            420,
            recipe,
            stage,
            settings,
            masks,
            whole=masks == "none",
            targets=STEPS | (targets or {}),
        )

    most: dict[str, Bound] = {"utilisation": ("at least", 0.40), "reserved_bytes": ("at most", 76 * GIB)}
    yield steps("masks open", targets=most | MEMORY)
    yield steps("without masks", masks="none", targets={"utilisation": ("at least", 0.45)})
    yield steps("masks at the target, skipped", masks="target")
    # Two micro-batches have the memory of a whole batch, and nothing is compiled in the plan either
    short = common | {"training.compile": False, "prune.batch_size": 8}
    for moments in ("bfloat16", "int8"):
        settings = short | {
            "training.optimizer_state_format": moments,
            "prune.steps": 6,
            "training.checkpoint_every": 2,
        }
        name = f"phases of prune {pruned}, saved and resumed, {moments} moments"
        yield Case(name, "resumed phases", 500, recipe, "prune", settings, targets=PHASES)
    settings = short | {"prune.steps": 5, "prune.gate_init": "taylor"}
    yield Case(f"phases of prune {pruned}, start to export", "phases", 400, recipe, "prune", settings, targets=PHASES)
    yield steps("masks at the target, computed", masks="target", prune__skip_pruned_units=False)
    yield steps("masks open, int8 moments", targets=MEMORY, training__optimizer_state_format="int8")
    yield steps("masks open, not compiled", training__compile=False)
    yield steps("masks open, 2 rows", training__micro_batch_size=2)
    yield steps("masks open, within documents", data__document_mask=True)


def _continuing() -> Iterator[Case]:
    """Steps of a continue stage: sizes, checkpointing, losses, attention kernels."""
    quick = {"training.compile": True, "training.activation_checkpointing": "none"}

    def steps(size: str, micro: int, more: str = "", targets: dict[str, Bound] | None = None, **changes: Any) -> Case:
        settings = quick | {"training.micro_batch_size": micro} | {k.replace("__", "."): v for k, v in changes.items()}
        name = f"continue {size}, {micro} rows{', ' * bool(more)}{more}"
        recipe = f"llama2-7b-to-{size.lower()}"
        seconds = 300 if size == "1.3B" else 360
        return Case(name, "steps", seconds, recipe, settings=settings, targets=STEPS | (targets or {}))

    fast: dict[str, Bound] = {"utilisation": ("at least", 0.45)}
    yield steps("1.3B", 4, targets=fast | MEMORY)
    yield steps("2.7B", 2, targets=fast | MEMORY)
    for attention in ("sdpa", "flex_attention"):
        more = f"within documents, {attention}"
        yield steps("1.3B", 4, more, data__document_mask=True, training__attention=attention)
    yield steps("1.3B", 4, "flex_attention", training__attention="flex_attention")
    yield steps("1.3B", 4, "not compiled", training__compile=False)
    yield steps("1.3B", 2)
    for kind in ("selective", "full"):
        yield steps("1.3B", 8, f"{kind} checkpointing", training__activation_checkpointing=kind)
        yield steps("2.7B", 4, f"{kind} checkpointing", training__activation_checkpointing=kind)
    yield steps("1.3B", 4, "torch's loss", training__cross_entropy="torch")
    if importlib.util.find_spec("liger_kernel") is not None:
        yield steps("1.3B", 4, "liger's loss", training__cross_entropy="liger")
    settings = quick | {"training.micro_batch_size": 4}
    targets: dict[str, Bound] = {"checkpoint_share": ("at most", 0.02)}
    yield Case("continue 1.3B, 4 rows, a checkpoint", "steps", 400, settings=settings, checkpoint=True, targets=targets)


def _whole_runs() -> Iterator[Case]:
    """Whole runs of a small model: compiled, stopped and resumed; and the miniature of each shipped recipe."""
    few = {"prune.steps": 60, "prune.eval_every": 20, "continue.steps": 20, "continue.eval_every": 10}
    small = SMALL | {"prune.batch_size": 8, "continue.batch_size": 8, "training.micro_batch_size": 4} | few
    for checkpointing in ("full", "selective"):
        settings = small | NARROW
        settings |= {"training.compile": True, "training.activation_checkpointing": checkpointing}
        figures = ("recompile_limit_hits", "graph_breaks", "stages_not_compiled")
        none: dict[str, Bound] = dict.fromkeys(figures, ("at most", 0))
        name = f"compiled run of prune and continue, {checkpointing} checkpointing"
        yield Case(name, "compiled run", 400, settings=settings, targets=none)
    short = {"prune.steps": 20, "prune.eval_every": 10, "continue.steps": 6, "continue.eval_every": 3}
    for deterministic in (False, True):
        settings = small | short | NARROW | {"training.checkpoint_every": 5}
        if deterministic:
            settings["training.deterministic"] = True
        equal: dict[str, Bound] = dict.fromkeys(("differing_steps", "differing_weights"), ("at most", 0))
        name = f"stopped and resumed, {'' if deterministic else 'not '}deterministic"
        yield Case(name, "stopped run", 240, settings=settings, targets=equal if deterministic else {})
    for recipe in shipped_recipes():
        failed: dict[str, Bound] = {"failed_verdicts": ("at most", 0)}
        yield Case(f"miniature of {recipe}", "miniature", 400, recipe, targets=failed)


def _parts() -> Iterator[Case]:
    """Yield the optimizer's step and the loader alone."""
    for weights, moments in (
        ("float32", "float32"),
        ("bfloat16+low16", "bfloat16"),
        ("bfloat16+low16", "int8"),
        ("bfloat16", "int8"),
    ):
        settings = {"training.weight_format": weights, "training.optimizer_state_format": moments}
        name = f"optimizer's step, {weights} weights, {moments} moments"
        yield Case(name, "optimizer", 120, "llama2-7b-to-1.3b", settings=settings)
    # 100 times what a 7B prune stage takes: less than 1% of its step without prefetch
    enough: dict[str, Bound] = {"tokens_per_second": ("at least", 1_400_000)}
    for rows in (BATCH, 256):
        yield Case(f"loader, {rows} rows", "loader", 90, settings={"continue.batch_size": rows}, targets=enough)


def unknown_setting(case: Case) -> str | None:
    """Return a setting of ``training`` that this version of the package does not have."""
    names = (key.removeprefix("training.") for key in case.settings if key.startswith("training."))
    return next((name for name in names if name not in TrainingConfig.model_fields), None)


def config_of(case: Case, corpus: Path, *, tiny: bool, **more: Any) -> RunConfig:
    """Return the recipe of a case; ``more`` has settings of the measurement alone."""
    settings: dict[str, Any] = {
        f"{case.stage}.batch_size": BATCH,
        f"{case.stage}.eval_every": 10**6,
        "training.eval_tokens": 4096,
        "training.final_eval_tokens": 4096,
        "training.checkpoint_every": WARM + SAVED_AFTER if case.checkpoint else 10**6,
        "data.corpus": str(corpus),
        "data.document_mask": False,
    } | case.settings
    if case.masks != "none":
        still = 1e-12  # gates stay where they were put
        settings |= {"prune.gate_learning_rate": still, "prune.multiplier_learning_rate": still}
    if tiny:
        settings |= TINY | {"training.micro_batch_size": 2, f"{case.stage}.batch_size": 4}
        if case.kind in ("compiled run", "stopped run"):
            settings |= FEW_STEPS
        if case.kind != "compiled run":
            settings["training.compile"] = False
    if case.whole:
        settings["prune.target"] = {"layers": settings.get("model.architecture", {"layers": 32})["layers"]}
    settings |= more
    return load_recipe(case.recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def largest_source(room: int) -> str:
    """Return the first of :data:`SOURCES` that is planned to fit into ``room`` bytes of memory; the last if none is."""
    for name in SOURCES:
        case = next(case for case in cases(name) if case.masks == "open")
        config = config_of(case, Path("corpus"), tiny=False)
        if stage_memory(config, "prune", source_shape(config)).total <= room:
            break
    return name
