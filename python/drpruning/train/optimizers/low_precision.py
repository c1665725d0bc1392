"""Conversion of a model's weights to bfloat16 before a stage, and to float32 after it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from drpruning.train.optimizers.split_float32 import join_float32, split_float32


@torch.no_grad()
def to_low_precision(model: nn.Module, *, keep_low: bool) -> dict[nn.Parameter, Tensor]:
    """Convert the float32 parameters of ``model`` to bfloat16, in place; buffers, such as rotary angles, stay float32.

    Args:
        model: A model of transformers, sharded or not; for a masked one the wrapped model, since gates stay float32.
        keep_low: Whether to keep the 16 bits below bfloat16.

    Returns:
        The low halves by parameter, int16, sharded like it; empty without ``keep_low``.
    """
    lows: dict[nn.Parameter, Tensor] = {}

    def upper(parameter: nn.Parameter) -> Tensor:
        if parameter.dtype == torch.bfloat16:  # converted before: two layers share it
            return parameter
        high, low = split_float32(_local(parameter))
        if keep_low:
            lows[parameter] = _sharded_like(parameter, low)
        return _sharded_like(parameter, high)

    _change(model, upper)
    return lows


@torch.no_grad()
def to_float32(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Convert the parameters back to float32 in place, and drop the state of ``optimizer``.

    The low halves are joined to the parameters one at a time, after the moments are freed, so the peak of memory is far
    below that of a step.
    """
    lows = {parameter: state["low"] for parameter, state in optimizer.state.items() if "low" in state}
    optimizer.state.clear()
    if all(parameter.dtype != torch.bfloat16 for parameter in model.parameters()):
        return

    def whole(parameter: nn.Parameter) -> Tensor:
        low = lows.pop(parameter, None)
        return (
            parameter.float() if low is None else _sharded_like(parameter, join_float32(_local(parameter), _local(low)))
        )

    _change(model, whole)


def _change(model: nn.Module, change: Callable[[nn.Parameter], Tensor]) -> None:
    """Replace the parameters by ``_apply``, which FSDP2 follows, and drop the gradients, which have the old dtype."""
    model.zero_grad(set_to_none=True)
    model._apply(lambda tensor: change(tensor) if isinstance(tensor, nn.Parameter) else tensor)


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _sharded_like(parameter: nn.Parameter, local: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
