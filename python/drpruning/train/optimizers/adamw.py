"""AdamW that computes in float32 and stores its moments, and half of the weights, in fewer bytes."""

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
from drpruning.pruning.async_copy import copy_to_device
from drpruning.train.optimizers.quantized_moments import BLOCK, dynamic_map, num_blocks, quantize
from drpruning.train.optimizers.update import Slice, compiled_update, numbers_of, update

Moments = Literal["float32", "bfloat16", "int8"]

SLICE = 2**24
"""Numbers of a parameter in one update: an uncompiled one allocates about 0.5 GB of float32."""
MIN_QUANTIZED = 4096
"""Smaller matrices, and vectors, have float32 moments: they take few bytes (as in Dettmers et al. 2022)."""


class LowPrecisionAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) in float32, with lower precision between two steps.

    A bfloat16 parameter with its low half is trained exactly as its float32 original, for the same gradients. One
    without is rounded stochastically after each step (:func:`.split_float32.stochastic_round`).

    bfloat16 moments are rounded stochastically as well: from beta2 = 0.998 on, rounding to nearest would return the old
    number, and the second moment would never decrease. Moments in 8 bits are in :mod:`.quantized_moments`. The random
    bits are a function of torch's initial seed, the step count and a number's index in the parameters: there is no
    generator state.

    All operations are elementwise or along a row, on the rank's own part, so parameters may be sharded by rows.

    Where ``found_inf`` (a float32 scalar on the parameters' device, or None) is one, a step changes nothing, as in
    torch's fused optimizers. The host counted the step, though; :meth:`uncount` reverts that.

    Args:
        params: Parameters, or groups of them. A group with ``exact=True`` has float32 moments, whatever ``moments`` is;
            one with ``maximize=True`` ascends.
        moments: Format of the moments of matrices; those of vectors are bfloat16 or float32.
        lows: For bfloat16 parameters the low halves of their float32 originals, from
            :func:`drpruning.train.optimizers.to_low_precision`.
        lr: Learning rate of groups without one.
        betas: Decay of the first and second moment.
        eps: Added to the square root of the second.
        weight_decay: Decoupled, of groups without one.
        compiled: Whether updates are compiled into one kernel for a slice (:mod:`.update`), bit for bit the same; None:
            on CUDA.
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
        # All state now: torch.distributed.checkpoint assumes that an optimizer with some state has all of it
        for group in self.param_groups:
            for parameter in group["params"]:
                kind = "float32" if group["exact"] else moments
                self.state[parameter] = _first_state(parameter, kind, (lows or {}).get(parameter))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        self._counted = []
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        numbers: list[list[float]] = []
        keys: list[list[int]] = []
        parts: list[tuple[int, dict[str, Tensor]]] = []
        pairs = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for index, (parameter, group) in enumerate(pairs):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            state["step"] += 1
            self._counted.append(state["step"])
            step = int(state["step"].item())
            tensors = {name: _local(value) for name, value in state.items() if name != "step"}
            tensors |= {"weight": _local(parameter.detach()), "gradient": _local(parameter.grad)}
            for rows in _slices(tensors["weight"]):
                keys.append(_keys(torch.initial_seed(), step, index, rows.start))
                parts.append((len(numbers), _flat_views({name: value[rows] for name, value in tensors.items()})))
            numbers.append(numbers_of(group, step))
        if parts:
            self._update(parts, torch.tensor(numbers, dtype=torch.float32), torch.tensor(keys, dtype=torch.int32))
        return loss

    def _update(self, parts: list[tuple[int, dict[str, Tensor]]], numbers: Tensor, keys: Tensor) -> None:
        """Update slices, given as pairs of a row of ``numbers`` and tensors; ``keys`` has a row for each slice."""
        device = parts[0][1]["weight"].device
        compiled = device.type == "cuda" if self.compiled is None else self.compiled
        fake = isinstance(parts[0][1]["weight"], FakeTensor)  # of a memory plan, without storage
        run = compiled_update if compiled and not fake else update
        numbers, keys = copy_to_device(numbers, device), copy_to_device(keys, device)
        for (row, tensors), key in zip(parts, keys, strict=True):
            weight, gradient = tensors.pop("weight"), tensors.pop("gradient")
            coded = "exp_avg_scale" in tensors
            codes = (dynamic_map(True, device), dynamic_map(False, device)) if coded else None
            run(Slice(weight, gradient, tensors, numbers[row], key, self.found_inf, codes))

    @property
    def failure(self) -> str | None:
        """The compiler's message where updates could not be compiled; None where they are."""
        return None if self.compiled is False else compiled_update.failure

    def uncount(self) -> None:
        """Revert the count of the last step, in which ``found_inf`` disabled the update."""
        for steps in self._counted:
            steps.sub_(1)
        self._counted = []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy what ``state_dict()`` returned into the tensors of this optimizer; every tensor keeps its dtype.

        This optimizer's own tensors are not copied: ``torch.distributed.checkpoint`` has filled them in place. torch's
        method would hold a second and a third copy of the whole state.

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
            "Load it with the training.weight_format and training.optimizer_state_format it was saved with.",
        )
    for name, tensor in own.items():
        if saved[name] is not tensor:
            tensor.copy_(saved[name])


def _first_state(parameter: nn.Parameter, moments: Moments, low: Tensor | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {"step": torch.tensor(0.0)}
    coded = moments == "int8" and parameter.ndim == 2 and parameter.numel() >= MIN_QUANTIZED
    for name in ("exp_avg", "exp_avg_sq"):
        if coded:
            state[name], state[f"{name}_scale"] = _quantized_zeros(parameter, signed=name == "exp_avg")
        else:
            dtype = torch.bfloat16 if moments == "bfloat16" else torch.float32
            state[name] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    if low is not None:
        state["low"] = low
    return state


def _quantized_zeros(parameter: nn.Parameter, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Return codes and scales of zeros, sharded like the parameter."""
    here = _local(parameter.detach())
    codes, scales = quantize(torch.zeros_like(here, dtype=torch.float32), dynamic_map(signed, here.device))
    if not isinstance(parameter, DTensor):
        return codes, scales
    whole = (parameter.shape[0], num_blocks(parameter.shape[1]))
    mesh, placements = parameter.device_mesh, parameter.placements
    wrapped = [
        DTensor.from_local(part, mesh, placements, run_check=False, shape=torch.Size(shape), stride=(shape[1], 1))
        for part, shape in ((codes, tuple(parameter.shape)), (scales, whole))
    ]
    return wrapped[0], wrapped[1]


def _slices(weight: Tensor) -> Iterator[slice]:
    """Yield the rows of a tensor in slices of at most :data:`SLICE` numbers."""
    rows = max(1, SLICE // max(1, math.prod(weight.shape[1:])))
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


def _flat_views(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return views with one dimension, or with blocks as rows, so that one compiled kernel serves all shapes.

    Tensors are returned unchanged where one is not contiguous, or where the rows of a quantized matrix have no whole
    blocks.
    """
    coded = "exp_avg_scale" in tensors
    if (coded and tensors["weight"].shape[1] % BLOCK) or not all(each.is_contiguous() for each in tensors.values()):
        return tensors
    shapes = {name: (-1, 1 if name.endswith("_scale") else BLOCK) if coded else (-1,) for name in tensors}
    return {name: tensor.view(shapes[name]) for name, tensor in tensors.items()}


def _keys(*position: int) -> list[int]:
    """Return two int32 keys for the random bits of a slice."""
    digest = hashlib.blake2b(struct.pack(f"<{len(position)}Q", *position), digest_size=8).digest()
    return list(struct.unpack("<2i", digest))


def _local(tensor: Tensor) -> Tensor:
    """Return a view of this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
