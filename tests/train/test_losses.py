"""Losses from chunks of logits equal those from all of them, gradients too, with and without masks and documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning import document_boundaries
from drpruning.config import DataConfig, TrainingConfig
from drpruning.errors import ConfigError, MissingExtraError
from drpruning.pruning import MaskedModel, Target
from drpruning.train import losses as losses_module
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.fused_cross_entropy import chunked_cross_entropy, select_cross_entropy
from drpruning.train.losses import row_losses, token_losses
from drpruning.train.model_runtime import document_positions, prepare
from drpruning.train.preflight import check_runtime


def model(tied: bool = True, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=101, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


TOKENS = torch.randint(0, 101, (3, 16), generator=torch.Generator().manual_seed(1))


def gradients(network: nn.Module, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    losses = token_losses(network, TOKENS)
    (losses * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return losses.detach(), found


def compare(plain: nn.Module, other: nn.Module) -> None:
    weights = torch.rand(3, 15, generator=torch.Generator().manual_seed(2))  # each token its own share
    (losses, slopes), (losses_too, slopes_too) = gradients(plain, weights), gradients(other, weights)
    torch.testing.assert_close(losses, losses_too, atol=2e-6, rtol=1e-5)
    assert slopes.keys() == slopes_too.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, slopes_too[name], atol=3e-6, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["chunked", "torch"])
def test_losses_and_gradients_are_those_of_plain_logits(kind: str, tied: bool) -> None:
    if kind == "torch" and not hasattr(functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    plain, chunked = model(tied), model(tied)
    prepare(chunked, TrainingConfig(cross_entropy=kind, cross_entropy_chunk=7))
    compare(plain, chunked)
    assert chunked(TOKENS).logits.shape == (3, 16, 101)  # logits are available outside of the context


def test_losses_of_a_masked_model_that_skips_pruned_units() -> None:
    networks = []
    for kind in ("plain", "chunked"):
        masked = MaskedModel(model(), Target(layers=1, hidden=24, heads=2, intermediate=32))
        with torch.no_grad():
            masked.gates["hidden"][:10] = -6.0  # closed, so that the output layer works on fewer units
        prepare(masked, TrainingConfig(cross_entropy=kind, cross_entropy_chunk=7))
        masked.train().sample_masks(torch.Generator().manual_seed(4))
        networks.append(masked)
    compare(*networks)


def test_in_bfloat16_the_logits_are_as_exact_as_those_of_a_product() -> None:
    hidden = torch.randn(33, 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (33,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_cross_entropy(hidden, weight, targets, chunk=8)
        plain = functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="none")
    torch.testing.assert_close(found, plain)
    ours = torch.autograd.grad(found.mean(), [hidden, weight])
    theirs = torch.autograd.grad(plain.mean(), [hidden, weight])
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-2)


def test_no_tensor_is_as_large_as_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for each in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(each, Tensor):
                    self.numbers = max(self.numbers, each.numel())
            return result

    hidden, weight = torch.randn(200, 4, requires_grad=True), torch.randn(300, 4, requires_grad=True)
    with Largest() as largest:
        chunked_cross_entropy(hidden, weight, torch.zeros(200, dtype=torch.int64), chunk=16).mean().backward()
    assert largest.numbers == 16 * 300


def test_liger_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "liger_kernel.ops.fused_linear_cross_entropy", None)
    with pytest.raises(MissingExtraError, match=r"pip install.*liger-kernel"):
        select_cross_entropy("liger")


def test_positions_are_those_of_the_compiled_search() -> None:
    tokens = np.random.default_rng(0).integers(0, 5, (6, 40))
    found = document_positions(torch.from_numpy(tokens), 3)
    np.testing.assert_array_equal(found.numpy(), document_boundaries(tokens, 3).position_ids)


DATA = DataConfig(corpus="x", seq_len=16, reference_ratio={"web": 1.0}, document_mask=True)


@pytest.mark.parametrize("kind", ["plain", "chunked"])
def test_within_documents_a_token_sees_nothing_of_the_document_before(kind: str) -> None:
    network = model()
    prepare(network, TrainingConfig(cross_entropy=kind), DATA, end_token=7)
    row = torch.randint(8, 101, (1, 16), generator=torch.Generator().manual_seed(3))
    row[0, 5] = 7
    other = row.clone()
    other[0, :5] = other[0, :5].flip(0)
    whole, changed = token_losses(network, row), token_losses(network, other)
    alone = token_losses(network, row[:, 6:])
    torch.testing.assert_close(whole[:, 6:], changed[:, 6:])
    torch.testing.assert_close(whole[:, 6:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole[:, :5], changed[:, :5])


def test_rows_as_one_long_row_give_the_same_losses() -> None:
    """Compare one long row, as FlashAttention takes it, with the mask that other kernels build from positions."""
    network = model()
    prepare(network, TrainingConfig(cross_entropy="chunked"), DATA, end_token=7)
    tokens = torch.where(TOKENS % 5 == 0, 7, TOKENS)
    rows = token_losses(network, tokens)
    network.runtime = replace(network.runtime, attention="flash_attention_2")
    torch.testing.assert_close(token_losses(network, tokens), rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("masked", [True, False])
def test_recomputing_changes_no_gradient(kind: str, masked: bool) -> None:
    networks = []
    for checkpointing in ("none", kind):
        network: Any = model()
        if masked:
            network = MaskedModel(network, Target(layers=1, hidden=24, heads=2, intermediate=32))
            network.sample_masks(torch.Generator().manual_seed(4))
        prepare(network, TrainingConfig(activation_checkpointing=checkpointing))
        networks.append(network.train())
    compare(*networks)


def test_recomputing_saves_memory_full_more_than_selective() -> None:
    def saved(kind: str) -> int:
        network = model().train()
        prepare(network, TrainingConfig(activation_checkpointing=kind))
        numbers: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            numbers[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            token_losses(network, TOKENS)
        return sum(numbers.values())

    assert saved("full") < saved("none")


def test_missing_kernels_are_an_error_before_anything_runs() -> None:
    for attention in ("flash_attention_2", "flash_attention_3"):
        with pytest.raises(MissingExtraError, match="flash"):
            check_runtime(TrainingConfig(attention=attention), DATA, 7)
    with pytest.raises(ConfigError, match="the corpus has no end token"):
        check_runtime(TrainingConfig(), DATA, None)
    network = model()
    prepare(network, TrainingConfig(attention="eager"))
    assert network.config._attn_implementation == "eager"


class Alone(Ranks):
    """A rank whose sums are its own part."""

    def sum_on_host(self, values: Tensor) -> Tensor:
        return values


@pytest.mark.parametrize("number", [1, 3, 7, 8])
@pytest.mark.parametrize("size", [1, 2])
def test_passes_of_an_evaluation_have_one_size_and_ranks_share_the_rows(
    number: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = set()

    def losses(network: nn.Module, tokens: Tensor) -> Tensor:
        shapes.add(tokens.shape)
        return tokens.float()

    monkeypatch.setattr(losses_module, "token_losses", losses)
    rows = torch.arange(1, number + 1)[:, None].expand(-1, 4)
    for ranks in (1, 2, 3):
        parts = [
            row_losses(nn.Linear(1, 1), rows, batch_size=size, ranks=Alone(rank=rank, world_size=ranks))
            for rank in range(ranks)
        ]
        assert torch.equal(torch.stack(parts).sum(0), rows[:, 0].double())
        assert len(shapes) == 1
        shapes.clear()
