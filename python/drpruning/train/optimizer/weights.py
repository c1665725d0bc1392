"""A model's weights made narrow before a stage and wide again after it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from drpruning.train.optimizer.adamw import NarrowAdamW
from drpruning.train.optimizer.halves import join, split


@torch.no_grad()
def narrow(model: nn.Module, *, keep_low: bool) -> dict[nn.Parameter, Tensor]:
    """Makes the float32 parameters of ``model`` bfloat16, in place; buffers, such as rotary angles, stay as they are.

    Args:
        model: A model of transformers, sharded or not; of a masked one the wrapped model, since gates stay float32.
        keep_low: Whether to keep what bfloat16 cannot hold.

    Returns:
        The low halves by parameter, int16, sharded as it is; empty without ``keep_low``.
    """
    halves = {name: split(_local(parameter)) for name, parameter in model.named_parameters()}
    _change(model, torch.Tensor.bfloat16)
    lows = {}
    for name, parameter in model.named_parameters():
        high, low = halves.pop(name)
        _local(parameter).copy_(high)  # a cast sends ties to even, halves away from zero
        if keep_low:
            lows[parameter] = _sharded_as(parameter, low)
    return lows


@torch.no_grad()
def widen(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Makes the parameters float32 again, in place, with their low halves, which ``optimizer`` then no longer has."""
    if not isinstance(optimizer, NarrowAdamW):
        return
    state = {
        name: optimizer.state[parameter]
        for name, parameter in model.named_parameters()
        if parameter.dtype == torch.bfloat16
    }
    wholes = {}
    for name, parameter in model.named_parameters():
        if "low" in state.get(name, {}):
            wholes[name] = join(_local(parameter), _local(state[name].pop("low")))
    _change(model, torch.Tensor.float)
    for name, parameter in model.named_parameters():
        if name in wholes:
            _local(parameter).copy_(wholes.pop(name))


def _change(model: nn.Module, cast: Callable[[Tensor], Tensor]) -> None:
    """Casts parameters alone. By ``_apply``, since FSDP2 takes note of what changes its parameters by this way.

    Gradients are dropped: they are of the type that was.
    """
    model.zero_grad(set_to_none=True)
    model._apply(lambda tensor: cast(tensor) if isinstance(tensor, nn.Parameter) else tensor)


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _sharded_as(parameter: nn.Parameter, local: Tensor) -> Tensor:
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
