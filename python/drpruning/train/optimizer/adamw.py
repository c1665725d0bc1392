"""AdamW that computes in float32 and keeps its moments, and half of the weights, in fewer bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from drpruning.errors import StateError
from drpruning.train.optimizer.halves import join, round_at_random, split
from drpruning.train.optimizer.moments import blocks_of, decode, encode

Moments = Literal["float32", "bfloat16", "int8"]

SLICE = 2**24
"""Numbers of a parameter that are worked on at a time: some 0.5 GB of float32 ones, however large the parameter."""
LEAST_CODED = 4096
"""Smaller matrices, and vectors, have float32 moments: they cost little (Dettmers et al. 2022 do the same)."""


class NarrowAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019), with the arithmetic of torch's and narrower numbers between two steps.

    A bfloat16 parameter whose low half is given is trained exactly as its float32 original would be, given the same
    gradients. One without is rounded at random after each step (:func:`.halves.round_at_random`).

    bfloat16 moments are rounded at random as well: from beta2 = 0.998 on the nearest number would be the old one, and
    the second moment never fall. Moments in 8 bits are in :mod:`.moments`.

    All is elementwise or along a row, on what a rank holds, so that parameters may be sharded by rows.

    Where ``found_inf`` (a float32 scalar on the parameters' device, or None) is one, a step changes nothing, as with
    torch's fused optimizers; but the host has counted it, and :meth:`uncount` takes that back.

    Args:
        params: Parameters, or groups of them. A group with ``exact=True`` has float32 moments whatever ``moments``
            says, one with ``maximize=True`` climbs.
        moments: What the moments of matrices are kept in; vectors have bfloat16 or float32 ones.
        lows: For bfloat16 parameters the low halves of their float32 originals, as
            :func:`drpruning.train.optimizer.narrow` gives them.
        lr: Learning rate, of groups without one.
        betas: Decay of the first and second moment.
        eps: Added to the square root of the second.
        weight_decay: Decoupled, of groups without one.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        moments: Moments = "bfloat16",
        lows: Mapping[nn.Parameter, Tensor] | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.found_inf: Tensor | None = None
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "maximize": False, "exact": False})
        self._counted: list[Tensor] = []
        # All at once: torch.distributed.checkpoint takes an optimizer with some state for one that has all of it
        for group in self.param_groups:
            for parameter in group["params"]:
                kind = "float32" if group["exact"] else moments
                self.state[parameter] = _first_state(parameter, kind, (lows or {}).get(parameter))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on all parameters that have a gradient."""
        self._counted = []
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _step(parameter, self.state[parameter], group, self.found_inf)
                    self._counted.append(self.state[parameter]["step"])
        return loss

    def uncount(self) -> None:
        """Takes back that the last step was counted, which ``found_inf`` kept from changing anything."""
        for steps in self._counted:
            steps.sub_(1)
        self._counted = []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy what ``state_dict()`` returned into the tensors of this optimizer; every tensor keeps its dtype.

        A tensor that is this optimizer's own is left alone: ``torch.distributed.checkpoint`` has filled it in place.
        torch's method would hold a second and a third copy of the whole state.

        Raises:
            StateError: The state is of other parameters, or of other ``moments`` and ``lows``.
        """
        saved_groups, states = state_dict["param_groups"], state_dict["state"]
        if [len(group["params"]) for group in self.param_groups] != [len(group["params"]) for group in saved_groups]:
            raise StateError(
                f"the optimizer's state has groups of {[len(group['params']) for group in saved_groups]} parameters; "
                f"expected {[len(group['params']) for group in self.param_groups]}"
            )
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            for parameter, index in zip(group["params"], saved["params"], strict=True):
                _copy_state(states.get(index, {}), self.state[parameter], index)
            group.update({name: value for name, value in saved.items() if name != "params"})


def _copy_state(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], index: Any) -> None:
    if saved.keys() != own.keys():
        raise StateError(
            f"the optimizer's state of parameter {index} has {sorted(saved)}; expected {sorted(own)}",
            "Load it with the training.weights and training.moments it was saved with.",
        )
    for name, tensor in own.items():
        if saved[name] is not tensor:
            tensor.copy_(saved[name])


def _first_state(parameter: nn.Parameter, moments: Moments, low: Tensor | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {"step": torch.tensor(0.0)}
    coded = moments == "int8" and parameter.ndim == 2 and parameter.numel() >= LEAST_CODED
    for name in ("exp_avg", "exp_avg_sq"):
        if coded:
            state[name], state[f"{name}_scale"] = _encoded(parameter, signed=name == "exp_avg")
        else:
            dtype = torch.bfloat16 if moments == "bfloat16" else torch.float32
            state[name] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    if low is not None:
        state["low"] = low
    return state


def _encoded(parameter: nn.Parameter, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales of zeros, sharded as the parameter is."""
    here = _local(parameter.detach())
    codes, scales = encode(torch.zeros_like(here, dtype=torch.float32), signed=signed)
    if not isinstance(parameter, DTensor):
        return codes, scales
    whole = (parameter.shape[0], blocks_of(parameter.shape[1]))
    mesh, placements = parameter.device_mesh, parameter.placements
    wrapped = [
        DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=(shape[1], 1))
        for part, shape in ((codes, tuple(parameter.shape)), (scales, whole))
    ]
    return wrapped[0], wrapped[1]


def _step(parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any], found_inf: Tensor | None) -> None:
    assert parameter.grad is not None
    state["step"] += 1
    here = {name: _local(value) for name, value in state.items()}
    weight, gradient = _local(parameter.detach()), _local(parameter.grad)
    rows = max(1, SLICE // max(1, math.prod(weight.shape[1:])))
    failed = None if found_inf is None else found_inf.bool()
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        views = {name: value if name == "step" else value[part] for name, value in here.items()}
        for kept, value in _step_of_slice(weight[part], gradient[part], views, group):
            kept.copy_(value if failed is None else torch.where(failed, kept, value))


def _step_of_slice(
    weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    """The update in the order of torch's own AdamW, so that it is bit for bit the same where nothing is narrow.

    Returns:
        Pairs of what is kept and what it shall become.
    """
    low = state.get("low")
    whole = join(weight, low) if low is not None else weight.float()
    slope = gradient.float()
    if group["maximize"]:
        slope = -slope
    beta1, beta2 = group["betas"]
    step = state["step"].item()

    whole = whole * (1 - group["lr"] * group["weight_decay"])
    first = _read(state, "exp_avg").lerp(slope, 1 - beta1)
    second = (_read(state, "exp_avg_sq") * beta2).addcmul_(slope, slope, value=1 - beta2)
    scale = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    whole.addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**step))

    pairs = [*_kept(state, "exp_avg", first), *_kept(state, "exp_avg_sq", second)]
    if low is not None:
        high, rest = split(whole)
        return [*pairs, (weight, high), (low, rest)]
    return [*pairs, (weight, round_at_random(whole) if weight.dtype == torch.bfloat16 else whole)]


def _read(state: dict[str, Tensor], name: str) -> Tensor:
    """A moment in float32; where it is kept so, the tensor itself."""
    if f"{name}_scale" not in state:
        return state[name].float()
    signed = name == "exp_avg"
    found = decode(state[name], state[f"{name}_scale"], signed=signed)
    return found if signed else found.square_()


def _kept(state: dict[str, Tensor], name: str, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A moment as it is kept, and what is to be kept of ``value``."""
    kept = state[name]
    if f"{name}_scale" in state:
        signed = name == "exp_avg"
        codes, scales = encode(value if signed else value.sqrt(), signed=signed)
        return [(kept, codes), (state[f"{name}_scale"], scales)]
    return [(kept, round_at_random(value) if kept.dtype == torch.bfloat16 else value)]


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, as a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
