"""AdamW that computes in float32 and keeps its moments, and half of the weights, in fewer bytes."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor

from drpruning.errors import StateError
from drpruning.pruning.host_copy import send
from drpruning.train.optimizer.moments import BLOCK, blocks_of, dynamic_map, encode
from drpruning.train.optimizer.update import Slice, compiled_update, numbers_of, update

Moments = Literal["float32", "bfloat16", "int8"]

SLICE = 2**24
"""Numbers of a parameter in an update, so that an uncompiled one makes some 0.5 GB of float32, not more."""
LEAST_CODED = 4096
"""Smaller matrices, and vectors, have float32 moments: they cost little (Dettmers et al. 2022 do the same)."""


class NarrowAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) in float32, with narrower numbers between two steps.

    A bfloat16 parameter whose low half is given is trained exactly as its float32 original would be, given the same
    gradients. One without is rounded at random after each step (:func:`.halves.round_at_random`).

    bfloat16 moments are rounded at random as well: from beta2 = 0.998 on the nearest number would be the old one, and
    the second moment never fall. Moments in 8 bits are in :mod:`.moments`. The random bits follow from torch's initial
    seed, the step count and the place of a number in the parameters; no generator has a state to be saved.

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
        compiled: Whether updates are compiled into one kernel for a slice (:mod:`.update`), with the same bits as
            without; None: on CUDA.
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
        compiled: bool | None = None,
    ) -> None:
        self.compiled = compiled
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
        numbers: list[list[float]] = []
        keys: list[list[int]] = []
        parts: list[tuple[int, dict[str, Tensor]]] = []
        pairs = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for place, (parameter, group) in enumerate(pairs):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            state["step"] += 1
            self._counted.append(state["step"])
            step = int(state["step"].item())
            tensors = {name: _local(value) for name, value in state.items() if name != "step"}
            tensors |= {"weight": _local(parameter.detach()), "gradient": _local(parameter.grad)}
            for rows in _slices(tensors["weight"]):
                keys.append(_keys(torch.initial_seed(), step, place, rows.start))
                parts.append((len(numbers), _flat({name: value[rows] for name, value in tensors.items()})))
            numbers.append(numbers_of(group, step))
        if parts:
            self._update(parts, torch.tensor(numbers, dtype=torch.float32), torch.tensor(keys, dtype=torch.int32))
        return loss

    def _update(self, parts: list[tuple[int, dict[str, Tensor]]], numbers: Tensor, keys: Tensor) -> None:
        """Update slices: pairs of a row of ``numbers`` and tensors; the rows of ``keys`` are in the order of slices."""
        device = parts[0][1]["weight"].device
        wanted = device.type == "cuda" if self.compiled is None else self.compiled
        fake = isinstance(parts[0][1]["weight"], FakeTensor)  # drpruning plan cost: its tensors have no storage
        run = compiled_update if wanted and not fake else update
        numbers, keys = send(numbers, device), send(keys, device)
        for (row, tensors), key in zip(parts, keys, strict=True):
            weight, gradient = tensors.pop("weight"), tensors.pop("gradient")
            coded = "exp_avg_scale" in tensors
            codes = (dynamic_map(True, device), dynamic_map(False, device)) if coded else None
            run(Slice(weight, gradient, tensors, numbers[row], key, self.found_inf, codes))

    @property
    def failure(self) -> str | None:
        """Why updates that should be compiled are not: the compiler's message; None if they are."""
        return None if self.compiled is False else compiled_update.failure

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
    codes, scales = encode(torch.zeros_like(here, dtype=torch.float32), dynamic_map(signed, here.device))
    if not isinstance(parameter, DTensor):
        return codes, scales
    whole = (parameter.shape[0], blocks_of(parameter.shape[1]))
    mesh, placements = parameter.device_mesh, parameter.placements
    wrapped = [
        DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=(shape[1], 1))
        for part, shape in ((codes, tuple(parameter.shape)), (scales, whole))
    ]
    return wrapped[0], wrapped[1]


def _slices(weight: Tensor) -> Iterator[slice]:
    """The rows of a tensor, some at a time."""
    rows = max(1, SLICE // max(1, math.prod(weight.shape[1:])))
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


def _flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Views with one dimension, or with blocks as rows, so that all shapes look alike to a compiler.

    Tensors stay as they are where one is not contiguous, or where the rows of a matrix with codes have no whole blocks.
    """
    coded = "exp_avg_scale" in tensors
    if (coded and tensors["weight"].shape[1] % BLOCK) or not all(each.is_contiguous() for each in tensors.values()):
        return tensors
    shapes = {name: (-1, 1 if name.endswith("_scale") else BLOCK) if coded else (-1,) for name in tensors}
    return {name: tensor.view(shapes[name]) for name, tensor in tensors.items()}


def _keys(*place: int) -> list[int]:
    """Two int32 keys for the random bits of a slice."""
    digest = hashlib.blake2b(struct.pack(f"<{len(place)}Q", *place), digest_size=8).digest()
    return list(struct.unpack("<2i", digest))


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, as a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
