"""Disk and memory that the preflight computes for a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.config import ContinueConfig, TrainingConfig
from drpruning.errors import ConfigError
from drpruning.prepare.recipe_corpus import open_corpus
from drpruning.pruning import Target, parameter_count
from drpruning.train import preflight
from drpruning.train.base_model import build
from drpruning.train.checkpoint import Checkpoints
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.optimizers.build import make_optimizer
from drpruning.train.preflight import EXPORT_BYTES, bytes_of_run, check_recipe, checkpoint_bytes
from drpruning.train.state import StageState
from tests.train.test_run import Recipe

SCHEMES = [(weights, moments) for weights in ("float32", "bfloat16+low16", "bfloat16")
           for moments in ("float32", "bfloat16", "int8")]  # fmt: skip


@pytest.mark.parametrize(("weights", "moments"), SCHEMES)
def test_a_checkpoint_has_the_bytes_that_are_counted(weights: str, moments: str, tmp_path: Path) -> None:
    training = TrainingConfig(dtype="bfloat16", weight_format=weights, optimizer_state_format=moments)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=512, **shape))
    settings = ContinueConfig(steps=1, batch_size=1, learning_rate=1e-3, eval_every=1)
    optimizer = make_optimizer(model, settings, training)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    stage = StageState("continue", settings, model, optimizer, None, None, None)  # type: ignore[arg-type] # for its tensors
    Checkpoints(tmp_path, keep=1).save("continue", 1, stage.tensors(), {})
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    counted = checkpoint_bytes(training) * sum(parameter.numel() for parameter in model.parameters())
    assert written == pytest.approx(counted, rel=0.06)  # and the headers


def test_both_stages_and_all_strategies_count(recipe: Recipe) -> None:
    target = {"layers": 3, "hidden": 28, "heads": 4, "intermediate": 48}
    config = recipe(prune={"target": target}, also_run=["constant"], training={"keep_checkpoints": 2})
    source = check_recipe(config, open_corpus(config))
    large = sum(parameter.numel() for parameter in build(source, 0).parameters())
    alone = config.model_copy(update={"also_run": ()})
    models = bytes_of_run(config, source) - bytes_of_run(alone, source)
    small = models // (2 * EXPORT_BYTES)
    assert large / 3 < small < large  # so the continue stage, with the kept checkpoints of the prune stage, takes most
    assert bytes_of_run(alone, source) == 12 * (2 * large + 3 * small) + models


@pytest.mark.parametrize(("world", "shards", "part"), [(1, "all", 1), (4, "all", 1 / 2), (4, "node", 1)])
def test_copies_of_a_checkpoint_need_memory(
    world: int, shards: str, part: float, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(training={"async_checkpoints": True, "fsdp_shard": shards})
    source = check_recipe(config, open_corpus(config))
    needed = part * 12 * sum(parameter.numel() for parameter in build(source, 0).parameters())
    ranks = Ranks(world_size=world, local_size=min(world, 2))
    monkeypatch.setattr(preflight, "available_memory", lambda: round(needed))
    preflight.check_memory(config, source, ranks)
    monkeypatch.setattr(preflight, "available_memory", lambda: round(needed) - 1)
    with pytest.raises(ConfigError, match=r"copies of a checkpoint need .* of this node's memory"):
        preflight.check_memory(config, source, ranks)
    foreground = config.model_copy(update={"training": config.training.model_copy(update={"async_checkpoints": False})})
    preflight.check_memory(foreground, source, ranks)


def test_several_ranks_repair_in_the_memory_of_a_node(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"layers": 3, "hidden": 28, "heads": 4, "intermediate": 48}
    repairing = recipe(prune={"target": target, "repair": 0.01})
    source = check_recipe(repairing, open_corpus(repairing))
    parameters = parameter_count(source) + parameter_count(source, Target(**target).resolve(source))
    monkeypatch.setattr(preflight, "available_memory", lambda: 4 * parameters - 1)
    with pytest.raises(ConfigError, match=r"the repair of the pruned model needs .* of this node's memory"):
        preflight.check_memory(repairing, source, Ranks(world_size=2))
    preflight.check_memory(repairing, source, Ranks())
    preflight.check_memory(recipe(prune={"target": target}), source, Ranks(world_size=2))
    monkeypatch.setattr(preflight, "available_memory", lambda: 4 * parameters)
    preflight.check_memory(repairing, source, Ranks(world_size=2))


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux's /proc")
def test_free_memory_is_at_most_what_a_container_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "CGROUP", tmp_path)
    of_machine = preflight.available_memory()
    assert of_machine is not None
    for most, expected in (("max", False), ("5000", True)):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        (tmp_path / "memory.current").write_text("2000\n")
        assert (preflight.available_memory() == 3000) == expected
