"""Importance ranks the units that matter first, and can initialise gates."""

from dataclasses import asdict

import pytest
import torch

from drpruning.errors import ConfigError
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.importance import Measures, importance
from drpruning.pruning.sizes import expected_sizes

from .conftest import build
from .test_masked_model import TARGET

MEASURES = ["taylor", "activation"]


def with_dead_units(architecture):
    """Return a model without effect of block 1, unit 3 of block 0's MLP, the first group of block 2, hidden unit 5."""
    model = build(architecture)
    layers = model.model.layers
    group = layers[0].self_attn.head_dim * layers[0].self_attn.num_key_value_groups
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        for layer in layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix[5] = 0
        layers[1].self_attn.o_proj.weight.zero_()
        layers[1].mlp.down_proj.weight.zero_()
        layers[0].mlp.up_proj.weight[3] = 0
        layers[2].self_attn.v_proj.weight[: layers[0].self_attn.head_dim] = 0
        layers[2].self_attn.o_proj.weight[:, :group] = 0
        model.model.embed_tokens.weight[:, 5] = 0
    return model


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ["llama", "llama-grouped", "qwen3"])
def test_dead_units_come_last(name, measure, tokens):
    masked = MaskedModel(with_dead_units(name), TARGET).train()
    scores = importance(masked, [tokens, tokens.flip(1)], measure)
    assert masked.training
    assert {kind: score.shape for kind, score in scores.items()} == {k: g.shape for k, g in masked.gates.items()}
    assert scores["layer"].argmin() == 1
    assert scores["hidden"].argmin() == 5
    assert scores["intermediate"][0].argmin() == 3
    assert scores["head"][2].argmin() == 0
    assert all(parameter.grad is None for parameter in masked.parameters())


def test_taylor_is_the_first_order_loss_of_pruning_a_unit(tokens):
    """Compare with finite differences of the mask around one."""
    masked = MaskedModel(build("llama").double(), TARGET).eval()
    scores = importance(masked, [tokens], "taylor")
    ones = {kind: torch.ones_like(gate, dtype=torch.float64) for kind, gate in masked.gates.items()}
    with torch.no_grad():
        for kind, place in (("head", (1, 2)), ("intermediate", (3, 7)), ("layer", (2,)), ("hidden", (4,))):
            around = []
            for shift in (1e-3, -1e-3):
                masks = {**ones, kind: ones[kind].clone()}
                masks[kind][place] += shift
                with masked.fixed_masks(masks):
                    around.append(masked(tokens, labels=tokens).loss)
            slope = (around[0] - around[1]) / 2e-3
            assert slope.abs().item() == pytest.approx(scores[kind][place].item(), rel=2e-2, abs=2e-4)


def test_gates_initialised_by_importance_keep_the_best_and_the_size(tokens):
    masked = MaskedModel(with_dead_units("llama"), Target(layers=3, hidden=31 - 7, heads=3, intermediate=39))
    before = expected_sizes(masked)
    masked.init_from_importance(importance(masked, [tokens], "activation"))
    assert expected_sizes(masked) == before
    kept = asdict(masked.kept_units())
    assert 1 not in kept["layers"]
    assert 5 not in kept["hidden"]
    assert 3 not in kept["intermediate"][0]


@pytest.mark.parametrize("measure", ["taylor", "activation"])
def test_units_are_scored_under_masks_and_pruned_ones_come_last(tokens, measure):
    masked = MaskedModel(build("llama"), TARGET)
    masks = {kind: torch.ones_like(gate) for kind, gate in masked.gates.items()}
    masks["hidden"][4], masks["intermediate"][2, 7] = 0, 0
    scores, before = importance(masked, [tokens], measure, masks=masks), importance(masked, [tokens], measure)
    for kind, score in scores.items():
        assert ((score == -1) == (masks[kind] == 0)).all()
        assert (score[masks[kind] == 1] >= 0).all()
    assert not torch.allclose(scores["hidden"][:4], before["hidden"][:4], rtol=1e-3)


def test_blocks_can_have_another_measure_than_other_kinds(tokens):
    masked = MaskedModel(build("llama").double(), TARGET)
    by_measure = {measure: importance(masked, [tokens], measure) for measure in MEASURES}
    mixed = importance(masked, iter([tokens]), Measures(depth="activation", width="taylor"))
    assert list(mixed) == list(masked.gates)
    assert torch.equal(mixed["layer"], by_measure["activation"]["layer"])
    assert all(torch.equal(mixed[kind], by_measure["taylor"][kind]) for kind in ("head", "intermediate", "hidden"))


def test_wrong_measures_and_shapes_are_rejected(tokens):
    masked = MaskedModel(build("llama"), TARGET)
    with pytest.raises(ConfigError, match="measure is 'magnitude'"):
        importance(masked, [tokens], "magnitude")
    with pytest.raises(ConfigError, match="at least one batch"):
        importance(masked, [], "activation")
    with pytest.raises(ConfigError, match=r"scores of 'hidden': expected shape \(32,\) of the gates, got \(3,\)"):
        masked.init_from_importance({"hidden": torch.zeros(3)})


def test_scores_that_are_not_finite_are_refused() -> None:
    """Regression: they were ranked highest, so that broken units were kept."""
    masked = MaskedModel(build("llama"), Target(hidden=24))
    scores = torch.rand(masked.gates["hidden"].shape)
    scores[..., 3] = torch.nan
    with pytest.raises(ConfigError, match="expected finite numbers, got 1 that are not"):
        masked.init_from_importance({"hidden": scores})
