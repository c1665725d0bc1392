"""Blocks stay compiled over a whole run, and what selective checkpointing keeps is not computed twice."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from transformers import GptOssConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from drpruning.config import RunConfig, TrainingConfig
from drpruning.pruning.verification import TinyModels, tiny_config
from drpruning.recipes import load_recipe
from drpruning.records import Evaluated, Incident, ModelMeasured, Record, StageEnded, StageStarted, read_records
from drpruning.train import compiling as compiling_module
from drpruning.train.compiling import LIMIT, compile_blocks, compiling
from drpruning.train.distributed.ranks import join_ranks
from drpruning.train.model_runtime import prepare
from drpruning.train.run import train
from tests.train.processes import CONTEXT
from tests.train.test_run import Recipe

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default)
SHORT = {"steps": 4, "eval_every": 2}
RAGGED = {"eval_tokens": 32 * 7, "final_eval_tokens": 32 * 11, "eval_batch_size": 4}
EVENTS = (StageStarted, StageEnded, ModelMeasured)


@contextmanager
def counting(patch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Compile without generating code, into the list of graphs; a hit of the limit of versions is an exception."""
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


def long_recipe(recipe: Recipe, steps: int = 24, **training: Any) -> RunConfig:
    """Return a recipe with more blocks than torch's recompile limit, all pruned to half, over all stages."""
    shape = {"layers": 9, "hidden": 32, "heads": 4, "kv_heads": 2, "intermediate": 48, "positions": 64}
    rates = {"gate_learning_rate": 0.7, "multiplier_learning_rate": 0.4, "sparsity_warmup_fraction": 0.2}
    target = {"layers": 6, "hidden": 16, "heads": 2, "intermediate": 16}
    return recipe(
        model={"architecture": shape},
        pretrain=SHORT,
        prune={"steps": steps, "eval_every": steps // 4, "target": target, **rates},
        training={"compile": True, "checkpoint_every": 100, **RAGGED, **training},
        **{"continue": SHORT},
    )


pytestmark = [
    pytest.mark.skipif(torch.__version__ < "2.9", reason="breaks in the forward pass of transformers itself"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # the compiler looks at every input's
]


def assert_compiled(seen: list[tuple[str, str, int]]) -> None:
    """Check that every stage and every measured model adds graphs, and at most half of the limit."""
    counts = [0, *(count for _, _, count in seen)]
    for (event, name, count), before in zip(seen, counts, strict=False):
        if event != "StageStarted":
            assert count > before, f"{event} {name} compiled nothing: {seen}"
        assert count - before <= LIMIT // 2
    assert [name for event, name, _ in seen if event == "StageEnded"] == ["pretrain", "prune", "continue"]
    assert [name for event, name, _ in seen if event == "ModelMeasured"] == ["base", "pruned", "recovered"]


@pytest.mark.parametrize("kind", ["none", "full"])  # selective: in two processes below
def test_every_stage_of_a_run_is_compiled(
    kind: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where masks close whole blocks and change sizes, and evaluations are ragged."""
    with counting(monkeypatch) as graphs:
        watching = Watching(graphs)
        train(long_recipe(recipe, activation_checkpointing=kind), tmp_path / "run", watchers=[watching])
    assert_compiled(watching.seen)
    assert not counters["graph_break"]
    assert not counters["unimplemented"]
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    sizes = [record.parameters for record in records if isinstance(record, Evaluated)]
    assert min(sizes) < 0.6 * max(sizes)


def one_rank(recipe: str, out: str, environment: dict[str, str]) -> None:
    """Run a rank of a run in a child process, and write the count of compilations to OUT.RANK.json."""
    os.environ.update(environment)
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
    with pytest.MonkeyPatch.context() as patch, counting(patch) as graphs, join_ranks("cpu", 600.0) as ranks:
        watching = Watching(graphs)
        train(load_recipe(recipe), Path(out), watchers=[watching], ranks=ranks)
        counts = {"seen": watching.seen, "graphs": len(graphs), "breaks": list(counters["graph_break"])}
    Path(f"{out}.{environment['RANK']}.json").write_text(json.dumps(counts))


def test_every_stage_is_compiled_under_sharding_too(recipe: Recipe, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(long_recipe(recipe, steps=8, activation_checkpointing="selective").to_yaml())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "DRPRUNING_CACHE": str(cache)}
    arguments = str(tmp_path / "tiny.yaml"), str(tmp_path / "run")
    processes = [
        CONTEXT.Process(target=one_rank, args=(*arguments, {**shared, "RANK": rank, "LOCAL_RANK": rank}))
        for rank in ("0", "1")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(1200)
        assert process.exitcode == 0
    first, second = (json.loads((tmp_path / f"run.{rank}.json").read_text()) for rank in (0, 1))
    assert_compiled([tuple(each) for each in first["seen"]])
    assert not first["breaks"]
    assert first["graphs"] == second["graphs"]


@pytest.mark.parametrize("kind", ["none", "full"])
def test_experts_are_compiled_without_a_break(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check two steps with other masks against the uncompiled model; the backend runs the graph's operations."""
    found = []
    with counting(monkeypatch) as graphs:
        for compiled in (False, True):
            models = TinyModels(tiny_config(GptOssConfig(), tied=False))
            masked = models.masked().train()
            prepare(masked, TrainingConfig(compile=compiled, activation_checkpointing=kind))
            for seed in (0, 1):
                masked.sample_masks(torch.Generator().manual_seed(seed))
                masked(models.tokens, labels=models.tokens).loss.backward()
            found.append({name: weight.grad for name, weight in masked.named_parameters() if weight.grad is not None})
    assert graphs
    assert not counters["graph_break"]
    plain, compiled_too = found
    assert plain.keys() == compiled_too.keys()
    for name, gradient in plain.items():  # sums of up to 64 numbers, some of them in another order
        atol = 8 * 2**-24 * float(gradient.abs().max()) * 20
        torch.testing.assert_close(compiled_too[name], gradient, rtol=0, atol=atol, msg=name)


def products(graph: Any) -> int:
    """Matrix products in a graph of torch's operations."""
    return sum(node.target in PRODUCTS for node in graph.graph.nodes)


@pytest.mark.parametrize(("kind", "again"), [("none", 0), ("selective", 0), ("full", 6)])
@pytest.mark.parametrize("old", [False, True], ids=["this-transformers", "checkpointing-around-blocks"])
def test_recomputation_in_the_backward_graph(kind: str, again: int, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven projections: two products for the gradients of each and, with `full`, all but the last once more.

    transformers up to 5.17 calls checkpointing in a block's ``__call__``, around what is compiled.
    """
    if old:
        monkeypatch.setattr(LlamaDecoderLayer, "__call__", calling_as_before, raising=False)
        monkeypatch.setattr(LlamaDecoderLayer, "forward", LlamaDecoderLayer.forward.__wrapped__)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=50
    )  # fmt: skip
    network = LlamaForCausalLM(config).train()
    forward: list[Any] = []
    backward: list[Any] = []
    runs: list[str] = []

    def kept(into: list[Any], name: str) -> Any:
        def compile_(graph: Any, inputs: Any) -> Any:
            into.append(graph)

            def run(*arguments: Any) -> Any:
                runs.append(name)
                return graph(*arguments)

            return make_boxed_func(run)

        return compile_

    backend = aot_autograd(
        fw_compiler=kept(forward, "forward"), bw_compiler=kept(backward, "backward"),
        partition_fn=min_cut_rematerialization_partition,
    )  # fmt: skip
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: real(module, backend=backend))
    prepare(network, TrainingConfig(activation_checkpointing=kind, compile=True))
    network(torch.randint(0, 50, (2, 8)), use_cache=False).logits.sum().backward()
    assert runs == ["forward"] * 3 + ["backward"] * 3
    assert [products(graph) for graph in forward] == [7]
    assert [products(graph) for graph in backward] == [14 + again]


def calling_as_before(block: Any, *args: Any, **kwargs: Any) -> Any:
    """``GradientCheckpointingLayer.__call__`` of transformers 5.17."""
    if block.gradient_checkpointing and block.training:
        return block._gradient_checkpointing_func(partial(nn.Module.__call__, block, **kwargs), *args)
    return nn.Module.__call__(block, *args, **kwargs)


def test_a_hit_of_the_limit_is_a_record_once_for_each_function(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shaped(nn.Module):
        def forward(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor + tensor.ndim

    monkeypatch.setattr(compiling_module, "LIMIT", 2)
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: real(module, backend="eager"))
    written: list[Record] = []
    sink = SimpleNamespace(write=written.append)
    before = torch._dynamo.config.recompile_limit
    block = Shaped()
    with torch._dynamo.config.patch(recompile_limit=1), compiling(sink):
        compile_blocks([block])
        for dimensions in (1, 2):
            block(torch.zeros((1,) * dimensions))
        assert not written
        for dimensions in (3, 4):
            block(torch.zeros((1,) * dimensions))
    (incident,) = written
    assert isinstance(incident, Incident)
    assert "recompile_limit (2)" in incident.detail
    assert "uncompiled from here on" in incident.detail
    assert torch._dynamo.config.recompile_limit == before
    block(torch.zeros((1,) * 5))
    assert len(written) == 1
