"""Logits of a tiny Llama and a tiny Qwen2 with grouped heads against the ancestors', with the same weights and masks.

The logits are equal for masks of zero and one. For other values the two models differ by definition: the ancestors
multiply the outputs of the norms by the hidden mask and not the embedding, ours multiplies the embedding and not the
norms. Both multiply the outputs of the blocks. ``prune_params`` multiplies the embedding nevertheless, the output layer
once more, and of the value projection the weight but not the bias. With these factors folded into its weights our model
reproduces each of their results.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from drpruning.pruning import MaskedModel, Target, hard_concrete
from tests.conformance.conftest import EPS, gate, golden, single
from tests.conformance.test_masks import CONFIG, GROUPED
from tests.golden import ancestor_inputs as inputs

HEAD_DIM = inputs.HIDDEN // inputs.HEADS
KEPT = {"llama": Target(layers=2, hidden=12, heads=3, intermediate=14)}
KEPT["qwen2"] = Target(layers=2, hidden=12, kv_heads=inputs.KEPT_KV_HEADS, intermediate=14)
FAMILIES = pytest.mark.parametrize("family", list(KEPT))
Masks = dict[str, Tensor]

# Three blocks of ten operations and the output, each on sums of at most 24 products in both models, of logits below 8
TOLERANCE = 2 * 31 * 24 * EPS * 8


def source(family: str) -> PreTrainedModel:
    grouped = family == "qwen2"
    model = (Qwen2ForCausalLM(Qwen2Config(**GROUPED)) if grouped else LlamaForCausalLM(CONFIG)).eval()
    shapes = inputs.weight_shapes(grouped=grouped)
    model.load_state_dict(
        {name: torch.tensor(inputs.weights(name, grouped=grouped)).reshape(shape) for name, shape in shapes.items()}
    )
    return model


def gates(family: str) -> Masks:
    located = {kind: gate(kind, torch.float32) for kind in inputs.SHAPES}
    if family == "qwen2":
        located["head"] = located["head"][:, :: inputs.HEADS // inputs.KV_HEADS]
    return located


def deterministic(family: str) -> Masks:
    kept = inputs.KEPT | ({"head": inputs.KEPT_KV_HEADS} if family == "qwen2" else {})
    return {kind: hard_concrete.keep_top(located, kept[kind]) for kind, located in gates(family).items()}


def soft(family: str) -> Masks:
    """Their deterministic masks: the values that a unit's location gives, zero for units that leave."""
    masks, located = deterministic(family), gates(family)
    return {kind: mask * torch.sigmoid(0.8 * located[kind] / hard_concrete.TEMPERATURE) for kind, mask in masks.items()}


def sampled(*, binary: bool) -> Masks:
    masks = {}
    for kind, shape in inputs.SHAPES.items():
        noise = torch.tensor(inputs.noise(kind, binary=binary and kind == "hidden")).reshape(shape)
        masks[kind] = hard_concrete.sample(gate(kind, torch.float32), noise)
    return masks


@torch.no_grad()
def folded(family: str, masks: Mapping[str, Tensor], *, pruned: bool) -> PreTrainedModel:
    """Fold mask values into the source's weights, as in the ancestors' forward pass or ``prune_params``."""
    model, hidden = source(family), masks["hidden"]
    for block, layer in enumerate(model.model.layers):
        value = layer.self_attn.v_proj
        head = masks["head"][block].repeat_interleave(HEAD_DIM)
        value.weight *= head[:, None]
        if value.bias is not None and not pruned:
            value.bias *= head
        layer.mlp.up_proj.weight *= masks["intermediate"][block][:, None]
        for writes in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writes.weight *= (masks["layer"][block] * hidden)[:, None]
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight *= hidden
    model.model.norm.weight *= hidden
    if pruned:
        model.model.embed_tokens.weight *= hidden
        model.lm_head.weight *= hidden
    return model


@torch.no_grad()
def logits(family: str, model: PreTrainedModel, masks: Mapping[str, Tensor]) -> Tensor:
    """Return our masked model's logits under ``masks``."""
    masked = MaskedModel(model, KEPT[family]).eval()
    with masked.fixed_masks(masks):
        found: Tensor = masked(torch.tensor(inputs.TOKENS)).logits
    return found


def whole_units(masks: Mapping[str, Tensor]) -> Masks:
    return {kind: (mask != 0).float() for kind, mask in masks.items()}


def close(ours: Tensor, family: str, name: str) -> None:
    np.testing.assert_allclose(ours, single(golden()["logits"][family][name]), rtol=0, atol=TOLERANCE)


@FAMILIES
def test_the_source_model(family: str) -> None:
    close(source(family)(torch.tensor(inputs.TOKENS)).logits.detach(), family, "dense")


@FAMILIES
def test_masks_of_zero_and_one(family: str) -> None:
    close(logits(family, source(family), deterministic(family)), family, "zeros_and_ones")


def test_sampled_masks_where_hidden_ones_are_zero_or_one() -> None:
    masks = sampled(binary=True)
    assert {0.0, 1.0} == set(masks["hidden"].tolist())
    assert any(0 < value < 1 for value in masks["head"].flatten().tolist())
    close(logits("llama", source("llama"), masks), "llama", "sampled_hidden_binary")


@FAMILIES
@pytest.mark.parametrize("name", ["soft", "pruned"])
def test_soft_values_folded_into_weights(family: str, name: str) -> None:
    """``soft`` is what they evaluate, under deterministic masks; ``pruned`` the model after their ``prune_params``."""
    model = folded(family, soft(family), pruned=name == "pruned")
    close(logits(family, model, deterministic(family)), family, name)


@FAMILIES
def test_the_extracted_model_is_their_pruned_one(family: str) -> None:
    masked = MaskedModel(folded(family, soft(family), pruned=True), KEPT[family])
    with torch.no_grad():
        for kind, located in masked.gates.items():
            located.copy_(gates(family)[kind])
        small = masked.eval().extract()
        close(small(torch.tensor(inputs.TOKENS)).logits, family, "pruned")
    theirs = golden()["logits"][family]["parameters"].values()
    assert sorted(theirs) == sorted(list(parameter.shape) for parameter in small.parameters())


def test_sampled_masks_folded_into_weights() -> None:
    masks = sampled(binary=False)
    close(logits("llama", folded("llama", masks, pruned=False), whole_units(masks)), "llama", "sampled")


def test_hidden_masks_between_zero_and_one_differ() -> None:
    """Document a difference: under sampled hidden masks between zero and one the two models differ."""
    masks = sampled(binary=False)
    assert any(0 < value < 1 for value in masks["hidden"].tolist())
    found = golden()["logits"]["llama"]
    assert np.abs(logits("llama", source("llama"), masks).numpy() - single(found["sampled"])).max() > 0.1
    # Nor is their pruned model the one they evaluate
    assert np.abs(single(found["soft"]) - single(found["pruned"])).max() > 0.1
