"""What sharded training sends, in which types, and that it computes what one process does."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from benches.memory import BILLION, reading, write_random
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig, OlmoeConfig

from drpruning.config import TrainingConfig
from drpruning.hf.models import load, saved_tensors
from drpruning.hf.tensor_stream import ReadTensor
from drpruning.planning.memory import fake_ranks, fake_tensors
from drpruning.planning.memory_tracker import MemoryTracker
from drpruning.pruning import MaskedModel, Target
from drpruning.train.distributed.fsdp import (
    device_mesh,
    gather_model,
    grad_norm,
    load_model,
    place_model,
    set_replica_sync,
    shard_model,
)
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.distributed.whole_tensors import read_on_first
from drpruning.train.losses import token_losses
from drpruning.train.model_runtime import prepare
from drpruning.train.stages import frozen
from tests.train.processes import on_ranks

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BFLOAT16 = TrainingConfig(dtype="bfloat16")


def masked_model() -> MaskedModel:
    """Return a model with a pruned block, pruned heads and units, and masks between zero and one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32)
    masked = MaskedModel(model, Target(layers=2, hidden=24, heads=2, kv_heads=1, intermediate=32))
    with torch.no_grad():
        for kind, gate in masked.gates.items():
            gate.copy_(torch.randn(gate.shape) * 2)
            gate[..., ::5] = -4.6
            if kind == "layer":
                gate.copy_(torch.tensor([4.6, -4.6, 4.6]))
    return masked.train()


def objective(model: nn.Module, rows: Tensor, training: TrainingConfig) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.dtype == "bfloat16"):
        return token_losses(model, rows).mean()


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Float32 gradients by name, in one piece."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            found[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).float()
    return found


class Logged(TorchDispatchMode):
    """Logs the collectives of tensors within the context: name, dtype and ranks of the group, for any backend."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, torch.dtype, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensor = next(each for each in tree_iter(args) if isinstance(each, Tensor))
            group = next(each for each in args if isinstance(each, torch.ScriptObject))
            size = distributed.ProcessGroup.unbox(group).size()
            self.calls[func._schema.name.removeprefix("c10d::"), tensor.dtype, size] += 1
        return func(*args, **(kwargs or {}))


def test_no_rank_keeps_a_copy_of_all_blocks_until_the_forward_pass_is_over() -> None:
    """Autocast's cache made it 3 bytes a parameter of the whole model: half a byte of shards, and 2 of copies."""
    config = LlamaConfig(**{**SHAPE, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 24})
    with fake_ranks(8, 8) as mesh, fake_tensors(), MemoryTracker(resized=True) as live:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        shard_model(model, mesh, "bfloat16")
        prepare(model, BFLOAT16)
        with live.phase("forward", "activations"):
            objective(model, torch.zeros(1, 8, dtype=torch.long), BFLOAT16)
    assert live.peaks["forward"].total < 0.9 * parameters


def compare_in_bfloat16() -> tuple[Counter[tuple[str, torch.dtype, int]], float, float]:
    """Return the collectives of a step in two processes, and its loss less that of one process; check the gradients.

    One process computes with the weights rounded to bfloat16 in the same parts, whose gradients it adds in float32: the
    same numbers. Another computes as a run of one process does.
    """
    masked, rank = masked_model(), distributed.get_rank()
    rows = torch.randint(64, (4, 24), generator=torch.Generator().manual_seed(1))
    autocast, rounded = copy.deepcopy(masked), copy.deepcopy(masked)
    for parameter in rounded.model.parameters():
        parameter.data = parameter.data.bfloat16()
    ranks = Ranks(rank=rank, world_size=2)
    place_model(masked, torch.device("cpu"), ranks, BFLOAT16)
    losses, gradients = {}, {}
    for name, model in {"sharded": masked, "autocast": autocast, "rounded": rounded}.items():
        prepare(model, BFLOAT16)
        torch.manual_seed(2)
        model.sample_masks()
        parts, sums = [], Counter[str]()
        for part in rows.chunk(2)[rank : rank + 1] if name == "sharded" else rows.chunk(2):
            with Logged() as log:
                loss = objective(model, part, BFLOAT16)
                loss.backward()
            parts.append(loss.detach())
            sums.update(whole_gradients(model))
            model.zero_grad()
        assert model.applied.active.skipped_blocks == {1}
        assert model.applied.active.hidden is not None
        losses[name], gradients[name] = torch.stack(parts).sum(), sums
        if name == "sharded":
            seen = log.calls
    ranks.sum(losses["sharded"])
    assert gradients["sharded"].keys() == gradients["rounded"].keys()
    for name, gradient in gradients["sharded"].items():
        total = ranks.sum(gradient.clone()) if name.startswith("gates") else 2 * gradient  # FSDP averages
        torch.testing.assert_close(total, gradients["rounded"][name], rtol=1e-6, atol=1e-12)
    apart = {name: (losses["sharded"] - losses[name]).item() / 2 for name in ("rounded", "autocast")}
    return seen, apart["rounded"], apart["autocast"]


def test_weights_are_gathered_in_bfloat16_and_gradients_summed_in_float32() -> None:
    for seen, against_rounded, against_autocast in on_ranks(compare_in_bfloat16, 2):
        assert {(name, dtype) for name, dtype, _ in seen} == {
            ("_allgather_base_", torch.bfloat16),
            ("_reduce_scatter_base_", torch.float32),
        }
        assert seen["_reduce_scatter_base_", torch.float32, 2] == 4  # three blocks, and the rest
        assert against_rounded == pytest.approx(0, abs=1e-6)
        # One process rounds no embedding, no gain of a norm and no residual stream: some 30 roundings of up to 2^-9, of
        # logits of this size, in the worst case all of one sign; a mean over 92 tokens is far below
        assert against_autocast == pytest.approx(0, abs=30 * 2**-9)


def step_of_copies() -> tuple[dict[str, Counter[tuple[str, torch.dtype, int]]], float]:
    """Return the collectives of three micro-batches with and without replica sums in each; check the gradients."""
    seen, found, norms = {}, {}, []
    mesh = device_mesh("cpu", 4, 2)
    assert device_mesh("cpu", 4, 2) is mesh  # and no new groups
    rows = torch.randint(64, (12, 16), generator=torch.Generator().manual_seed(1)).chunk(4)[distributed.get_rank()]
    for name in ("each", "last"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32)
        shard_model(model, mesh, "float32")
        with Logged() as log:
            for number, row in enumerate(rows.split(1), 1):
                set_replica_sync(model, name == "each" or number == 3)
                objective(model, row, TrainingConfig()).backward()
        seen[name], found[name] = log.calls, whole_gradients(model)
        norms.append(grad_norm(model.parameters()))
    for name, gradient in found["last"].items():
        # Sums of six numbers in another order: each of five additions rounds by half a unit of the largest
        bound = 5 * 2**-24 * found["each"][name].abs().max().item()
        torch.testing.assert_close(gradient, found["each"][name], rtol=0, atol=6 * bound)
    whole = torch.cat([gradient.flatten() for gradient in found["last"].values()]).double().norm()
    assert norms[1].dtype == torch.float32
    return seen, norms[1].item() / whole.item()


def test_copies_average_their_gradients_once_a_step() -> None:
    for seen, norm in on_ranks(step_of_copies, 4):
        reduced, summed = (("_reduce_scatter_base_", torch.float32, 2), ("allreduce_", torch.float32, 2))
        assert (seen["each"][reduced], seen["each"][summed]) == (12, 12)  # three blocks and the rest, three times
        assert (seen["last"][reduced], seen["last"][summed]) == (12, 4)
        assert norm == pytest.approx(1, rel=26_000 * 2**-25)  # a float32 sum of 26,000 squares


def test_the_norm_of_bfloat16_gradients_is_float32() -> None:
    parameters = [nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for size in ((30, 20), (200,))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = torch.cat([parameter.grad.flatten() for parameter in parameters]).double().norm()  # type: ignore[union-attr]
    norm = grad_norm(parameters)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(exact.item(), rel=800 * 2**-25)  # a float32 sum of 800 squares; bfloat16: 2^-9


DENSE = Target(layers=2, hidden=24, heads=2, kv_heads=1, intermediate=32)


def read_on_rank(folder: str, shards: int, target: Target = DENSE, bound: float = 2**-20) -> None:
    """Compare a model that is read in part, under masks, with the whole one, and take a step with both."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    training, ranks = TrainingConfig(fsdp_shard=shards), Ranks(rank=rank, world_size=size)
    masked = load_model(folder, torch.device("cpu"), ranks, training, wrap=lambda plain: MaskedModel(plain, target))
    expected = MaskedModel(load(folder), target)
    named = dict(expected.named_parameters())
    assert [name for name, _ in masked.named_parameters()] == list(named)
    for name, parameter in masked.named_parameters():
        whole_tensor = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert isinstance(parameter, DTensor) == name.startswith("model.")
        assert torch.equal(whole_tensor, named[name]), name
    for name, buffer in expected.named_buffers():
        assert torch.equal(masked.get_buffer(name), buffer), name
    rows = torch.randint(64, (size, 16), generator=torch.Generator().manual_seed(1))
    for model in (masked, expected):
        model.train()
        prepare(model, training)
        torch.manual_seed(2)
        model.sample_masks()
        objective(model, rows if model is expected else rows[rank : rank + 1], training).backward()
    # float32 sums of the rows' gradients in another order
    for name, gradient in whole_gradients(masked).items():
        if name.startswith("model."):
            reference = named[name].grad
            assert reference is not None
            torch.testing.assert_close(gradient, reference, rtol=0, atol=bound * reference.abs().max().item() + 1e-9)

    def compare(read: ReadTensor) -> None:
        in_one = gather_model(masked, read, lambda plain: MaskedModel(plain, target))
        for name, tensor in expected.state_dict().items():
            if not name.startswith("lookahead"):
                assert torch.equal(in_one.state_dict()[name], tensor), name
        tokens = torch.arange(16)[None]
        assert torch.equal(in_one.eval()(tokens).logits, expected.eval()(tokens).logits)

    read_on_first(saved_tensors(masked.model), ranks, compare)


@pytest.mark.parametrize(("ranks", "shards", "tied"), [(2, 2, False), (4, 2, True)])
def test_a_model_is_read_in_parts_and_collected_again(ranks: int, shards: int, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "vocab_size": 65}, tie_word_embeddings=tied)  # 65: parts of two sizes
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if tied else "5GB")
    on_ranks(read_on_rank, ranks, str(tmp_path), shards)


EXPERTS = {**SHAPE, "num_experts_per_tok": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("config", "shards"),
    [
        (OlmoeConfig(**EXPERTS, num_experts=5), 2),  # 5: parts of two sizes
        (GptOssConfig(**EXPERTS, num_local_experts=5, head_dim=8), 1),
    ],
    ids=["sharded", "copies"],
)
def test_experts_have_the_gradients_of_one_process(config: Any, shards: int, tmp_path: Path) -> None:
    """Check them within rounding: a rank multiplies the tokens of its rows by experts, in products of other shapes.

    So sums of up to 64 numbers are in another order in each of some 20 products in a row: 20 * 8 * 2^-24.
    """
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    target = Target(layers=2, hidden=config.num_key_value_heads * 8, kv_heads=1, intermediate=32, experts=3)
    if config.model_type == "olmoe":
        target = Target(layers=2, hidden=16, kv_heads=1, intermediate=32, experts=3)
    on_ranks(read_on_rank, 2, str(tmp_path), shards, target, 20 * 8 * 2**-24)


def teach_on_rank(folder: str) -> tuple[set[torch.dtype], bool, Counter[tuple[str, torch.dtype, int]]]:
    """Return the dtype of a frozen bfloat16 model, whether it is sharded after a forward pass, and its collectives."""
    ranks = Ranks(rank=distributed.get_rank(), world_size=2)
    device, wrap = torch.device("cpu"), frozen
    teacher = load_model(folder, device, ranks, BFLOAT16, dtype=torch.bfloat16, wrap=wrap)
    expected = load(folder, torch.bfloat16)
    assert not teacher.training
    tokens = torch.arange(16)[None] + distributed.get_rank()
    with Logged() as log, torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher(tokens).logits, expected(tokens).logits)
    weights = list(teacher.parameters())
    return {weight.dtype for weight in weights}, all(isinstance(weight, DTensor) for weight in weights), log.calls


def test_a_teacher_is_loaded_in_bfloat16_and_sharded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32).save_pretrained(tmp_path)
    for dtypes, in_parts, seen in on_ranks(teach_on_rank, 2, str(tmp_path)):
        assert dtypes == {torch.bfloat16}
        assert in_parts
        assert seen == {("_allgather_base_", torch.bfloat16, 2): 4}  # three blocks, and the rest


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_rank_has_its_part_and_one_tensor_in_memory(tmp_path: Path) -> None:
    """Load a model of 128 MB: whole, it would be 2.6 times a quarter of it and its largest tensor."""
    shape = {**BILLION, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8192}
    for name, changes in {"small": {"num_hidden_layers": 1, "vocab_size": 64}, "large": {}}.items():
        (tmp_path / name).mkdir()
        write_random(tmp_path / name, {**shape, **changes})
    found = on_ranks(reading, 4, tmp_path / "large", tmp_path / "small")
    assert sum(each.part for each in found) > 120e6
    assert max(each.ratio for each in found) < 1.2, found
