"""Experts are units: routing under masks, counts of a token's experts, importance by load, and refused combinations."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GptOssConfig, MixtralConfig

from drpruning.errors import ConfigError
from drpruning.hf.models import build_on_meta
from drpruning.planning import Budget, ModelShape, Serving, find_accelerator, search_shapes
from drpruning.planning.compatibility import check_target
from drpruning.pruning import MaskedModel, Protected, Target, parameter_count
from drpruning.pruning.architectures import head_dim_of
from drpruning.pruning.importance import _sizes_in_experts, importance
from drpruning.pruning.model_flops import products_per_token
from drpruning.pruning.target import sizes_of
from drpruning.pruning.verification import EXPERTS, EXPERTS_PER_TOKEN, WIDTH, TinyModels, tiny_config
from drpruning.train.model_structure import _weights_in_products
from drpruning.train.preflight import check_experts

from .families import family_config

NAMES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"]
KEPT = EXPERTS - 2


def tiny(name, **changes):
    config = tiny_config(family_config(name), tied=False)
    for field, value in changes.items():
        setattr(config, field, value)
    return TinyModels(config)


def masked_experts(models, **settings):
    return MaskedModel(models.stock(), Target(experts=KEPT), **settings).eval()


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_one_change_no_bit_in_bfloat16(name):
    models = tiny(name)
    stock = models.stock().to(torch.bfloat16)
    with torch.no_grad():
        expected = stock(models.tokens, use_cache=False).logits
        masked = MaskedModel(stock, models.target)
        with masked.fixed_masks({kind: torch.ones_like(gate) for kind, gate in masked.gates.items()}):
            assert torch.equal(masked(models.tokens).logits, expected)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "gpt_oss"])  # weights that sum to one; that do not; over chosen
def test_a_mask_multiplies_the_odds_of_its_expert(name):
    models = tiny(name)
    masked = masked_experts(models)
    mlp = masked.model.model.layers[0].mlp
    router = mlp.router if name == "gpt_oss" else mlp.gate
    tokens = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([1.0, 0.25, 0.0, 1.0, 0.5, 1.0])
    with torch.no_grad(), masked.fixed_masks({"expert": mask.repeat(3, 1)}):
        _, weights, experts = router(tokens)
    bias = router.bias.double() if name == "gpt_oss" else 0.0
    odds = mask.double() * (tokens.double() @ router.weight.double().T + bias).exp()
    expected, chosen = (odds / odds.sum(-1, keepdim=True)).topk(EXPERTS_PER_TOKEN)
    if name != "olmoe":
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.equal(experts, chosen)
    assert not (experts == 2).any()
    torch.testing.assert_close(weights.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("active", [0, 1])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_fewer_active_experts_than_a_token_is_routed_to(name, active):
    """Check that a sample can have them: the rest of the choice has weights of zero, and all gradients are finite."""
    models = tiny(name)
    masked = masked_experts(models).train()
    mask = torch.zeros(3, EXPERTS)
    mask[:, :active] = 1.0
    with masked.fixed_masks({"expert": mask.requires_grad_()}):
        mlp = masked.model.model.layers[0].mlp
        _, weights, experts = (mlp.router if name == "gpt_oss" else mlp.gate)(torch.randn(5, WIDTH))
        loss = masked(models.tokens, labels=models.tokens).loss
        loss.backward()
    assert weights.sum(-1).tolist() == [float(active)] * 5
    assert (weights[experts != 0] == 0).all()
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in (mask.grad, *(p.grad for p in masked.model.parameters())))


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_gradients_are_the_same_with_recomputed_activations(name):
    gradients = []
    for recompute in (False, True):
        models = tiny(name)
        masked = models.masked().train()
        if recompute:
            model = masked.model
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        masked.sample_masks(torch.Generator().manual_seed(0))
        masked(models.tokens, labels=models.tokens).loss.backward()
        gradients.append([p.grad for p in (*masked.gates.values(), *masked.model.parameters())])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=0)


def test_the_auxiliary_loss_balances_active_experts():
    """Check that it is finite under masks, and that a pruned expert has no part in it."""
    models = tiny("olmoe", output_router_logits=True)
    masked = masked_experts(models)
    mask = torch.ones(3, EXPERTS)
    mask[:, 0] = 0.0
    with torch.no_grad(), masked.fixed_masks({"expert": mask}):
        output = masked(models.tokens, labels=models.tokens)
    assert output.aux_loss.isfinite()
    assert output.loss.isfinite()
    assert all((logits[:, 0] == -torch.inf).all() for logits in output.router_logits)


@pytest.mark.parametrize("name", NAMES)
def test_products_count_the_experts_of_a_token(name):
    config = tiny(name).config
    sizes, length = sizes_of(config), 16
    scores = sizes["layers"] * sizes["heads"] * head_dim_of(config) * length
    assert products_per_token(config, sizes, length) == _weights_in_products(build_on_meta(config)) + scores
    of_one = parameter_count(config, Target(experts=EXPERTS)) - parameter_count(config, Target(experts=EXPERTS - 1))
    of_router = sizes["layers"] * (sizes["hidden"] + (name == "gpt_oss"))  # rows and biases are active
    rest = (EXPERTS - EXPERTS_PER_TOKEN) * (of_one - of_router)
    assert parameter_count(config, active=True) == parameter_count(config) - rest


def test_activation_importance_of_experts_is_their_load():
    models = tiny("mixtral")
    masked = masked_experts(models)
    scores = importance(masked, [models.tokens[:1], models.tokens[1:]], "activation")["expert"]
    with torch.no_grad(), masked.unmasked():
        output = masked.model(models.tokens, output_router_logits=True, use_cache=False)
    for block, logits in enumerate(output.router_logits):
        top, experts = logits.softmax(-1).topk(EXPERTS_PER_TOKEN)
        load = torch.zeros(EXPERTS).index_add_(0, experts.flatten(), (top / top.sum(-1, keepdim=True)).flatten())
        torch.testing.assert_close(scores[block] / 2, load / len(logits), atol=1e-6, rtol=0)
    masked.init_from_importance({"expert": scores})
    least = scores.argsort(-1)[:, : EXPERTS - KEPT]
    for kept, pruned in zip(masked.kept_units().experts, least.tolist(), strict=True):
        assert sorted(kept + pruned) == list(range(EXPERTS))


def test_activation_importance_of_units_in_interleaved_experts():
    """Check each unit's mean |activation| against the formula of gpt-oss, with its limits."""
    masked = tiny("gpt_oss").masked()
    experts, limit = masked.model.model.layers[0].mlp.experts, 0.5
    tokens = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = _sizes_in_experts(experts, tokens, torch.full((7, 1), 2))
        products = tokens @ experts.gate_up_proj[2] + experts.gate_up_proj_bias[2]
    gate, up = products[:, 0::2].clamp(max=limit), products[:, 1::2].clamp(-limit, limit)
    torch.testing.assert_close(got[2], (gate * (1.702 * gate).sigmoid() * (up + 1)).abs().mean(0))
    assert (products.abs() > limit).any()
    assert not got[[0, 1, 3, 4, 5]].any()


def test_a_cut_head_takes_its_sink_with_it():
    masked = tiny("gpt_oss").masked()
    kept, pruned = masked.kept_units(), masked.extract()
    group = masked.source.heads // masked.source.kv_heads
    for block, (source, heads) in enumerate(zip(kept.layers, kept.heads, strict=True)):
        sinks = masked.model.model.layers[source].self_attn.sinks.unflatten(0, (-1, group))
        assert torch.equal(pruned.model.layers[block].self_attn.sinks, sinks[heads].flatten())


def test_protected_experts_are_kept():
    masked = masked_experts(tiny("olmoe"), protected=Protected(experts={1: [-1]}))
    masked.gates["expert"].data[:, -1] = -4.0
    assert [EXPERTS - 1 in kept for kept in masked.kept_units().experts] == [False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": Target(experts=1)}, r"experts=1 is smaller than num_experts_per_tok=2.*\n.*experts=2"),
        ({"target": Target(intermediate=20)}, r"intermediate=20 is not a multiple of 8.*\n.*=16 or intermediate=24"),
        ({"mask_values": "soft"}, "soft mask values of experts"),
        ({"protected": Protected(intermediate={0: [1]})}, "protected intermediate units"),
    ],
)
def test_what_is_not_exact_is_refused(settings, message):
    models = tiny("mixtral")
    with pytest.raises(ConfigError, match=message):
        MaskedModel(models.stock(), **{"target": Target(experts=KEPT), **settings})


def test_soft_mask_values_of_experts_are_refused_before_training():
    prune = SimpleNamespace(mask_values="soft", target=SimpleNamespace(experts=KEPT))
    with pytest.raises(ConfigError, match=r"soft mask values of experts\n.*prune\.mask_values=hard"):
        check_experts(SimpleNamespace(prune=prune), tiny("olmoe").config)


def test_plans_have_experts():
    config = tiny("qwen3_moe").config
    shape = ModelShape.from_config(config.to_diff_dict(), "tiny")
    assert parameter_count(shape, active=True) == parameter_count(config, active=True)
    serving = Serving(accelerator=find_accelerator("H100"))
    budget = Budget(parameters=0.4 * parameter_count(shape))
    best = search_shapes(shape, budget, serving)[0]
    assert best.parameters == parameter_count(shape, best.target)
    assert best.active_parameters == parameter_count(shape, best.target, active=True)
    assert all(getattr(best.target, size) % 8 == 0 for size in ("hidden", "intermediate"))
    refused = check_target(shape, Target(experts=1, intermediate=12)).loaders[0]
    assert {problem.field for problem in refused.problems} == {"experts", "intermediate"}


@pytest.mark.parametrize(("config", "published"), [(MixtralConfig(), [46.7, 12.9]), (GptOssConfig(), [116.8, 5.7])])
def test_counts_are_those_of_the_papers(config, published):
    """Check Mixtral 8x7B, and gpt-oss-120b, whose model card leaves the 0.6 billion of the embedding out of 5.1."""
    assert [round(parameter_count(config, active=active) / 1e9, 1) for active in (False, True)] == published
