"""A masked model with masks of one is the stock model; pruned units have no effect and no gradient."""

import copy
import functools

import pytest
import torch
from transformers import LlamaForSequenceClassification

from drpruning.errors import ConfigError, StateError
from drpruning.pruning import MaskedModel, Target, parameter_count
from drpruning.pruning.importance import importance
from drpruning.pruning.masked_model import KINDS
from drpruning.pruning.sizes import (
    evaluated_parameters,
    evaluated_sizes,
    expected_parameters,
    expected_sizes,
    expected_sparsity,
)
from drpruning.pruning.target import Protected

from .conftest import CONFIGS, build

TARGET = Target(layers=2, hidden=16, kv_heads=2, intermediate=17)


def scattered(masked, seed=0):
    """Set random log-alphas, so that every kind has active and pruned units."""
    generator = torch.Generator().manual_seed(seed)
    for gate in masked.gates.values():
        gate.data = torch.randn(gate.shape, generator=generator)
    return masked


def gradients(model):
    return {
        name: None if parameter.grad is None else parameter.grad.clone() for name, parameter in model.named_parameters()
    }


def test_masks_of_one_are_the_stock_model(any_model, tokens):
    stock = copy.deepcopy(any_model)
    expected = stock(tokens, labels=tokens)
    expected.loss.backward()
    masked = MaskedModel(any_model, TARGET)
    with masked.fixed_masks({kind: torch.ones_like(gate) for kind, gate in masked.gates.items()}):
        output = masked(tokens, labels=tokens)
    output.loss.backward()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients(masked.model), gradients(stock), atol=1e-6, rtol=1e-6)


def test_unmasked_is_the_stock_model_in_both_modes(any_model, tokens):
    expected = copy.deepcopy(any_model)(tokens).logits
    masked = MaskedModel(any_model, TARGET)
    for training in (True, False):
        with masked.train(training).unmasked():
            assert torch.equal(masked(tokens).logits, expected)
    assert not torch.equal(masked(tokens).logits, expected)


def test_gates_have_the_documented_shapes_and_start():
    masked = MaskedModel(build("llama-grouped"), TARGET, log_alpha_init=1.5)
    shapes = {"layer": (4,), "head": (4, 4), "intermediate": (4, 40), "hidden": (32,)}
    assert {kind: tuple(gate.shape) for kind, gate in masked.gates.items()} == shapes
    assert all((gate == 1.5).all() and gate.dtype == torch.float32 for gate in masked.gates.values())
    assert {kind: pair.tolist() for kind, pair in masked.multipliers.items()} == {kind: [0.0, 100.0] for kind in shapes}


def test_a_size_that_stays_has_no_gate(tokens):
    masked = MaskedModel(build("llama"), Target(heads=2, layers=4))
    assert list(masked.gates) == ["head"]
    untouched = MaskedModel(build("llama"), Target())
    untouched.sample_masks()
    assert torch.equal(untouched.train()(tokens).logits, build("llama")(tokens).logits)
    assert untouched.constraint(0).item() == 0
    assert expected_sparsity(untouched) == {}


def test_pruned_units_get_exactly_no_gradient(tokens):
    masked = scattered(MaskedModel(build("llama-biases"), TARGET)).train()
    masked.sample_masks(torch.Generator().manual_seed(3))
    masked(tokens, labels=tokens).loss.backward()
    masks = masked.masks()
    zero = {kind: (mask == 0) for kind, mask in masks.items()}
    assert all(zero[kind].any() and not zero[kind].all() for kind in ("head", "intermediate", "hidden"))
    for kind, gate in masked.gates.items():
        assert (gate.grad[masks[kind] == 0] == 0).all()
    hidden, width = zero["hidden"], 2 * 6
    assert (masked.model.model.embed_tokens.weight.grad[:, hidden] == 0).all()
    assert (masked.model.lm_head.weight.grad[:, hidden] == 0).all()
    for block, layer in enumerate(masked.model.model.layers):
        heads = zero["head"][block].repeat_interleave(width)
        units = zero["intermediate"][block]
        attention, mlp = layer.self_attn, layer.mlp
        assert (attention.q_proj.weight.grad[heads] == 0).all()
        assert (attention.q_proj.bias.grad[heads] == 0).all()
        assert (attention.v_proj.weight.grad[zero["head"][block].repeat_interleave(6)] == 0).all()
        assert (attention.o_proj.weight.grad[:, heads] == 0).all()
        assert (attention.o_proj.weight.grad[hidden] == 0).all()
        assert (attention.o_proj.bias.grad[hidden] == 0).all()
        assert (attention.k_proj.weight.grad[:, hidden] == 0).all()
        assert (mlp.up_proj.weight.grad[units] == 0).all()
        assert (mlp.gate_proj.weight.grad[units] == 0).all()
        assert (mlp.down_proj.weight.grad[:, units] == 0).all()
        assert (layer.input_layernorm.weight.grad[hidden] == 0).all()


def test_a_pruned_block_gets_exactly_no_gradient(tokens):
    masked = MaskedModel(build("llama-biases"), Target(layers=3))
    with masked.fixed_masks({"layer": torch.tensor([1.0, 0.0, 1.0, 1.0])}):
        masked(tokens, labels=tokens).loss.backward()
    layers = masked.model.model.layers
    assert all((parameter.grad == 0).all() for parameter in layers[1].parameters())
    assert all((parameter.grad != 0).any() for parameter in layers[2].parameters())


def test_masks_stay_the_same_until_the_next_sample(tokens):
    """Sum the gradients of micro-batches: they equal those of the whole batch, gates included."""
    batch = torch.cat([tokens, tokens.flip(0)])
    whole = scattered(MaskedModel(build("llama-grouped"), TARGET)).train()
    parts = copy.deepcopy(whole)
    for masked in (whole, parts):
        masked.sample_masks(torch.Generator().manual_seed(9))
    whole(batch, labels=batch).loss.backward()
    for part in batch.chunk(2):
        (parts(part, labels=part).loss / 2).backward()
    for masked in (whole, parts):
        masked.constraint(0).backward()
    torch.testing.assert_close(gradients(parts), gradients(whole), atol=1e-6, rtol=1e-4)


def test_a_copy_is_independent(tokens):
    masked = scattered(MaskedModel(build("llama"), TARGET)).train()
    masked.sample_masks()
    masked(tokens)
    copied = copy.deepcopy(masked).eval()
    before = copied(tokens).logits
    with masked.unmasked(), torch.no_grad():
        masked.model.lm_head.weight.zero_()
        masked(tokens)
    assert torch.equal(copied(tokens).logits, before)


def test_a_model_wrapped_again_uses_the_new_wrapper(tokens):
    model = build("llama")
    MaskedModel(model, TARGET)
    masked = scattered(MaskedModel(model, Target(layers=3))).eval()
    torch.testing.assert_close(masked.extract()(tokens).logits, masked(tokens).logits, atol=1e-5, rtol=0)


def test_the_generator_decides_the_masks():
    masked = scattered(MaskedModel(build("llama"), TARGET)).train()
    generator = torch.Generator().manual_seed(1)
    masked.sample_masks(generator)
    state, first = generator.get_state(), masked.masks()
    masked.sample_masks(generator)
    second = masked.masks()
    assert not torch.equal(first["intermediate"], second["intermediate"])
    generator.set_state(state)
    torch.manual_seed(123)
    masked.sample_masks(generator)
    assert all(torch.equal(masked.masks()[kind], second[kind]) for kind in second)


def test_training_without_a_sample_is_rejected(tokens):
    with pytest.raises(StateError, match="no masks have been sampled"):
        MaskedModel(build("llama"), TARGET).train()(tokens)


def test_evaluation_keeps_exactly_the_targets_units():
    masked = scattered(MaskedModel(build("llama-grouped"), TARGET)).eval()
    active = {kind: mask.sum(-1).unique().tolist() for kind, mask in masked.masks().items()}
    assert active == {"layer": [2], "head": [2], "intermediate": [17], "hidden": [16]}
    assert masked.deterministic_masks({"hidden": 20})["hidden"].sum() == 20


def test_expected_sizes_are_between_source_and_target():
    masked = MaskedModel(build("llama"), TARGET)
    assert expected_sizes(masked) == {"layer": 4, "head": 4, "intermediate": 39, "hidden": 31}
    for gate in masked.gates.values():
        gate.data.fill_(-5)
    assert expected_sizes(masked) == {"layer": 2, "head": 2, "intermediate": 17, "hidden": 16}


@pytest.mark.parametrize("start", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("scored", [False, True])
def test_the_first_evaluation_measures_the_source_model(tokens, start, scored):
    masked = MaskedModel(build("llama-biases"), TARGET, log_alpha_init=start, protected=Protected(hidden=[3]))
    if scored:
        masked.init_from_importance(importance(masked, [tokens], "taylor"))
    masked.bfloat16().float().eval()  # casts keep gates and their initial sparsity
    assert evaluated_parameters(masked) == parameter_count(masked.model.config)
    with masked.unmasked():
        unpruned = masked(tokens).logits
    with masked.fixed_masks(masked.deterministic_masks(evaluated_sizes(masked))):
        assert torch.equal(masked(tokens).logits, unpruned)


def test_evaluated_sizes_fall_from_the_source_to_the_target():
    masked = MaskedModel(build("llama-biases"), TARGET)
    source, target, before = masked.source.sizes(), masked.target.sizes(), None
    for log_alpha in torch.linspace(2.0, -4.6, 30):
        for gate in masked.gates.values():
            gate.data.fill_(log_alpha)
        sizes = evaluated_sizes(masked)
        for kind, size in sizes.items():
            assert target[KINDS[kind]] <= size <= source[KINDS[kind]]
            assert before is None or size <= before[kind]
        before = sizes
    assert sizes == {kind: target[KINDS[kind]] for kind in sizes}
    assert evaluated_parameters(masked) == parameter_count(masked.model.config, masked.target)


def test_soft_masks_are_evaluated_at_the_expected_size():
    masked = MaskedModel(build("llama"), TARGET, mask_values="soft")
    assert evaluated_sizes(masked) == expected_sizes(masked)
    assert evaluated_parameters(masked) == expected_parameters(masked)


def test_expected_parameters_match_the_mean_over_samples():
    masked = scattered(MaskedModel(build("llama-biases"), TARGET)).train()
    generator, draws = torch.Generator().manual_seed(4), 3000
    total = 0.0
    for _ in range(draws):
        masked.sample_masks(generator)
        active = {kind: (mask != 0).float() for kind, mask in masked.masks().items()}
        hidden, heads, units = active["hidden"].sum(), active["head"].sum(-1), active["intermediate"].sum(-1)
        query, key_value = heads * 12, heads * 6
        attention = 2 * query * hidden + 2 * key_value * hidden + query + 2 * key_value + hidden
        mlp = 3 * units * hidden + 2 * units + hidden
        total += ((active["layer"] * (attention + mlp + 2 * hidden)).sum() + 2 * 50 * hidden + hidden).item()
    assert total / draws == pytest.approx(expected_parameters(masked), rel=0.01)


@pytest.mark.parametrize("name", CONFIGS)
def test_expected_parameters_of_active_units_are_all(name):
    masked = MaskedModel(build(name), TARGET)
    for gate in masked.gates.values():
        gate.data.fill_(30.0)
    assert expected_parameters(masked) == parameter_count(masked.model.config)


def test_state_dict_has_stable_names_and_comes_back():
    masked = scattered(MaskedModel(build("llama"), TARGET))
    state = masked.state_dict()
    own = {name for name in state if not name.startswith("model.")}
    by_kind = {f"{part}.{kind}" for part in ("gates", "multipliers", "lookahead") for kind in masked.gates}
    assert own == {*by_kind, "initial_sparsity"}
    assert {name.removeprefix("model.") for name in state if name not in own} == set(build("llama").state_dict())
    other = MaskedModel(build("llama", seed=1), TARGET)
    other.load_state_dict(state)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())


def test_gates_stay_float32_under_bfloat16(tokens):
    masked = scattered(MaskedModel(build("llama"), TARGET))
    before = {kind: gate.clone() for kind, gate in masked.gates.items()}
    masked = masked.bfloat16().train()
    masked.sample_masks()
    output = masked(tokens, labels=tokens)
    assert output.logits.dtype == torch.bfloat16
    assert masked.model.dtype == torch.bfloat16
    (output.loss + masked.constraint(0)).backward()
    assert all(
        torch.equal(gate, before[kind]) and gate.grad.dtype == torch.float32 for kind, gate in masked.gates.items()
    )


def test_gradient_checkpointing_changes_nothing(tokens):
    plain = scattered(MaskedModel(build("llama-grouped"), TARGET)).train()
    saving = copy.deepcopy(plain)
    for layer in saving.model.model.layers:  # as transformers does, under a name that differs between its versions
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
    for masked in (plain, saving):
        masked.sample_masks(torch.Generator().manual_seed(2))
        masked(tokens, labels=tokens).loss.backward()
    torch.testing.assert_close(gradients(saving), gradients(plain), atol=1e-7, rtol=1e-5)


@pytest.mark.skipif(torch.__version__ < "2.9", reason="breaks in the forward pass of transformers itself")
def test_one_graph_without_breaks(tokens):
    masked = scattered(MaskedModel(build("llama-grouped"), TARGET, skip_pruned_units=False)).train()
    masked.sample_masks(torch.Generator().manual_seed(2))
    expected = masked(tokens, labels=tokens).loss
    compiled = torch.compile(masked, backend="eager", fullgraph=True)
    loss = compiled(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, expected)


def test_masks_of_unknown_kind_or_size_are_rejected():
    masked = MaskedModel(build("llama"), Target(layers=2, hidden=16))
    with (
        pytest.raises(ConfigError, match="no masks of kind 'heads'; it has layer, hidden"),
        masked.fixed_masks({"heads": torch.ones(4, 4)}),
    ):
        pass
    for size in (0, 33):
        with pytest.raises(ConfigError, match=f"cannot keep {size} of 32"):
            masked.deterministic_masks({"hidden": size})


def test_groups_hold_every_parameter_once():
    masked = MaskedModel(build("llama-tied"), TARGET)
    grouped = [id(parameter) for group in masked.parameter_groups().values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in masked.parameters())


def test_a_model_with_other_parameters_is_rejected():
    with pytest.raises(ConfigError, match=r"LlamaForSequenceClassification: parameter 'lm_head\.weight'"):
        MaskedModel(LlamaForSequenceClassification(CONFIGS["llama"]()), TARGET)
    with pytest.raises(ConfigError, match="warmup_steps"):
        MaskedModel(build("llama"), TARGET, warmup_steps=-1)


@pytest.mark.parametrize("name", ["llama-grouped", "qwen2-sliding"])
@pytest.mark.parametrize("skip_pruned_units", [True, False])
def test_generating_follows_the_masks_from_the_start(name, skip_pruned_units, tokens):
    """Generate before any forward pass, through the wrapper or directly, and after the gates have changed."""
    masked = scattered(MaskedModel(build(name), TARGET, skip_pruned_units=skip_pruned_units)).eval()
    for seed in (0, 1):
        scattered(masked, seed)
        expected = masked.extract().generate(tokens, max_new_tokens=5, do_sample=False)
        assert torch.equal(masked.model.generate(tokens, max_new_tokens=5, do_sample=False), expected)
        assert torch.equal(masked.generate(tokens, max_new_tokens=5, do_sample=False), expected)
        assert not torch.equal(build(name).generate(tokens, max_new_tokens=5, do_sample=False), expected)


def test_in_training_mode_generating_uses_the_sampled_masks(tokens):
    masked = scattered(MaskedModel(build("llama"), TARGET)).train()
    for generate in (masked.generate, masked.model.generate):
        with pytest.raises(StateError, match="no masks have been sampled"):
            generate(tokens, max_new_tokens=5, do_sample=False)
    masked.sample_masks(torch.Generator().manual_seed(3))
    with masked.fixed_masks({kind: mask.detach() for kind, mask in masked.masks().items()}):
        expected = masked.model.generate(tokens, max_new_tokens=5, do_sample=False)
    assert torch.equal(masked.generate(tokens, max_new_tokens=5, do_sample=False), expected)
    assert torch.equal(masked.model.generate(tokens, max_new_tokens=5, do_sample=False), expected)


def test_fixed_masks_with_a_gradient_serve_several_backward_passes(tokens):
    masked = MaskedModel(build("llama"), Target(hidden=16))
    mask = torch.linspace(0, 1, 32).requires_grad_()
    with masked.fixed_masks({"hidden": mask}):
        for _ in range(2):
            masked(tokens, labels=tokens).loss.backward()
    once = mask.grad / 2
    mask.grad = None
    with masked.fixed_masks({"hidden": mask}):
        masked(tokens, labels=tokens).loss.backward()
    torch.testing.assert_close(mask.grad, once)


def test_direct_use_of_the_model_is_masked(tokens):
    model = build("llama")
    masked = scattered(MaskedModel(model, TARGET)).eval()
    direct = model(tokens).logits
    assert torch.equal(direct, masked(tokens).logits)
    with masked.unmasked():
        assert torch.equal(model(tokens).logits, build("llama")(tokens).logits)
    assert torch.equal(model(tokens).logits, direct)
    assert torch.equal(copy.deepcopy(model)(tokens).logits, direct)
