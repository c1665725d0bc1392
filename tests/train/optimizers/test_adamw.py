"""Narrow weights and moments: exact where they say so, unbiased where they round at random, and resumable."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from drpruning.config import RunConfig, TrainingConfig
from drpruning.errors import ConfigError, StateError
from drpruning.planning.memory_tracker import MemoryTracker
from drpruning.train.loop import Interrupted
from drpruning.train.optimizers import LowPrecisionAdamW, to_float32, to_low_precision
from drpruning.train.optimizers.quantized_moments import BLOCK, dequantize, dynamic_map, quantize
from drpruning.train.optimizers.split_float32 import join_float32, random_bits, split_float32, stochastic_round
from drpruning.train.run import train

Recipe = Callable[..., RunConfig]

SPECIAL = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.38e38, -3.38e38, 1.0, -1.0])


def numbers(count: int = 10_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=generator) * 10.0 ** torch.randint(-30, 30, (count,), generator=generator)


def noise(count: int, key: int = 1) -> Tensor:
    return random_bits(torch.Size([count]), torch.tensor(key, dtype=torch.int32)) & 0xFFFF


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


# ---- bfloat16 and residual


def test_split_float32_restores_every_low_pattern_and_ties() -> None:
    for upper in (0x3F80, 0xBF80 - 0x10000, 0x0000, 0x7F7E, 0x3F81):
        bits = (upper << 16) + torch.arange(1 << 16, dtype=torch.int32)
        value = bits.view(torch.float32)
        high, low = split_float32(value)
        assert same_bits(join_float32(high, low), value)
        ties = bits & 0xFFFF == 0x8000
        assert torch.equal(high[~ties], value.to(torch.bfloat16)[~ties])
        assert (high[ties].float().abs() > value[ties].abs()).all()  # away from zero, where a cast goes to even


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_split_float32_restores_any_number(number: float) -> None:
    value = torch.tensor([number])
    assert same_bits(join_float32(*split_float32(value)), value)


def test_split_float32_of_special_numbers() -> None:
    assert same_bits(join_float32(*split_float32(SPECIAL)), SPECIAL)


def test_ties_to_even_would_not_fit() -> None:
    """Check the reason for rounding ties away from zero: after ties-to-even the residual can be +32,768."""
    tie = torch.tensor([0x3F808000], dtype=torch.int32).view(torch.float32)
    down = tie.to(torch.bfloat16)
    assert down.item() == 1.0
    left = tie.view(torch.int32) - (down.view(torch.int16).to(torch.int32) << 16)
    assert left.item() == 32768
    assert not same_bits(join_float32(down, left.to(torch.int16)), tie)


def test_rounding_at_random_takes_a_neighbour_and_is_right_on_average() -> None:
    for number in (1.001, -1.001, 1 + 2**-8, 3e-39, 123.4):  # the third is a tie
        value = torch.full((40_000,), number)
        found = stochastic_round(value, noise(len(value))).float()
        below, above = found.min().item(), found.max().item()
        exact = value[0].item()
        assert below < exact < above
        assert len(found.unique()) == 2
        share = (found == above).double().mean().item()
        expected = (exact - below) / (above - below)
        assert abs(share - expected) < 5 * (expected * (1 - expected) / len(value)) ** 0.5  # five sigma


def test_stochastic_rounding_keeps_bfloat16_numbers() -> None:
    value = numbers().to(torch.bfloat16).float()
    assert same_bits(stochastic_round(value, noise(len(value))).float(), value)
    infinite = torch.full((100,), float("inf"))
    assert torch.equal(stochastic_round(infinite, noise(100)).float(), infinite)


# ---- moments


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_near_and_zero_stays_zero(signed: bool) -> None:
    code = dynamic_map(signed, torch.device("cpu"))
    known = code.values
    assert len(known) == 256 == len(known.unique())
    value = torch.randn(7, 300, generator=torch.Generator().manual_seed(2))
    value = value if signed else value.abs()
    value[:, 5] = 0
    value[3] = 0
    codes, scales = quantize(value, code)
    assert codes.shape == value.shape
    assert scales.shape == (7, -(-300 // BLOCK))
    found = dequantize(codes, scales, code)
    assert (found[value == 0] == 0).all()
    gap = (known[1:] - known[:-1]).max().item() / 2
    assert ((found - value).abs() <= gap * scales.repeat_interleave(BLOCK, 1)[:, :300] + 1e-5).all()


def test_rows_are_coded_alone() -> None:
    value, code = torch.randn(6, 200), dynamic_map(True, torch.device("cpu"))
    whole, scales = quantize(value, code)
    part, part_scales = quantize(value[2:4], code)
    assert torch.equal(whole[2:4], part)
    assert torch.equal(scales[2:4], part_scales)


# ---- AdamW


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(96, 80), nn.Tanh(), nn.Linear(80, 5))


def groups(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [each for each in model.parameters() if each.ndim > 1]
    return [
        {"params": matrices, "lr": 3e-3, "weight_decay": 0.1},
        {"params": [each for each in model.parameters() if each.ndim == 1], "lr": 1e-2, "maximize": True},
    ]


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 4 - 3)
        parameter.grad = gradient.to(torch.bfloat16).to(parameter.dtype)  # the same to narrow and to wide weights


def test_each_operation_is_rounded_once() -> None:
    """Algorithm 2 of Loshchilov and Hutter (2019) in NumPy, which contracts nothing: the same bits."""
    model = network()
    expected = [parameter.detach().numpy().copy() for parameter in model.parameters()]
    moments = [(np.zeros_like(each), np.zeros_like(each)) for each in expected]
    optimizer = LowPrecisionAdamW(groups(model), moments="float32", betas=(0.9, 0.95))
    one = np.float32
    for step in range(1, 21):
        give_gradients(model, step)
        optimizer.step()
        for weight, (first, second), parameter in zip(expected, moments, model.parameters(), strict=True):
            rate, decay, sign = (3e-3, 0.1, 1) if weight.ndim > 1 else (1e-2, 0.0, -1)
            assert parameter.grad is not None
            slope = sign * parameter.grad.numpy()
            first[:] = first + one(1 - 0.9) * (slope - first)
            second[:] = second * one(0.95) + (one(1 - 0.95) * slope) * slope
            below = np.sqrt(second) / one((1 - 0.95**step) ** 0.5) + one(1e-8)
            weight[:] = weight * one(1 - rate * decay) + (one(-rate / (1 - 0.9**step)) * first) / below
    for weight, parameter in zip(expected, model.parameters(), strict=True):
        assert same_bits(parameter.detach(), torch.from_numpy(weight))


def test_with_float32_formats_it_is_torchs_adamw_within_rounding() -> None:
    """Against torch's in float64.

    An update is the rate times a quotient below 10, which some 10 operations a step for 20 steps leave off by no more
    than 200 units of 2^-24; 20 updates, and the weights, below 1, are rounded twice in each.
    """
    ours, theirs = network(), network().double()
    one = LowPrecisionAdamW(groups(ours), moments="float32", betas=(0.9, 0.95))
    other = torch.optim.AdamW(groups(theirs), betas=(0.9, 0.95), weight_decay=0.0, foreach=False)
    for step in range(20):
        for model, optimizer in ((ours, one), (theirs, other)):
            give_gradients(model, step)
            optimizer.step()
    bound = 20 * (1e-2 * 10 * 200 + 2) * 2**-24
    for mine, torchs in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.detach().double() - torchs.detach()).abs().max() < bound


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
def test_weights_with_a_low_half_are_trained_as_float32_ones_bit_for_bit(moments: Any) -> None:
    halves, wholes = network(), network()
    one = LowPrecisionAdamW(groups_after_narrowing(halves, lows := {}), moments=moments, lows=lows)
    other = LowPrecisionAdamW(groups(wholes), moments=moments)
    for step in range(30):
        for model, optimizer in ((halves, one), (wholes, other)):
            give_gradients(model, step)
            torch.manual_seed(step)  # bfloat16 moments are rounded at random
            optimizer.step()
    for mine, original in zip(halves.parameters(), wholes.parameters(), strict=True):
        assert mine.dtype == torch.bfloat16
        near = (mine.float() - original).abs() <= original.abs() * 2**-8
        assert near.all()
    to_float32(halves, one)
    for mine, original in zip(halves.parameters(), wholes.parameters(), strict=True):
        assert same_bits(mine.detach(), original.detach())


def groups_after_narrowing(model: nn.Module, lows: dict[nn.Parameter, Tensor]) -> list[dict[str, Any]]:
    lows.update(to_low_precision(model, keep_low=True))
    return groups(model)


@pytest.mark.parametrize(("weights", "moments"), [("bfloat16", "bfloat16"), ("bfloat16", "int8"), ("float32", "int8")])
def test_it_learns_about_as_well_as_float32(weights: str, moments: Any) -> None:
    torch.manual_seed(3)
    inputs = torch.randn(512, 96)
    targets = torch.tanh(inputs @ torch.randn(96, 5) / 10)

    def final_loss(weights: str, moments: Any) -> float:
        model = network()
        lows = {} if weights == "float32" else to_low_precision(model, keep_low=False)
        optimizer = LowPrecisionAdamW(model.parameters(), moments=moments, lows=lows, lr=3e-3, betas=(0.9, 0.999))
        for step in range(150):
            torch.manual_seed(step)
            optimizer.zero_grad()
            found = model(inputs.to(next(model.parameters()).dtype)).float()
            (found - targets).square().mean().backward()
            optimizer.step()
        to_float32(model, optimizer)
        return (model(inputs) - targets).square().mean().item()

    wide = final_loss("float32", "float32")
    assert wide < 5e-3  # from 0.4
    assert final_loss(weights, moments) < 1.5 * wide


@pytest.mark.parametrize(
    ("weights", "moments", "expected"),
    [
        ("float32", "float32", 16),
        ("float32", "bfloat16", 12),
        ("bfloat16+low16", "bfloat16", 10),
        ("bfloat16+low16", "int8", 8 + 2 * 4 / BLOCK),
        ("bfloat16", "bfloat16", 8),
        ("bfloat16", "int8", 6 + 2 * 4 / BLOCK),
    ],
)
def test_bytes_of_a_parameter(weights: str, moments: Any, expected: float) -> None:
    matrix = nn.Linear(256, 64, bias=False)
    lows = {} if weights == "float32" else to_low_precision(matrix, keep_low=weights == "bfloat16+low16")
    optimizer = LowPrecisionAdamW(matrix.parameters(), moments=moments, lows=lows)
    matrix.weight.grad = torch.ones_like(matrix.weight)
    optimizer.step()
    kept = [matrix.weight, matrix.weight.grad, *(v for k, v in optimizer.state[matrix.weight].items() if k != "step")]
    assert sum(each.nbytes for each in kept) / matrix.weight.numel() == expected


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
def test_a_saved_state_continues_bit_for_bit(moments: Any) -> None:
    model = network()
    optimizer = LowPrecisionAdamW(groups_after_narrowing(model, lows := {}), moments=moments, lows=lows)

    def steps(model: nn.Module, optimizer: LowPrecisionAdamW, numbers: Iterator[int] | range) -> None:
        for step in numbers:
            give_gradients(model, step)
            torch.manual_seed(step)
            optimizer.step()

    steps(model, optimizer, range(5))
    saved = copy.deepcopy((model.state_dict(), get_optimizer_state_dict(model, optimizer)))
    steps(model, optimizer, range(5, 9))

    again = network(seed=9)
    other = LowPrecisionAdamW(groups_after_narrowing(again, lows := {}), moments=moments, lows=lows)
    again.load_state_dict(saved[0])
    set_optimizer_state_dict(again, other, saved[1])
    steps(again, other, range(5, 9))
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
        for name, value in optimizer.state[one].items():
            assert other.state[two][name].dtype == value.dtype
            assert torch.equal(other.state[two][name], value), name


def deep_network(moments: Any) -> tuple[nn.Sequential, LowPrecisionAdamW]:
    """Twelve equal layers and their narrow optimizer: 10 bytes a number, and no layer is a large part of it."""
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12)))
    lows = to_low_precision(model, keep_low=True)
    return model, LowPrecisionAdamW(model.parameters(), moments=moments, lows=lows)


@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_a_state_is_loaded_into_the_tensors_that_are_there(moments: Any) -> None:
    model, optimizer = deep_network(moments)
    steps = {parameter: state["step"] for parameter, state in optimizer.state.items()}
    with MemoryTracker() as live:
        own = get_optimizer_state_dict(model, optimizer)
        foreign = copy.deepcopy(own)
        for state in foreign["state"].values():
            state["step"] += 3
        for state_dict in (own, foreign):
            with live.phase("load", "working"):
                before = sum(live._parts.values())
                set_optimizer_state_dict(model, optimizer, state_dict)
    # torch's own method made a copy of both, and another of what it cast
    assert live.peaks["load"].total == before
    for parameter, state in optimizer.state.items():
        assert state["step"] is steps[parameter]
        assert state["step"].item() == 3


def test_a_state_of_other_moments_is_refused() -> None:
    (model, optimizer), (_, other) = deep_network("int8"), deep_network("bfloat16")
    with pytest.raises(StateError, match=r"parameter 0 has \['exp_avg', 'exp_avg_sq', 'low', 'step'\]; expected"):
        optimizer.load_state_dict(other.state_dict())
    smaller = LowPrecisionAdamW(list(model.parameters())[1:])
    with pytest.raises(StateError, match=r"groups of \[11\] parameters; expected \[12\]"):
        optimizer.load_state_dict(smaller.state_dict())


@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_conversions_need_no_more_than_the_states_and_a_layer(moments: Any) -> None:
    numbers = 12 * 64 * 64
    with MemoryTracker() as live:
        with live.phase("narrow", "weights"):
            model, optimizer = deep_network(moments)
        states = sum(live._parts.values())
        with live.phase("widen", "weights"):
            to_float32(model, optimizer)
    layer = 6 * 8 * numbers / 12  # temporaries of a layer: at most this number in float32 or int64 at a time
    assert live.peaks["narrow"].total <= states + layer
    assert live.peaks["widen"].total <= max(states, 4 * numbers + layer)
    assert not optimizer.state
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_sharded_parameters_are_trained_as_whole_ones(alone: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    whole, sharded = network(), network()
    for layer in (sharded[0], sharded[2]):
        for name, parameter in list(layer.named_parameters()):
            layer.register_parameter(name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)])))
    optimizers = []
    for model in (whole, sharded):
        lows: dict[nn.Parameter, Tensor] = {}
        optimizers.append(LowPrecisionAdamW(groups_after_narrowing(model, lows), moments="int8", lows=lows))
    for step in range(5):
        give_gradients(whole, step)
        for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
            assert one.grad is not None
            other.grad = distribute_tensor(one.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    matrix = sharded[0].weight
    assert isinstance(matrix, DTensor)
    assert all(isinstance(v, DTensor) for k, v in optimizers[1].state[matrix].items() if k != "step")
    assert matrix.dtype == torch.bfloat16
    for model, optimizer in zip((whole, sharded), optimizers, strict=True):
        to_float32(model, optimizer)
    for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
        assert isinstance(other, DTensor)
        assert same_bits(one.detach(), other.to_local().detach())


# ---- in a run


def test_low_precision_weights_need_bfloat16() -> None:
    with pytest.raises(ValueError, match="needs dtype bfloat16"):
        TrainingConfig(weight_format="bfloat16")
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(("weights", "moments"), [("bfloat16+low16", "int8"), ("bfloat16", "bfloat16")])
def test_a_run_with_low_precision_states_resumes_bit_for_bit_and_exports_float32(
    weights: str, moments: str, recipe: Recipe, tmp_path: Path
) -> None:
    short = {stage: {"steps": 4} for stage in ("pretrain", "prune", "continue")}
    config = recipe(
        training={"weight_format": weights, "optimizer_state_format": moments, "dtype": "bfloat16"}, **short
    )
    exports = []
    for name, stops in (("whole", 0), ("broken", 2)):
        for _ in range(stops):
            with pytest.raises(Interrupted):
                train(config, tmp_path / name, resume=True, stop=iter([False, False, True]).__next__)
        train(config, tmp_path / name, resume=True)
        exports.append(load_file(tmp_path / name / "export" / "model.safetensors"))
    assert all(tensor.dtype == torch.float32 for tensor in exports[0].values())
    for name, tensor in exports[0].items():
        assert torch.equal(tensor, exports[1][name]), name
    if weights == "bfloat16+low16":  # what bfloat16 cannot hold is there
        assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in exports[0].values())
