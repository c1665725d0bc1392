"""Whole runs of small models: what is compiled, whether a resumed run equals an undisturbed one, verdicts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch._dynamo.utils
from cases import Case, config_of
from random_base import with_random_base
from safetensors.torch import load_file

from drpruning.config import RunConfig
from drpruning.recipes import load_recipe, parse_recipe
from drpruning.recipes.miniature import miniature
from drpruning.records import Record, StageEnded, StepTaken, read_records
from drpruning.report.verdicts import verdicts
from drpruning.train.loop import Interrupted
from drpruning.train.run import train

NO_COMPILER = {"backend": "eager"}  # on the CPU: graphs are captured, and not compiled


class Graphs:
    """What torch.compile does, from its own counters and warnings.

    Attributes:
        by_stage: Graphs captured up to the end of each stage.
        hits: Warnings that a limit of recompilations was hit, one line each.
    """

    def __init__(self) -> None:
        self.by_stage: dict[str, int] = {}
        self.hits: list[str] = []
        self._handler = logging.Handler()
        self._handler.emit = self._emit  # type: ignore[method-assign]

    def write(self, record: Record) -> None:
        """Takes a record of the run."""
        if isinstance(record, StageEnded):
            self.by_stage[record.stage] = self.captured()

    def captured(self) -> int:
        """Graphs so far."""
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def breaks(self) -> dict[str, int]:
        """Graph breaks so far by reason."""
        return {str(reason): count for reason, count in torch._dynamo.utils.counters["graph_break"].items()}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context warnings are read."""
        logger = logging.getLogger("torch._dynamo.convert_frame")
        logger.addHandler(self._handler)
        try:
            yield
        finally:
            logger.removeHandler(self._handler)

    def _emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "hit config." in message:
            self.hits.append(" ".join(message.split())[:300])


def measure_compiled_run(case: Case, corpus: Path, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Prunes and continues in one process; each stage is to be compiled, without breaks and within the limits."""
    config = with_random_base(config_of(case, corpus, tiny=tiny), corpus, work / "base")
    graphs = Graphs()
    compile_ = torch.nn.Module.compile
    eager = patch.object(torch.nn.Module, "compile", lambda module, **_: compile_(module, **NO_COMPILER))
    with graphs.watching(), eager if tiny else nullcontext():
        train(config, work / "run", watchers=[graphs])
    before = [0, *graphs.by_stage.values()]
    added = {stage: captured - before[at] for at, (stage, captured) in enumerate(graphs.by_stage.items())}
    steps = [record for record in read_records(work / "run" / "metrics.jsonl") if isinstance(record, StepTaken)]
    return {
        "graphs_by_stage": added,
        "stages_not_compiled": sum(number == 0 for number in added.values()),
        "recompile_limit_hits": len(graphs.hits),
        "hits": graphs.hits,
        "graph_breaks": sum(graphs.breaks().values()),
        "breaks": graphs.breaks(),
        "tokens_per_second_by_stage": {
            stage: median([step.tokens_per_second for step in steps if step.stage == stage]) for stage in added
        },
    }


def measure_stopped_run(case: Case, corpus: Path, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Three runs: one, the same again, and one stopped and resumed; steps and weights compare bit by bit."""
    config = with_random_base(config_of(case, corpus, tiny=tiny), corpus, work / "base")
    first = _trained(config, work / "first")
    again = _trained(config, work / "again")
    with suppress(Interrupted):
        train(config, work / "stopped", stop=_after(config.stage("prune").steps // 2))
    resumed = _trained(config, work / "stopped", resume=True)
    return {
        "steps": len(first.steps),
        "differing_steps": first.differing_steps(resumed),
        "first_differing_step": first.first_difference(resumed),
        "differing_weights": first.differing_weights(resumed),
        "repeated_differing_steps": first.differing_steps(again),
        "repeated_differing_weights": first.differing_weights(again),
    }


class Trained:
    """A finished run, to compare with others.

    Args:
        folder: Its folder.

    Attributes:
        steps: Stage, number, loss and norm of the gradient of each step.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        records = [each for each in read_records(folder / "metrics.jsonl") if isinstance(each, StepTaken)]
        self.steps = [(each.stage, each.step, each.loss, each.grad_norm) for each in records]

    def differing_steps(self, other: Trained) -> int:
        """Count the steps that differ; a step that one run lacks counts."""
        unequal = sum(one != two for one, two in zip(self.steps, other.steps, strict=False))
        return unequal + abs(len(self.steps) - len(other.steps))

    def first_difference(self, other: Trained) -> list[Any] | None:
        """Stage and number of the first step that is not equal."""
        pairs = zip(self.steps, other.steps, strict=False)
        return next((list(one[:2]) for one, two in pairs if one != two), None)

    def differing_weights(self, other: Trained) -> int:
        """Count the numbers of the final model with other bits."""
        ours, theirs = (load_file(each.folder / "export" / "model.safetensors") for each in (self, other))
        if {name: tensor.shape for name, tensor in ours.items()} != {n: tensor.shape for n, tensor in theirs.items()}:
            return sum(tensor.numel() for tensor in ours.values())
        return sum(int((ours[name].view(torch.int32) != theirs[name].view(torch.int32)).sum()) for name in ours)


def measure_miniature(case: Case, corpus: Path, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Run a shipped recipe in miniature on the GPU and return its verdicts."""
    os.environ["DRPRUNING_CACHE"] = str(work / "cache")
    body = miniature(load_recipe(case.recipe)).to_dict()
    body["training"]["device"] = "cpu" if tiny else "cuda"
    if tiny:  # the verdicts are then of an optimisation that has hardly begun
        for stage in ("pretrain", "prune", "continue"):
            if body[stage] is not None:
                body[stage] |= {"steps": 6, "eval_every": 3}
    train(parse_recipe(body), work / "run")
    records = list(read_records(work / "run" / "metrics.jsonl"))
    found = verdicts(records)
    steps = [record for record in records if isinstance(record, StepTaken)]
    return {
        "steps": len(steps),
        "steps_per_second": len(steps) / sum(each.seconds for each in records if isinstance(each, StageEnded)),
        "failed_verdicts": sum(not verdict.passed for verdict in found),
        "verdicts": {verdict.name: verdict.detail for verdict in found},
    }


def _trained(config: RunConfig, folder: Path, *, resume: bool = False) -> Trained:
    train(config, folder, resume=resume)
    return Trained(folder)


def _after(steps: int) -> Callable[[], bool]:
    """Return a ``stop`` that is true from its ``steps``-th call on."""
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls >= steps

    return stop
