"""Hard-concrete gates, the constraint, expected sizes and deterministic masks against LLM-Shearing's ``l0_module``.

Ours is computed in float64 where functions allow it: a difference is then the ancestors' float32.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from drpruning.pruning import MaskedModel, Target, hard_concrete, lagrangian
from drpruning.pruning.sizes import expected_parameters, expected_sizes
from tests.conformance.conftest import EPS, gate, golden, single
from tests.golden import ancestor_inputs as inputs

SHAPE = {
    "vocab_size": inputs.VOCABULARY,
    "hidden_size": inputs.HIDDEN,
    "intermediate_size": inputs.INTERMEDIATE,
    "num_hidden_layers": inputs.BLOCKS,
    "num_attention_heads": inputs.HEADS,
    "num_key_value_heads": inputs.HEADS,
    "max_position_embeddings": 16,
}
CONFIG = LlamaConfig(**SHAPE)
GROUPED = SHAPE | {"num_key_value_heads": inputs.KV_HEADS}
TARGET = {"layers": inputs.KEPT["layer"], "heads": inputs.KEPT["head"], "intermediate": inputs.KEPT["intermediate"]}


def masked_model(**target: int) -> MaskedModel:
    """Return a model of the golden shape with the ancestors' gates and multipliers."""
    model = MaskedModel(LlamaForCausalLM(CONFIG), Target(**(TARGET | target)), warmup_steps=inputs.WARMUP_STEPS)
    with torch.no_grad():
        for kind, located in model.gates.items():
            located.copy_(gate(kind))
            model.multipliers[kind].copy_(torch.tensor(inputs.MULTIPLIERS[kind]))
    return model


def sparsity(kind: str) -> Tensor:
    return 1 - hard_concrete.probability_active(gate(kind)).mean(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_samples_for_given_noise(dtype: torch.dtype) -> None:
    case = golden()["hard_concrete"]
    log_alpha, draws = (torch.from_numpy(single(case[name])).to(dtype) for name in ("log_alpha", "noise"))
    ours = hard_concrete.sample(log_alpha, draws[:, None].expand(-1, log_alpha.numel()))
    # The sum of two logarithms and log alpha is below 20 and rounded four times. A gate's slope is at most
    # 1.2 / 4 / temperature = 0.45, and its own three roundings are of numbers below 1.2. Twice, for two float32.
    np.testing.assert_allclose(ours, single(case["samples"]), rtol=0, atol=2 * (0.45 * 80 + 4) * EPS)
    assert {0.0, 1.0} < set(ours.flatten().tolist())


def test_probability_active_and_sparsity() -> None:
    case = golden()["hard_concrete"]
    active = hard_concrete.probability_active(torch.from_numpy(single(case["log_alpha"])).double())
    # 1 - sigmoid of a number below 6.3, which has two roundings; the slope of sigmoid is at most 1/4
    np.testing.assert_allclose(active, single(case["expected_score"]), rtol=0, atol=(6.3 / 2 + 2) * EPS)
    # A sum of 24 probabilities, rounded 24 times
    np.testing.assert_allclose(1 - active.mean(), single(case["sparsity"]), rtol=0, atol=30 * EPS)


def test_the_range_of_log_alpha() -> None:
    """Check that both code bases clamp log-alpha to [log 1e-2, log 1e2], so that no mask is certain."""
    clamped = torch.from_numpy(single(golden()["hard_concrete"]["clamped"])).double()
    np.testing.assert_allclose(clamped[[0, 1, 3, 4]], np.log([1e-2, 1e-2, 1e2, 1e2]), rtol=2 * EPS)
    active = hard_concrete.probability_active(clamped)
    assert active[0].item() == pytest.approx(0.0471, abs=1e-4)
    assert active[4].item() == pytest.approx(0.9980, abs=1e-4)


@pytest.mark.parametrize("row", range(4))
def test_constraint_and_its_gradients(row: int) -> None:
    case = golden()["constraint"]["steps"][row]
    schedule = lagrangian.SparsitySchedule(inputs.WARMUP_STEPS)
    total = 0.0
    # Sparsities are means of at most 60 roundings; a miss enters the price times |linear| + 2 |quadratic|, and the
    # gradient of a gate times 2 |quadratic| / 4 / units.
    miss = 30 * EPS
    for kind, (linear, quadratic) in inputs.MULTIPLIERS.items():
        located = gate(kind).requires_grad_()
        multipliers = torch.tensor([linear, quadratic], dtype=torch.float64, requires_grad=True)
        removed = 1 - hard_concrete.probability_active(located).mean(-1)
        final = 1 - inputs.KEPT[kind] / inputs.SHAPES[kind][-1]
        scheduled = schedule.at(final, case["step"])
        assert scheduled == pytest.approx(case["reported"][f"target_{kind}_sparsity"], rel=1e-15)
        assert removed.mean().item() == pytest.approx(case["reported"][f"expected_{kind}_sparsity"], abs=miss)
        price = lagrangian.penalty(removed, scheduled, multipliers)
        price.backward()
        total += price.item()
        steepest = abs(linear) + 2 * quadratic
        np.testing.assert_allclose(located.grad, single(case["log_alpha"][kind]), rtol=0, atol=steepest * miss)
        slopes = [single(case["multipliers"][f"lambda_{order}_{kind}"]) for order in (1, 2)]
        np.testing.assert_allclose(multipliers.grad, slopes, rtol=0, atol=2 * miss)
    steepest = sum(abs(linear) + 2 * quadratic for linear, quadratic in inputs.MULTIPLIERS.values())
    assert total == pytest.approx(float(single(case["loss"])), abs=steepest * miss)


@pytest.mark.parametrize("row", range(4))
def test_constraint_of_a_whole_model(row: int) -> None:
    case = golden()["constraint"]["steps"][row]
    model = masked_model(hidden=inputs.KEPT["hidden"])
    price = model.constraint(case["step"])
    price.backward()
    steepest = sum(abs(linear) + 2 * quadratic for linear, quadratic in inputs.MULTIPLIERS.values())
    assert price.item() == pytest.approx(float(single(case["loss"])), abs=2 * steepest * 30 * EPS)
    for kind, located in model.gates.items():
        np.testing.assert_allclose(located.grad, single(case["log_alpha"][kind]), rtol=0, atol=steepest * 30 * EPS)


@pytest.mark.parametrize("case", golden()["constraint"]["rises"], ids=lambda case: f"{case['warmup']}-{case['start']}")
def test_target_sparsity_over_steps(case: dict) -> None:
    """Start at zero: the ancestors' ``start_sparsity`` is zero in every published run and has no counterpart."""
    schedule = lagrangian.SparsitySchedule(case["warmup"])
    scheduled = [case["start"] + schedule.at(case["final"] - case["start"], step) for step in case["at"]]
    if case["warmup"]:
        np.testing.assert_allclose(scheduled, case["values"], rtol=1e-15)
    else:
        assert set(case["values"]) == {case["final"]}
        assert set(scheduled) == {case["final"]}


def expected_prunable(model: MaskedModel) -> float:
    """Return the expected parameters that the ancestors count: without embeddings, output, norms and biases."""
    active = {kind: hard_concrete.probability_active(located.detach()) for kind, located in model.gates.items()}
    hidden = active["hidden"].sum() if "hidden" in active else inputs.HIDDEN
    blocks, heads = active["layer"], active["head"].sum(-1)
    not_counted = 2 * inputs.VOCABULARY * hidden + (2 * blocks.sum() + 1) * hidden
    if model.model.config.model_type == "qwen2":
        queries = inputs.HEADS // inputs.KV_HEADS
        not_counted += (blocks * heads).sum() * (queries + 2) * (inputs.HIDDEN // inputs.HEADS)
    return expected_parameters(model) - float(not_counted)


@pytest.mark.parametrize(("name", "target"), [("all", {"hidden": inputs.KEPT["hidden"]}), ("no_hidden", {"heads": 2})])
def test_expected_parameters(name: str, target: dict[str, int]) -> None:
    case = golden()["sizes"][name]
    expected = expected_prunable(masked_model(**target))
    # Both sides are float32 sums of products of three sums: some 60 + 16 + 3 relative roundings each
    assert expected == pytest.approx(float(single(case["expected"])), rel=200 * EPS)
    blocks = 4 * inputs.HIDDEN**2 + 3 * inputs.HIDDEN * inputs.INTERMEDIATE
    assert case["prunable"] == inputs.BLOCKS * blocks


def test_expected_parameters_of_grouped_heads() -> None:
    """Their third module, for grouped-query attention: a gate for each key/value head with its query heads."""
    case = golden()["sizes"]["grouped"]
    target = Target(layers=2, hidden=12, kv_heads=inputs.KEPT_KV_HEADS, intermediate=14)
    model = MaskedModel(Qwen2ForCausalLM(Qwen2Config(**GROUPED)), target)
    with torch.no_grad():
        for kind, located in model.gates.items():
            every = inputs.HEADS // inputs.KV_HEADS if kind == "head" else 1
            located.copy_(gate(kind)[..., ::every])
    # The difference of two sums, the larger one three times the result
    assert expected_prunable(model) == pytest.approx(float(single(case["expected"])), rel=400 * EPS)


def test_their_expected_size_needs_layer_masks() -> None:
    assert golden()["sizes"]["no_layer"]["expected"].startswith("TypeError")
    model = MaskedModel(LlamaForCausalLM(CONFIG), Target(heads=3, intermediate=14, hidden=12))
    assert 0 < expected_parameters(model) < sum(p.numel() for p in model.model.parameters())


@pytest.mark.parametrize("kind", list(inputs.SHAPES))
def test_units_kept_at_the_target(kind: str) -> None:
    case = golden()["deterministic"]["target"][kind]
    ours = hard_concrete.keep_top(gate(kind), inputs.KEPT[kind])
    rows = ours.reshape(-1, ours.shape[-1])
    assert [row.nonzero().flatten().tolist() for row in rows] == case["kept"]
    # Their values are not ours, which are one, nor those of equation 13
    soft = torch.sigmoid(0.8 * gate(kind) / hard_concrete.TEMPERATURE)
    np.testing.assert_allclose((ours * soft).reshape(soft.shape), single(case["values"]), rtol=8 * EPS)


@pytest.mark.parametrize("kind", list(inputs.SHAPES))
def test_units_kept_at_the_expected_size(kind: str) -> None:
    """Compare the ancestors' evaluation while pruning: each row keeps its expected number, also below the target."""
    case = golden()["deterministic"]["expected"][kind]
    rows = gate(kind).reshape(-1, inputs.SHAPES[kind][-1])
    for row, kept in zip(rows, case["kept"], strict=True):
        pruned = round((1 - hard_concrete.probability_active(row)).sum().item())
        ours = hard_concrete.keep_top(row, row.numel() - pruned)
        assert ours.nonzero().flatten().tolist() == kept


def test_expected_sizes_differ_from_theirs() -> None:
    """Check our rule: one number for all rows of a kind, and never one below the target."""
    sizes = expected_sizes(masked_model(hidden=inputs.KEPT["hidden"]))
    theirs = {kind: [len(row) for row in case["kept"]] for kind, case in golden()["deterministic"]["expected"].items()}
    assert sizes == {"layer": 3, "head": 3, "intermediate": 14, "hidden": 12}
    assert theirs == {"layer": [3], "head": [1, 2, 3], "intermediate": [16, 15, 12], "hidden": [10]}
