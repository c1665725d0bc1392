"""The repair folds what a cut removes into the weights that stay, and never increases the calibration error."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from drpruning.errors import ConfigError
from drpruning.export.repair import check_calibration, check_repairable, repair
from drpruning.planning.starter import NOT_REPAIRED
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.extract import KeptUnits, extract
from drpruning.pruning.verification import tiny_config
from tests.pruning.conftest import build
from tests.pruning.families import FAMILIES, family_config
from tests.pruning.test_extract import TARGETS
from tests.pruning.test_masked_model import scattered

NAMES = ["llama-grouped", "llama-biases", "qwen2", "qwen3"]
UNITS, KEPT_UNITS, GROUPS, KEPT_GROUPS, BLOCKS = 40, 32, 4, 2, 4


def text(seed, rows=8):
    """Return four batches: several times as many tokens as a projection has inputs."""
    return list(torch.randint(50, (4, rows, 24), generator=torch.Generator().manual_seed(seed)))


def with_duplicates(name):
    """Return a model in which the MLP units and key/value groups to remove copy kept ones."""
    model = build(name).double()
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for module in (attention.q_proj, attention.k_proj, attention.v_proj):
                removed = module.out_features // GROUPS * (GROUPS - KEPT_GROUPS)
                for parameter in module.parameters():
                    parameter[-removed:] = parameter[:removed]
            for module in (mlp.gate_proj, mlp.up_proj):
                for parameter in module.parameters():
                    parameter[KEPT_UNITS:] = parameter[: UNITS - KEPT_UNITS]
    return model


@pytest.mark.parametrize("name", NAMES)
def test_removed_copies_are_folded_into_the_units_that_stay(name):
    model = with_duplicates(name)
    kept = KeptUnits(
        layers=list(range(BLOCKS)),
        hidden=list(range(32)),
        heads=[list(range(KEPT_GROUPS))] * BLOCKS,
        intermediate=[list(range(KEPT_UNITS))] * BLOCKS,
    )
    target = Target(kv_heads=KEPT_GROUPS, intermediate=KEPT_UNITS).resolve(model.config)
    pruned = extract(model, kept, target)
    unseen = text(1)[0]
    assert (pruned(unseen).logits - model(unseen).logits).abs().max() > 0.1
    source = {key: value.clone() for key, value in model.state_dict().items()}
    errors = repair(model, pruned, kept, text(2), ridge=1e-9)
    torch.testing.assert_close(pruned(unseen).logits, model(unseen).logits, atol=1e-4, rtol=0)
    assert errors["model.layers.0.mlp.down_proj"].before > 1e-3
    assert all(error.after < 1e-6 for error in errors.values())
    assert all(torch.equal(value, source[key]) for key, value in model.state_dict().items())


def measured(reference, pruned, kept, batches):
    """Return the errors as they are now: with this penalty the repair changes nothing."""
    errors = repair(reference, pruned, kept, batches, ridge=1e30)
    return {name: error.before for name, error in errors.items()}


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_no_projection_has_a_larger_error_on_the_calibration_text(name, ridge):
    masked = scattered(MaskedModel(build(name).double(), TARGETS["all"], skip_pruned_units=False)).eval()
    pruned, kept = masked.extract(), masked.kept_units()
    names = {key: value.shape for key, value in pruned.state_dict().items()}
    with masked.unmasked():
        errors = repair(masked.model, pruned, kept, text(3), ridge=ridge)
        again = masked.extract()
        repair(masked.model, again, kept, text(3), ridge=ridge)
    assert len(errors) == 7 * len(kept.layers)
    rounding = 1 + 1e-9  # float64 sums over a thousand tokens and forty inputs
    assert all(error.after <= rounding * error.before for error in errors.values())
    assert min(error.after / error.before for error in errors.values()) < (0.9 if ridge < 1 else 1.0)
    assert names == {key: value.shape for key, value in pruned.state_dict().items()}
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in pruned.state_dict().items())
    with masked.unmasked():
        found = measured(masked.model, pruned, kept, text(3))
    assert found == pytest.approx({key: error.after for key, error in errors.items()}, rel=1e-6)


def test_wrong_arguments_are_rejected():
    masked = MaskedModel(build("llama"), TARGETS["intermediate"]).eval()
    for batches, ridge in (([], 0.1), (text(1), 0.0)):
        with pytest.raises(ConfigError, match="at least one batch and a positive ridge"):
            repair(masked.model, masked.extract(), masked.kept_units(), batches, ridge=ridge)


def test_the_biases_of_other_families_are_repaired() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family_config("starcoder2"), tied=False))
    width = model.config.intermediate_size * 3 // 4
    masked = MaskedModel(model, Target(intermediate=width), skip_pruned_units=False).eval()
    pruned, batches = masked.extract(), [torch.randint(masked.model.config.vocab_size, (8, 24)) for _ in range(2)]
    biases = {key: value.clone() for key, value in pruned.state_dict().items() if key.endswith("_proj.bias")}
    with masked.unmasked():
        errors = repair(masked.model, pruned, masked.kept_units(), batches)
        found = measured(masked.model, pruned, masked.kept_units(), batches)
    assert len(errors) == masked.model.config.num_hidden_layers * 6
    assert all(error.after <= (1 + 1e-9) * error.before for error in errors.values())
    assert found == pytest.approx({key: error.after for key, error in errors.items()}, rel=1e-3)  # float32 weights
    changed = {key for key, value in biases.items() if not torch.equal(value, pruned.state_dict()[key])}
    assert {key for key in biases if not key.startswith("model.layers.0.self_attn")} <= changed  # before it: no error


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_the_repair_cannot_change_is_refused_before_training(name: str) -> None:
    """Recipes of `init` have a repair where the architecture allows it, and only there."""
    config = family_config(name)
    if config.model_type not in NOT_REPAIRED:
        check_repairable(config)
        return
    with pytest.raises(ConfigError, match=r"fused projection|experts|adds the outputs"):
        check_repairable(config)


def test_too_few_calibration_tokens_are_refused() -> None:
    config = build("llama-grouped").config
    target = Target(hidden=24, intermediate=32)  # the widest input is that of the attention's output
    inputs = config.num_attention_heads * config.head_dim
    check_calibration(4 * inputs, config, target)
    with pytest.raises(ConfigError, match=f"{4 * inputs - 1} calibration tokens for projections with {inputs} inputs"):
        check_calibration(4 * inputs - 1, config, target)
