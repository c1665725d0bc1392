"""Logits of a tiny Llama against LLM-Shearing's, with the same weights and the same masks.

Equal for masks of zero and one. For other values the two differ, by rule: theirs multiplies what norms give to
attention, MLP and output by the hidden mask and leaves the embedding as it is, ours multiplies the embedding and leaves
the norms. Both multiply what blocks add to the stream. ``prune_params`` multiplies the embedding all the same, and the
output layer once more. With these factors folded into its weights our model gives each of their results.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from drpruning.pruning import MaskedModel, Target, hard_concrete
from tests.conformance.conftest import EPS, gate, golden, single
from tests.conformance.test_masks import CONFIG
from tests.golden import ancestor_inputs as inputs

HEAD_DIM = inputs.HIDDEN // inputs.HEADS
KEPT = Target(layers=2, hidden=12, heads=3, intermediate=14)

# Three blocks of ten operations and the output, each on sums of at most 24 products in both models, of logits below 4
TOLERANCE = 2 * 31 * 24 * EPS * 4


def source() -> LlamaForCausalLM:
    model = LlamaForCausalLM(CONFIG).eval()
    state = {name: torch.tensor(inputs.weights(name)).reshape(shape) for name, shape in inputs.weight_shapes().items()}
    model.load_state_dict(state)
    return model


def deterministic() -> dict[str, Tensor]:
    return {kind: hard_concrete.keep_top(gate(kind, torch.float32), inputs.KEPT[kind]) for kind in inputs.SHAPES}


def soft() -> dict[str, Tensor]:
    """Their deterministic masks: the values that a unit's location gives, zero for units that leave."""
    values = {kind: torch.sigmoid(0.8 * gate(kind) / hard_concrete.TEMPERATURE).float() for kind in inputs.SHAPES}
    return {kind: values[kind] * mask for kind, mask in deterministic().items()}


def sampled(*, binary: bool) -> dict[str, Tensor]:
    masks = {}
    for kind, shape in inputs.SHAPES.items():
        noise = torch.tensor(inputs.noise(kind, binary=binary and kind == "hidden")).reshape(shape)
        masks[kind] = hard_concrete.sample(gate(kind, torch.float32), noise)
    return masks


@torch.no_grad()
def folded(masks: Mapping[str, Tensor], *, embedding: bool, output: bool) -> LlamaForCausalLM:
    """The source with mask values multiplied into its weights, at the places where LLM-Shearing has them."""
    model, hidden = source(), masks["hidden"]
    for block, layer in enumerate(model.model.layers):
        head = masks["head"][block].repeat_interleave(HEAD_DIM)
        layer.self_attn.v_proj.weight *= head[:, None]
        layer.mlp.up_proj.weight *= masks["intermediate"][block][:, None]
        for writes in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writes.weight *= (masks["layer"][block] * hidden)[:, None]
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight *= hidden
    model.model.norm.weight *= hidden
    if embedding:
        model.model.embed_tokens.weight *= hidden
    if output:
        model.lm_head.weight *= hidden
    return model


@torch.no_grad()
def logits(model: LlamaForCausalLM, masks: Mapping[str, Tensor]) -> Tensor:
    """What our masked model computes under ``masks``."""
    masked = MaskedModel(model, KEPT).eval()
    with masked.fixed_masks(masks):
        found: Tensor = masked(torch.tensor(inputs.TOKENS)).logits
    return found


def open_units(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {kind: (mask != 0).float() for kind, mask in masks.items()}


def close(ours: Tensor, name: str) -> None:
    np.testing.assert_allclose(ours, single(golden()["logits"][name]), rtol=0, atol=TOLERANCE)


def test_the_source_model() -> None:
    close(source()(torch.tensor(inputs.TOKENS)).logits.detach(), "dense")


def test_masks_of_zero_and_one() -> None:
    close(logits(source(), deterministic()), "zeros_and_ones")


def test_sampled_masks_where_hidden_ones_are_zero_or_one() -> None:
    masks = sampled(binary=True)
    assert {0.0, 1.0} == set(masks["hidden"].tolist())
    assert any(0 < value < 1 for value in masks["head"].flatten().tolist())
    close(logits(source(), masks), "sampled_hidden_binary")


@pytest.mark.parametrize(
    ("name", "embedding", "output"), [("soft", False, False), ("pruned", True, True)], ids=["soft", "pruned"]
)
def test_soft_values_folded_into_weights(name: str, *, embedding: bool, output: bool) -> None:
    """``soft`` is what they evaluate, under deterministic masks; ``pruned`` the model after their ``prune_params``."""
    model = folded(soft(), embedding=embedding, output=output)
    close(logits(model, deterministic()), name)


def test_the_extracted_model_is_their_pruned_one() -> None:
    masked = MaskedModel(folded(soft(), embedding=True, output=True), KEPT)
    with torch.no_grad():
        for kind, located in masked.gates.items():
            located.copy_(gate(kind))
        small = masked.eval().extract()
        close(small(torch.tensor(inputs.TOKENS)).logits, "pruned")
    theirs = golden()["logits"]["parameters"].values()
    assert sorted(theirs) == sorted(list(parameter.shape) for parameter in small.parameters())


def test_sampled_masks_folded_into_weights() -> None:
    masks = sampled(binary=False)
    close(logits(folded(masks, embedding=False, output=False), open_units(masks)), "sampled")


def test_fractions_of_hidden_masks_act_elsewhere() -> None:
    """A difference that stays: under sampled hidden masks between zero and one the two models are not the same."""
    masks = sampled(binary=False)
    assert any(0 < value < 1 for value in masks["hidden"].tolist())
    theirs = single(golden()["logits"]["sampled"])
    assert np.abs(logits(source(), masks).numpy() - theirs).max() > 0.1
    evaluated, pruned = (single(golden()["logits"][name]) for name in ("soft", "pruned"))
    assert np.abs(evaluated - pruned).max() > 0.1  # nor is their pruned model the one they evaluate
