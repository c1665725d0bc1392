"""Attention within documents: FlexAttention and the arguments of FlashAttention give what SDPA under a mask gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, modeling_flash_attention_utils

from drpruning.config import DataConfig, TrainingConfig
from drpruning.errors import ConfigError
from drpruning.pruning import MaskedModel, Target
from drpruning.train import flex_attention, preflight
from drpruning.train.flex_attention import BLOCK, document_blocks
from drpruning.train.losses import token_losses
from drpruning.train.model_runtime import choose_attention, prepare
from drpruning.train.preflight import check_runtime

END = 7
DATA = DataConfig(corpus="x", seq_len=150, reference_ratio={"web": 1.0}, document_mask=True)
LONG = 150  # two blocks of the mask to a row, with a rest


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let FlexAttention run backward on a CPU: torch's plain form can, and refuses since its CPU kernel cannot."""
    monkeypatch.setattr(
        torch_flex, "_warn_once", lambda *args, **kwargs: None
    )  # the warning that the eager form is slow
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
    """Wrap a model in masks that prune another number of heads in each block."""
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
    """Compare in float64: sums in another order keep at least ten digits of numbers near one; losses are float32."""
    one, two = gradients(network, tokens), gradients(other, tokens)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, two[name], atol=1e-5, rtol=1e-5, msg=lambda message, name=name: f"{name}: {message}"
        )


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


def test_padded_rows_and_generation_are_sdpa_where_flex_attention_is_set() -> None:
    """Call a model in training as task scorers do; the setting is not saved with the model."""
    plain, network = model().eval(), model().eval()
    prepare(network, TrainingConfig(attention="flex_attention"), DATA, END)
    tokens = rows()[:, :20]
    padding = (torch.arange(20) >= torch.tensor([[0], [3], [8]])).long()
    one, two = (each(tokens, attention_mask=padding, use_cache=False).logits for each in (plain, network))
    assert torch.equal(one, two)
    one, two = (each.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0) for each in (plain, network))
    assert torch.equal(one, two)
    assert flex_attention.NAME not in network.config.to_json_string(use_diff=False)


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
    sizes: set[int] = set()
    for step in range(5):
        with torch.no_grad():
            for each in (network, other):
                each.zero_grad()
                each.gates["head"][step % 3, : 1 + step % 3] = -6.0
                each.sample_masks(torch.Generator().manual_seed(step))
        tokens = rows().roll(17 * step, 1)
        assert_same(network, other, tokens)
        sizes |= {len(heads) for heads in network.applied.active.query.values()}
    assert not counters["graph_break"]
    assert not counters["unimplemented"]
    assert len(sizes) > 3
    assert len(graphs) == 2  # the second for any number of heads


class Flash:
    """A substitute for the package flash_attn: computes each document by itself, and records its arguments."""

    def __init__(self) -> None:
        self.ends: list[list[int]] = []
        self.longest: list[int] = []

    def plain(
        self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False
    ) -> Tensor:
        assert causal
        heads = [each.transpose(1, 2) for each in (q, k, v)]
        attended = scaled_dot_product_attention(*heads, is_causal=True, scale=softmax_scale, enable_gqa=True)
        return attended.transpose(1, 2)

    def documents(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False,
    ) -> Tensor:  # fmt: skip
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
        assert type(max_seqlen_q) is type(max_seqlen_k) is int
        assert cu_seqlens_q.diff().max() <= max_seqlen_q
        self.ends.append(cu_seqlens_q.tolist())
        sizes = cu_seqlens_q.diff().tolist()
        parts = zip(*(each.split(sizes) for each in (q, k, v)), strict=True)
        return torch.cat([self.plain(*(each[None] for each in part), 0.0, softmax_scale, causal)[0] for part in parts])


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Flash:
    """transformers finds the package flash_attn, with functions that work on a CPU."""
    stub = Flash()
    functions = stub.plain, stub.documents, None, None, None
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *arguments, **named: functions)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *arguments, **named: True)
    return stub


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("wrap", [lambda network: network, masked], ids=["plain", "masked"])
def test_flash_attention_is_given_the_ends_of_documents(wrap: Any, documents: bool, flash: Flash) -> None:
    networks = []
    for attention in ("sdpa", "flash_attention_2"):
        network = wrap(model())
        prepare(network, TrainingConfig(attention=attention), DATA if documents else None, END)
        networks.append(network)
    assert_same(*networks, rows(documents))
    expected = [0, 1, 2, 41, 131, LONG, LONG + 140, 2 * LONG, 3 * LONG]
    assert flash.ends == ([expected] * 3 if documents else [])


LLAMA = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({}, {}, "cpu", "has no backward pass on cpu"),
    ({"dtype": "float32"}, {}, "cuda", "not tested with training.dtype float32"),
    ({}, {"head_dim": 8}, "cuda", "needs heads of at least 16 units; the model's have 8"),
    ({}, {"attention_dropout": 0.1}, "cuda", "attention_dropout is 0.1"),
    ({}, {"sliding_window": 64}, "cuda", r"sliding window \(64\) below data.seq_len \(150\)"),
    ({}, {"model_type": "gpt_neox"}, "cuda", "not tested with models of type 'gpt_neox'"),
]


@pytest.mark.parametrize(("settings", "shape", "device", "reason"), REFUSED)
def test_settings_that_flex_attention_does_not_support_are_refused_and_not_chosen(
    settings: dict[str, Any], shape: dict[str, Any], device: str, reason: str
) -> None:
    config = LlamaConfig(**LLAMA)
    training = {"dtype": "bfloat16", **settings}
    for name, value in shape.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=rf"(?s)training.attention flex_attention .*{reason}.*attention=sdpa"):
        check_runtime(TrainingConfig(attention="flex_attention", **training), DATA, END, config, device)
    check_runtime(TrainingConfig(**training), DATA, END, config, device)
    assert choose_attention(config, TrainingConfig(**training), DATA, device) == "auto"


def test_documents_on_a_gpu_choose_flex_attention_and_nothing_else_does() -> None:
    config, training = LlamaConfig(**LLAMA), TrainingConfig(dtype="bfloat16")
    check_runtime(training.model_copy(update={"attention": "flex_attention"}), DATA, END, config, "cuda")
    assert choose_attention(config, training, DATA, "cuda") == "flex_attention"
    assert choose_attention(config, training, DATA.model_copy(update={"document_mask": False}), "cuda") == "auto"
    assert choose_attention(config, training, None, "cuda") == "auto"
    for other in ({"deterministic": True}, {"attention": "sdpa"}):
        chosen = choose_attention(config, training.model_copy(update=other), DATA, "cuda")
        assert chosen == other.get("attention", "auto")


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "bfloat16"), ("cuda", "float32")])
def test_flash_attention_needs_a_gpu_and_bfloat16(device: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: name)
    training, config = TrainingConfig(attention="flash_attention_2", dtype=dtype), LlamaConfig(**LLAMA)
    with pytest.raises(ConfigError, match=f"needs a GPU and training.dtype bfloat16, got {device} and {dtype}"):
        check_runtime(training, DATA, END, config, device)
    check_runtime(TrainingConfig(attention="flash_attention_2", dtype="bfloat16"), DATA, END, config, "cuda")
