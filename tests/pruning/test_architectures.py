"""Every supported architecture is pruned exactly, and a wrong description is found."""

from dataclasses import replace

import pytest
import torch

from drpruning.errors import ArchitectureError, ConfigError
from drpruning.planning import ModelShape
from drpruning.planning.model_shape import transformers_config
from drpruning.pruning import ArchitectureSpec, MaskedModel, Norm, Part, Target, parameter_count, register_architecture
from drpruning.pruning.architectures import ARCHITECTURES, Routing
from drpruning.pruning.importance import importance
from drpruning.pruning.learning_rates import mask_rates
from drpruning.pruning.model_flops import flops_per_token
from drpruning.pruning.sizes import expected_parameters, expected_sparsity
from drpruning.pruning.target import sizes_of
from drpruning.pruning.verification import (
    PROPERTIES,
    TinyModels,
    check_property,
    require_verified,
    tiny_config,
)

from .families import FAMILIES, family_config


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prop", PROPERTIES)
def test_every_family_is_pruned_exactly(prop, name):
    for tied in (False, True):
        check = check_property(prop, tiny_config(family_config(name), tied=tied))
        assert check.passed, f"{check.name}: {check.error}"


def test_every_type_has_a_family():
    in_other_files = {"mistral", "qwen2", "qwen3"}
    example = {"persimmon"}  # registered by docs/architectures.md, whose test may have run in this process
    assert {model_type for model_type, _ in FAMILIES.values()} | in_other_files == ARCHITECTURES.keys() - example


def _part(spec, name, **changes):
    block = tuple(replace(part, **changes) if part.name == name else part for part in spec.block)
    assert block != spec.block
    return replace(spec, block=block)


QKV = "self_attn.qkv_proj"
WRONG = {
    "norm without its offset": ("gemma", lambda spec: replace(spec, norm=Norm(float32_gain=True)), "stock"),
    "embedding without its scale": ("gemma", lambda spec: replace(spec, scale_embedding=False), "masked = extracted"),
    "fused projection in another order": (
        "phi4-mini",
        lambda spec: _part(spec, QKV, axes=(("key_value", "query", "key_value"), "hidden")),
        "masked = extracted",
    ),
    "heads that are not interleaved": (
        "pythia",
        lambda spec: _part(spec, "attention.query_key_value", axes=(("query", "key_value", "key_value"), "hidden")),
        "masked = extracted",
    ),
    "mean square for a variance": ("starcoder2", lambda spec: replace(spec, norm=Norm("rms")), "stock"),
    "heads skipped in a module with a fixed number": (
        "phi3",
        lambda spec: replace(spec, skip_heads=True),
        "skipped = masked",
    ),
    "gate and up that are not interleaved": (
        "gpt_oss",
        lambda spec: replace(
            spec,
            block=tuple(
                replace(part, axes=("expert", "hidden", ("intermediate", "intermediate")))
                if part.weight == "gate_up_proj"
                else part
                for part in spec.block
            ),
        ),
        "masked = extracted",
    ),
    "softmax over all experts": ("gpt_oss", lambda spec: replace(spec, routing=Routing(normalise=False)), "stock"),
    "missing module": (
        "glm4",
        lambda spec: replace(spec, block=spec.block[:-1]),
        "counted",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_description_is_found(mistake, monkeypatch):
    name, change, prop = WRONG[mistake]
    config = family_config(name)
    monkeypatch.setitem(ARCHITECTURES, config.model_type, change(ARCHITECTURES[config.model_type]))
    (prop,) = [each for each in PROPERTIES if prop in each and "one kind" not in each]
    assert not check_property(prop, tiny_config(config, tied=False)).passed


def test_the_error_names_type_and_property(monkeypatch):
    config = family_config("glm4")
    spec = ARCHITECTURES["glm4"]
    monkeypatch.setitem(ARCHITECTURES, "glm4", replace(spec, block=spec.block[:-1]))
    with pytest.raises(ArchitectureError, match=r"'glm4' is wrong: parameters counted = extracted, untied: .*post_mlp"):
        require_verified(config)


def test_a_registered_architecture_is_supported(monkeypatch):
    monkeypatch.setattr("drpruning.pruning.architectures.ARCHITECTURES", {**ARCHITECTURES})
    block = (Part("attention.dense", ("hidden", "query")),)
    register_architecture("new", ArchitectureSpec(block))
    with pytest.raises(ConfigError, match="'new' has a description already"):
        register_architecture("new", ArchitectureSpec(block))
    register_architecture("new", ArchitectureSpec(block, norm=Norm("layer")), replace=True)
    with pytest.raises(ConfigError, match="writes to the residual stream, but its first axis is 'query'"):
        ArchitectureSpec((Part("self_attn.q_proj", ("query", "hidden"), writes=True),))
    with pytest.raises(ConfigError, match="no part of the block writes"):
        ArchitectureSpec((Part("input_layernorm", ("hidden",)),))
    with pytest.raises(ConfigError, match=r"describes 'attention\.dense' twice"):
        ArchitectureSpec(block * 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shape_without_transformers_has_the_same_counts(name, monkeypatch):
    """Counts of a ``config.json`` agree with transformers, and so does the configuration that is built from it."""
    config = family_config(name)
    if config.model_type == "nemotron":
        config.num_key_value_heads = config.num_attention_heads
    shape = ModelShape.from_config(config.to_diff_dict(), name)
    assert sizes_of(shape) == sizes_of(config)
    assert parameter_count(shape) == parameter_count(config)
    length, sizes = 64, sizes_of(config)
    assert flops_per_token(shape, sizes, length) == flops_per_token(config, sizes, length)
    built = transformers_config(shape, {**sizes, "layers": 2})
    assert type(built) is type(config)
    assert parameter_count(built) == parameter_count(config, Target(layers=2))


@pytest.mark.parametrize(("name", "matrices"), [("pythia", 2), ("nemotron", 2), ("phi3", 3), ("gemma2", 3)])
def test_flops_count_the_matrices_of_the_mlp(name, matrices):
    config = tiny_config(family_config(name), tied=False)
    sizes = sizes_of(config)
    wider = {**sizes, "intermediate": sizes["intermediate"] + 1}
    difference = flops_per_token(config, wider, 16) - flops_per_token(config, sizes, 16)
    assert difference == 6 * sizes["layers"] * matrices * sizes["hidden"]


@pytest.mark.parametrize("name", ["gemma2", "pythia", "command-r-plus", "qwen2_moe", "gpt_oss"])
def test_expected_parameters_of_active_units_are_all(name):
    models = TinyModels(tiny_config(family_config(name), tied=False))
    masked = models.masked()
    for gate in masked.gates.values():
        gate.data.fill_(30.0)
    assert expected_parameters(masked) == parameter_count(models.config)


@pytest.mark.parametrize("measure", ["taylor", "activation"])
@pytest.mark.parametrize("name", ["apertus-silu", "pythia", "olmo2", "cohere", "mixtral", "qwen2_moe", "gpt_oss"])
def test_units_of_other_families_are_scored(name, measure):
    models = TinyModels(tiny_config(family_config(name), tied=False))
    masked = models.masked()
    scores = importance(masked, [models.tokens], measure)
    assert {kind: score.shape for kind, score in scores.items()} == {
        kind: gate.shape for kind, gate in masked.gates.items()
    }
    assert all(score.isfinite().all() and (score > 0).any() for score in scores.values())


@pytest.mark.parametrize("name", ["gemma3", "pythia", "olmo2", "qwen3_moe"])
def test_training_meets_the_target(name):
    models = TinyModels(tiny_config(family_config(name), tied=False))
    steps = 200
    masked = MaskedModel(models.stock(), models.target, warmup_steps=steps // 5).train()
    groups, generator = masked.parameter_groups(), torch.Generator().manual_seed(0)
    weights = torch.optim.SGD(groups["weights"], lr=1e-3)
    rates = mask_rates(steps)
    masks = torch.optim.Adam(
        [
            {"params": groups["gates"], "lr": rates.gates},
            {"params": groups["multipliers"], "lr": rates.multipliers, "maximize": True},
        ],
        betas=(0.9, 0.95),
    )
    tokens = models.tokens[:1]
    for step in range(steps):
        masked.sample_masks(generator)
        (masked(tokens, labels=tokens).loss + masked.constraint(step)).backward()
        for optimizer in (weights, masks):
            optimizer.step()
            optimizer.zero_grad()
        masked.clamp_gates()
    goal = masked.target_sparsity()
    for kind, sparsity in expected_sparsity(masked).items():
        assert sparsity == pytest.approx(goal[kind], abs=0.05)
    pruned = masked.eval().extract()
    torch.testing.assert_close(pruned(tokens).logits, masked(tokens).logits, atol=1e-4, rtol=0)
