"""The compiled update of narrow weights and moments: the bits of the eager one, few kernels, few bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.cpu_vec_isa import pick_vec_isa

from drpruning.config import RunConfig
from drpruning.records import Incident, StepTaken, read_records
from drpruning.train.optimizers import LowPrecisionAdamW, adamw, update
from drpruning.train.optimizers import build as optimizer_build
from drpruning.train.optimizers.split_float32 import random_bits, split_float32
from drpruning.train.run import train
from tests.train.lowered import lowered

Recipe = Callable[..., RunConfig]

SCHEMES = [
    ("float32", "bfloat16"),
    ("bfloat16+low16", "float32"),
    ("bfloat16+low16", "bfloat16"),
    ("bfloat16+low16", "int8"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "int8"),
]
BYTES = {
    ("float32", "bfloat16"): 20,
    ("bfloat16+low16", "bfloat16"): 18,
    ("bfloat16+low16", "int8"): 14 + 4 * 4 / 128,
    ("bfloat16", "bfloat16"): 14,
    ("bfloat16", "int8"): 10 + 4 * 4 / 128,
}
"""Of each number: weight, low half, moments and scales are read and written, the gradient is read."""
SHAPES = [(70, 128), (33, 384), (50, 100), (131,), (5,), (1,)]
"""Matrices with whole blocks and without, vectors; (50, 100) and (33, 384) end with a slice that is not full."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(adamw, "SLICE", 4096)
    monkeypatch.setattr(adamw, "compiled_update", update.CompiledUpdate())
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def optimizer_of(weights: str, moments: Any, *, compiled: bool, device: str = "cpu") -> LowPrecisionAdamW:
    generator = torch.Generator().manual_seed(1)
    parameters, lows = [], {}
    for shape in SHAPES:
        high, low = split_float32(torch.randn(shape, generator=generator))
        narrow = weights != "float32"
        parameters.append(nn.Parameter((high if narrow else high.float()).to(device)))
        if weights == "bfloat16+low16":
            lows[parameters[-1]] = low.to(device)
    gates = nn.Parameter(torch.randn(7, 9, generator=generator).to(device))
    groups = [
        {"params": parameters[:3], "weight_decay": 0.1},
        {"params": parameters[3:]},
        {"params": [gates], "maximize": True, "exact": True},
    ]
    return LowPrecisionAdamW(groups, moments=moments, lows=lows, betas=(0.9, 0.95), compiled=compiled)


def take_steps(optimizer: LowPrecisionAdamW, steps: range) -> None:
    """Steps with new rates each; the fourth has an infinite gradient and changes nothing."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for place, group in enumerate(optimizer.param_groups):
            group["lr"] = (1 + place) * 1e-2 / (1 + step)
            for parameter in group["params"]:
                gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 4 - 3)
                gradient.view(-1)[: parameter.numel() // 3] = 0.0  # closed units
                parameter.grad = gradient.to(parameter)
        torch.manual_seed(step)
        device = optimizer.param_groups[0]["params"][0].device
        optimizer.found_inf = torch.tensor(float(step == 3), device=device)
        optimizer.step()
        if step == 3:
            optimizer.uncount()


def tensors(optimizer: LowPrecisionAdamW) -> list[Tensor]:
    found = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found += [parameter.detach(), *optimizer.state[parameter].values()]
    return found


def assert_same_bits(one: LowPrecisionAdamW, other: LowPrecisionAdamW) -> None:
    for mine, yours in zip(tensors(one), tensors(other), strict=True):
        assert mine.dtype == yours.dtype
        one_bytes, other_bytes = (each.cpu().flatten().contiguous().view(torch.uint8) for each in (mine, yours))
        assert torch.equal(one_bytes, other_bytes)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Count compiled graphs, which run operation by operation."""
    counter, real = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: real(function, backend=counter))
    return counter


@pytest.mark.parametrize(("weights", "moments"), SCHEMES)
def test_one_graph_for_each_combination_of_types(weights: str, moments: str, graphs: CompileCounterWithBackend) -> None:
    """Count graphs over sizes, slices, rates, decays, betas and steps, and after a reset."""
    one = optimizer_of(weights, moments, compiled=True)
    other = optimizer_of(weights, moments, compiled=False)
    for optimizer in (one, other):
        take_steps(optimizer, range(3))
    expected = 3 if moments == "int8" else 1  # matrices with codes, those without whole blocks, vectors
    expected += not (weights == "float32" and moments in ("float32", "int8"))  # gates
    assert graphs.frame_count == expected
    one.param_groups[0]["betas"] = other.param_groups[0]["betas"] = (0.8, 0.99)
    for optimizer in (one, other):
        take_steps(optimizer, range(3, 6))
    assert graphs.frame_count == expected
    assert_same_bits(one, other)
    torch.compiler.reset()
    for optimizer in (one, other):
        take_steps(optimizer, range(6, 8))
    assert graphs.frame_count == 2 * expected
    assert_same_bits(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "moments"), SCHEMES)
def test_compiled_updates_have_the_bits_of_eager_ones(weights: str, moments: str) -> None:
    """inductor's C++ kernels; a contraction of one product and sum shows in the first step."""
    one = optimizer_of(weights, moments, compiled=True)
    other = optimizer_of(weights, moments, compiled=False)
    for optimizer in (one, other):
        take_steps(optimizer, range(6))
    assert_same_bits(one, other)
    if pick_vec_isa():  # without vector instructions, inductor writes C++ that does not compile: the update is eager
        assert one.failure is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("weights", "moments"), SCHEMES)
def test_a_gpu_has_the_bits_of_a_cpu(weights: str, moments: str) -> None:
    compiled = optimizer_of(weights, moments, compiled=True, device="cuda")
    eager = optimizer_of(weights, moments, compiled=False, device="cuda")
    cpu = optimizer_of(weights, moments, compiled=False)
    for optimizer in (compiled, eager, cpu):
        take_steps(optimizer, range(6))
    assert compiled.failure is None
    assert_same_bits(eager, cpu)
    assert_same_bits(compiled, cpu)


ONLY_215 = pytest.mark.skipif(torch.__version__ < "2.15", reason="calls private parts of inductor of torch 2.15")


@ONLY_215
@pytest.mark.parametrize(("weights", "moments"), [scheme for scheme in BYTES if scheme[1] != "int8"])
def test_a_cpu_kernel_moves_each_number_once(weights: str, moments: str) -> None:
    found = lowered(weights, moments, "cpu")
    assert found.kernels == 1
    assert found.bytes_per_number == pytest.approx(BYTES[weights, moments], abs=1e-4)  # rates, keys, scales


@ONLY_215
@pytest.mark.parametrize(("weights", "moments"), BYTES)
def test_a_gpu_kernel_moves_each_number_once_and_contracts_nothing(weights: str, moments: str, tmp_path: Path) -> None:
    """Check that the maximum of a block is computed in the kernel, without a second pass; this needs no GPU."""
    pytest.importorskip("triton")
    found = lowered(weights, moments, "cuda")
    assert found.kernels == 1
    assert found.bytes_per_number == pytest.approx(BYTES[weights, moments], abs=5e-4)  # and 256 codes
    assert found.bytes_per_number < 24
    code = found.ptx(tmp_path)
    assert "div.rn.f32" in code
    assert "sqrt.rn.f32" in code
    for rounded_otherwise in ("fma.rn.f32", "div.full", "div.approx", "sqrt.approx", ".ftz", "\tmul.f32", "\tadd.f32"):
        assert rounded_otherwise not in code  # without .rn ptxas may contract


def test_random_bits_are_uniform_and_differ_by_key() -> None:
    """Chi-square of 256 bins of upper and lower bits, and bitwise correlation of two keys; five sigma each."""
    count = 1 << 18
    one, other = (random_bits(torch.Size([count]), torch.tensor(key, dtype=torch.int32)) for key in (5, -9))
    for shift in (0, 8, 16, 24):
        bins = torch.bincount((one >> shift) & 255, minlength=256).double()
        statistic = ((bins - count / 256) ** 2 / (count / 256)).sum().item()
        assert abs(statistic - 255) < 5 * math.sqrt(2 * 255)
    for bit in range(32):
        apart = ((one ^ other) >> bit) & 1
        neighbours = ((one[1:] ^ one[:-1]) >> bit) & 1
        for flips in (apart, neighbours):
            assert abs(flips.double().mean().item() - 0.5) < 5 * 0.5 / math.sqrt(count)


def test_the_bits_of_known_places() -> None:
    """They are part of what a seed yields."""
    bits = random_bits(torch.Size([2, 2]), torch.tensor(7, dtype=torch.int32))
    expected = []
    for place in range(4):
        number = place ^ 7
        number = ((number ^ number >> 16) * 0x21F0AAAD) & 0xFFFFFFFF
        number = ((number ^ number >> 15) * 0x735A2D97) & 0xFFFFFFFF
        expected.append(number ^ number >> 15)
    assert (bits.flatten().long() & 0xFFFFFFFF).tolist() == expected


def test_a_failing_compiler_is_one_incident_and_changes_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def failing(graph: Any, inputs: Any) -> Any:
        attempts.append(graph)
        raise RuntimeError("no C++ compiler here")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: real(function, backend=failing))
    short = {stage: {"steps": 3} for stage in ("pretrain", "prune", "continue")}
    settings = {"weight_format": "bfloat16+low16", "optimizer_state_format": "bfloat16", "dtype": "bfloat16"}
    config = recipe(training=settings, **short)
    losses = []
    for compiled in (False, True):
        monkeypatch.setattr(optimizer_build, "LowPrecisionAdamW", partial(LowPrecisionAdamW, compiled=compiled))
        folder = tmp_path / str(compiled)
        train(config, folder)
        records = list(read_records(folder / "metrics.jsonl"))
        steps = [each for each in records if isinstance(each, StepTaken) and each.stage != "pretrain"]
        losses.append([each.loss for each in steps])
        found = [each for each in records if isinstance(each, Incident) and each.what == "optimizer not compiled"]
        assert [each.stage for each in found] == (["prune", "continue"] if compiled else [])  # the base is cached
    assert "no C++ compiler here" in found[0].detail
    assert len(attempts) == 1
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


def test_without_a_cpp_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        one = optimizer_of("bfloat16", "bfloat16", compiled=True)
        take_steps(one, range(2))
    assert one.failure is not None
    other = optimizer_of("bfloat16", "bfloat16", compiled=False)
    take_steps(other, range(2))
    assert other.failure is None
    assert_same_bits(one, other)
