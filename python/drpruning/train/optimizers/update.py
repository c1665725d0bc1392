"""The AdamW update of a slice of a parameter: eager, or compiled into one kernel with the same bits.

Every operation rounds its result to float32: no product is contracted with a sum (FMA), and quotients and roots are
correctly rounded. So both forms return the same bits, on a CPU and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import list_options

from drpruning.pruning.sparse_forward import mark_dynamic
from drpruning.train.optimizers.quantized_moments import QuantizationMap, dequantize, quantize
from drpruning.train.optimizers.split_float32 import join_float32, random_bits, split_float32, stochastic_round

NUMERICS: Mapping[str, Any] = {
    "emulate_precision_casts": True,  # for enable_fp_fusion=False: Triton contracts nothing
    "eager_numerics.division_rounding": True,  # div.rn, where Triton's own division is off by up to two units
    "eager_numerics.disable_ftz": True,  # denormal numbers are kept
}
"""Settings of inductor with which Triton kernels round like eager ones. C++ kernels do so by default."""
LOWER = (1 << 16) - 1


class Slice(NamedTuple):
    """The arguments of an update: views of a parameter's tensors, and numbers on the parameter's device.

    Attributes:
        weight: float32 or bfloat16, [N]; with 8-bit moments [R, C].
        gradient: Of the same shape, any floating type.
        state: ``exp_avg`` and ``exp_avg_sq`` of the same shape: float32, bfloat16, or codes with the scales
            ``exp_avg_scale`` and ``exp_avg_sq_scale`` [R, blocks]; ``low`` (:mod:`.split_float32`) of a weight that has
            one.
        numbers: float32 [8], of :func:`numbers_of`. As a tensor, a new learning rate takes no new kernel.
        keys: int32 [2], of the random bits of the moments and of the weight.
        found_inf: float32 scalar; one disables the update. None: enabled.
        codes: The maps of the first and of the second moment; None without quantization.
    """

    weight: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    numbers: Tensor
    keys: Tensor
    found_inf: Tensor | None
    codes: tuple[QuantizationMap, QuantizationMap] | None


def update(part: Slice) -> None:
    """Update weight and state in place: AdamW (Loshchilov and Hutter 2019, algorithm 2), decay before the step."""
    weight, state = part.weight, part.state
    decay, take_first, keep_second, take_second, root, eps, rate, sign = part.numbers.unbind()
    low = state.get("low")
    whole = join_float32(weight, low) if low is not None else weight.float()
    slope = part.gradient.float() * sign

    if part.codes is None:
        first, second = state["exp_avg"].float(), state["exp_avg_sq"].float()
    else:
        first = dequantize(state["exp_avg"], state["exp_avg_scale"], part.codes[0])
        second = dequantize(state["exp_avg_sq"], state["exp_avg_sq_scale"], part.codes[1])
        second = second * second
    first = first + take_first * (slope - first)
    second = second * keep_second + (take_second * slope) * slope
    whole = whole * decay + (rate * first) / (_sqrt(second) / root + eps)

    new: dict[str, Tensor] = {}
    if part.codes is not None:
        new["exp_avg"], new["exp_avg_scale"] = quantize(first, part.codes[0])
        new["exp_avg_sq"], new["exp_avg_sq_scale"] = quantize(_sqrt(second), part.codes[1])
    elif state["exp_avg"].dtype == torch.bfloat16:
        bits = random_bits(weight.shape, part.keys[0])
        new["exp_avg"] = stochastic_round(first, bits & LOWER)
        new["exp_avg_sq"] = stochastic_round(second, (bits >> 16) & LOWER)
    else:
        new["exp_avg"], new["exp_avg_sq"] = first, second
    if low is not None:
        high, new["low"] = split_float32(whole)
    elif weight.dtype == torch.bfloat16:
        high = stochastic_round(whole, random_bits(weight.shape, part.keys[1]) & LOWER)
    else:
        high = whole

    failed = None if part.found_inf is None else part.found_inf.bool()
    for tensor, value in ((weight, high), *((state[name], value) for name, value in new.items())):
        tensor.copy_(value if failed is None else torch.where(failed, tensor, value))


def numbers_of(group: Mapping[str, Any], step: int) -> list[float]:
    """Return the numbers of :class:`Slice` for a group's settings at ``step`` (from 1)."""
    beta1, beta2 = group["betas"]
    return [
        1 - group["lr"] * group["weight_decay"],
        1 - beta1,
        beta2,
        1 - beta2,
        (1 - beta2**step) ** 0.5,
        group["eps"],
        -group["lr"] / (1 - beta1**step),
        -1.0 if group["maximize"] else 1.0,
    ]


def _sqrt(value: Tensor) -> Tensor:
    """Return the correctly rounded square root of float32 numbers.

    On a CPU by float64: MKL's vectorised float32 root, which eager torch calls, is one unit off for a number in six.
    """
    return value.double().sqrt().float() if value.device.type == "cpu" else value.sqrt()


class CompiledUpdate:
    """:func:`update` through ``torch.compile``; without it where the compiler fails.

    All optimizers of a process share one object: a kernel for each combination of types serves all sizes, learning
    rates and steps. ``torch.compiler.reset()`` drops the kernels, and the next step compiles them again.

    Attributes:
        failure: First two lines of the compiler's message; None while it works. Later updates do not try again.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self._compiled: Callable[[Slice], None] | None = None

    def __call__(self, part: Slice) -> None:
        """Update weight and state in place."""
        if self._compiled is None and self.failure is None:
            try:
                self._compiled = torch.compile(update, options=_supported_options(NUMERICS))
            except RuntimeError as error:  # not for this Python or system
                self.failure = str(error)
        if self._compiled is None or len(part.weight) == 1:  # the compiler takes a size of one for a constant
            update(part)
            return
        for tensor in (part.weight, part.gradient, *part.state.values()):
            mark_dynamic(tensor)
        try:
            self._compiled(part)
        except TorchDynamoException as error:  # raised before the kernel runs
            self._compiled, self.failure = None, " ".join(str(error).strip().splitlines()[:2])
            update(part)


compiled_update = CompiledUpdate()


def _supported_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that this torch has; 2.6 to 2.8 lack some, and contract products and sums on a GPU."""
    known = list_options()
    return {name: value for name, value in options.items() if name in known}
