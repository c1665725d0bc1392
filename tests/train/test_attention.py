"""Attention within documents: FlexAttention and the arguments of FlashAttention give what SDPA under a mask gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.config import DataConfig, TrainingConfig
from drpruning.pruning import MaskedModel, Target
from drpruning.train.execution import prepare
from drpruning.train.flex import BLOCK, document_blocks
from drpruning.train.losses import token_losses

END = 7
DATA = DataConfig(corpus="x", seq_len=150, reference_ratio={"web": 1.0}, document_mask=True)
LONG = 150  # two blocks of the mask to a row, with a rest


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets FlexAttention run backward on a CPU: torch's plain form can, and refuses since its CPU kernel cannot."""
    monkeypatch.setattr(torch_flex, "_warn_once", lambda *said, **how: None)  # that the plain form is slow
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


def model(heads: int = 8, kv_heads: int = 4) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=heads, head_dim=8,
        num_key_value_heads=kv_heads, vocab_size=101, max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().train()


def rows(documents: bool = True) -> Tensor:
    """Rows of documents of one token up to nearly all of a row."""
    tokens = torch.randint(8, 101, (3, LONG), generator=torch.Generator().manual_seed(1))
    if documents:
        tokens[0, [0, 1, 40, 130]] = END
        tokens[1, 139] = END
    return tokens


def masked(network: Any) -> MaskedModel:
    """Under masks that close heads, in each block other numbers of them."""
    wrapped = MaskedModel(network, Target(layers=2, hidden=24, heads=2, intermediate=32))
    with torch.no_grad():
        wrapped.gates["head"][0, :3] = wrapped.gates["head"][1, :1] = wrapped.gates["hidden"][:8] = -6.0
    wrapped.train().sample_masks(torch.Generator().manual_seed(4))
    return wrapped


def gradients(network: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    losses = token_losses(network, tokens)
    weights = torch.rand(losses.shape, generator=torch.Generator().manual_seed(2), dtype=losses.dtype)
    (losses * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return {"losses": losses.detach(), **found}


def assert_same(network: nn.Module, other: nn.Module, tokens: Tensor) -> None:
    """In float64, of which sums in another order keep at least ten digits of numbers near one; losses are float32."""
    one, two = gradients(network, tokens), gradients(other, tokens)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-5, rtol=1e-5, msg=lambda said, name=name: f"{name}: {said}")


@pytest.mark.parametrize("length", [1, 100, BLOCK, BLOCK + 1, 3 * BLOCK, 700])
def test_the_mask_by_blocks_is_the_mask_of_all_pairs(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    documents = (torch.rand(length, generator=generator) < 0.01).cumsum(0)
    blocks = document_blocks(documents)
    places = torch.arange(length)
    square = (places[:, None] >= places) & (documents[:, None] == documents)
    found = torch_flex.create_mask(blocks.mask_mod, None, None, length, length, device="cpu")[0, 0]
    torch.testing.assert_close(found, square)
    theirs = torch_flex.create_block_mask(blocks.mask_mod, None, None, length, length, device="cpu")
    torch.testing.assert_close(blocks.to_dense(), theirs.to_dense())
    for kind in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        torch.testing.assert_close(getattr(blocks, kind), getattr(theirs, kind), check_dtype=False)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at every input's
@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("wrap", [lambda network: network, masked], ids=["plain", "masked"])
def test_flex_attention_is_sdpa_within_documents(wrap: Any, checkpointing: str, documents: bool) -> None:
    networks = []
    for attention in ("sdpa", "flex_attention"):
        network = wrap(model())
        settings = TrainingConfig(attention=attention, activation_checkpointing=checkpointing)
        prepare(network, settings, DATA if documents else None, END)
        networks.append(network)
    assert_same(*networks, rows(documents))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_compiled_blocks_share_graphs_whatever_heads_and_documents(
    checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []
    real = nn.Module.compile

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda module: real(module, backend=backend))
    counters.clear()
    network, other = masked(model()), masked(model())
    settings = TrainingConfig(attention="flex_attention", activation_checkpointing=checkpointing, compile=True)
    prepare(network, settings, DATA, END)
    prepare(other, TrainingConfig(attention="sdpa"), DATA, END)
    for step in range(5):
        with torch.no_grad():
            for each in (network, other):
                each.zero_grad()
                each.gates["head"][step % 3, : 1 + step % 3] = -6.0
                each.sample_masks(torch.Generator().manual_seed(step))
        tokens = rows().roll(17 * step, 1)
        assert_same(network, other, tokens)
        print(step, len(graphs), {b: len(i) for b, i in network.applied.open.query.items()})
    assert not counters["graph_break"]
    assert not counters["unimplemented"]
    assert len(graphs) <= 3
