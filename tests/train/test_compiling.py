"""Blocks stay compiled over a whole run, and what selective checkpointing keeps is not computed twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from drpruning.config import RunConfig
from drpruning.records import Incident, ModelMeasured, Record, StageEnded, StageStarted, read_records
from drpruning.train.compiling import compiling
from drpruning.train.ranks import joined
from drpruning.train.run import train
from tests.train.test_run import Recipe

SHORT = {"steps": 4, "evaluate_every": 2}
RAGGED = {"evaluation_tokens": 32 * 7, "measurement_tokens": 32 * 11, "evaluation_batch_size": 4}
EVENTS = (StageStarted, StageEnded, ModelMeasured)


@contextmanager
def counting(patch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Compiles without generating code, into the list of graphs; a hit of the limit of versions is an exception."""
    graphs: list[Any] = []
    real = nn.Module.compile

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    patch.setattr(nn.Module, "compile", lambda module: real(module, backend=backend))
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield graphs


class Watching:
    """Notes how many graphs there are at each event of a run."""

    def __init__(self, graphs: list[Any]) -> None:
        self.graphs = graphs
        self.seen: list[tuple[str, str, int]] = []

    def write(self, record: Record) -> None:
        if isinstance(record, EVENTS):
            name = record.model if isinstance(record, ModelMeasured) else record.stage
            self.seen.append((type(record).__name__, name, len(self.graphs)))


def long_recipe(recipe: Recipe, **training: Any) -> RunConfig:
    """More blocks than torch's limit of versions, which all close to half, over all stages and measurements."""
    shape = {"layers": 10, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 48, "positions": 64}
    rates = {"mask_learning_rate": 0.7, "multiplier_learning_rate": 0.4, "target_warmup": 0.2}
    target = {"layers": 6, "hidden": 16, "heads": 2, "intermediate": 16}
    return recipe(
        model={"architecture": shape},
        pretrain=SHORT,
        prune={"steps": 24, "evaluate_every": 6, "target": target, **rates},
        training={"compile": True, "checkpoint_every": 100, **RAGGED, **training},
        **{"continue": SHORT},
    )


@pytest.mark.skipif(torch.__version__ < "2.9", reason="breaks in the forward pass of transformers itself")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at every input's
@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_every_stage_of_a_run_is_compiled(
    kind: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(monkeypatch) as graphs:
        watching = Watching(graphs)
        train(long_recipe(recipe, activation_checkpointing=kind), tmp_path / "run", watchers=[watching])
    print(watching.seen)
    assert not counters["graph_break"]
    assert not counters["unimplemented"]
