"""Count the synchronisations of host and device, also where the device is the CPU, which never waits.

Every tensor counts as on the device, unless it was created on the host (without a device) or was copied there by a
:class:`~drpruning.pruning.async_copy.AsyncHostCopy` that began in an earlier step. On a GPU these would wait:

    reading a tensor of the device      item, bool, tolist, numpy, cpu, ...
    shapes that depend on its values    nonzero, masked_select, indexing with booleans, ...
    copies from the host that wait      tensor(..., device=...), to(device) without non_blocking, indexing with lists

On a GPU torch reports them: ``torch.cuda.set_sync_debug_mode("error")``.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drpruning.pruning.async_copy import AsyncHostCopy

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.is_nonzero,
    aten.equal, aten.unique_consecutive, aten.bincount,
}  # fmt: skip
READING = {"tolist", "numpy", "item", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__"}


class CudaSyncs:
    """The synchronisations of the steps under :meth:`in_step`, in words."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.step = 0
        self._host: dict[int, Tensor] = {}  # by address; kept, so that no other tensor gets it

    def in_step(self) -> _Counting:
        """Return the context of one step."""
        self.step += 1
        self._host = {}
        return _Counting(self)

    def is_host(self, tensor: Tensor) -> bool:
        if torch._C._functorch.is_batchedtensor(tensor):  # within vmap, which does not show what is below
            return False
        return tensor.numel() == 0 or tensor.untyped_storage().data_ptr() in self._host

    def note_host(self, tensors: Iterable[Any], host: bool = True) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor) and not torch._C._functorch.is_batchedtensor(tensor):
                address = tensor.untyped_storage().data_ptr()
                if host:
                    self._host[address] = tensor
                else:
                    self._host.pop(address, None)

    def say(self, what: str) -> None:
        frames = traceback.extract_stack()[:-2]
        at = next((each for each in reversed(frames) if "drpruning/" in each.filename), frames[-1])
        self.found.append(f"step {self.step}: {what}, in {Path(at.filename).name}:{at.lineno}")


class _Counting:
    """The two modes, and the copies between host and device."""

    def __init__(self, waits: CudaSyncs) -> None:
        self.modes = _Calls(waits), _Operations(waits)
        self.waits = waits

    def __enter__(self) -> None:
        self.real = AsyncHostCopy.__init__, AsyncHostCopy.read
        begin, read = self.real
        waits = self.waits

        def beginning(copy: Any, tensor: Tensor) -> None:
            begin(copy, tensor)
            copy.begun = waits.step

        def reading(copy: Any) -> Tensor:
            tensor = read(copy)
            if copy.begun >= waits.step:
                waits.say("a copy is read in the step in which it began")
            waits.note_host([tensor])
            return tensor

        AsyncHostCopy.__init__, AsyncHostCopy.read = beginning, reading  # type: ignore[method-assign, assignment]
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)
        AsyncHostCopy.__init__, AsyncHostCopy.read = self.real  # type: ignore[method-assign]


class _Calls(TorchFunctionMode):
    """Calls of torch's functions, as Python makes them."""

    def __init__(self, waits: CudaSyncs) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, waits = kwargs or {}, self.waits
        name = getattr(func, "__name__", "")
        of = args[0] if args and isinstance(args[0], Tensor) else None
        device = kwargs.get("device") or next((each for each in args if isinstance(each, torch.device)), None)
        sent = name == "to" and of is not None and waits.is_host(of) and device is not None
        made = name in ("tensor", "as_tensor", "from_numpy")
        if sent and not kwargs.get("non_blocking"):
            waits.say(f"a copy from the host of {tuple(of.shape)}")
        elif made and device is not None:
            waits.say("a tensor of numbers of the host")
        elif of is not None and not waits.is_host(of):
            if name in READING or (name == "to" and "cpu" in args[1:]):
                waits.say(f"{name} of {tuple(of.shape)}")
            if name in ("__getitem__", "__setitem__"):
                indices = args[1] if isinstance(args[1], tuple) else (args[1],)
                if any(isinstance(index, list) for index in indices):
                    waits.say(f"an index that is a list, of {tuple(of.shape)}")
        result = func(*args, **kwargs)
        if sent or (device is not None and of is None):
            waits.note_host(tree_leaves(result), host=False)
        elif made:
            waits.note_host(tree_leaves(result))
        return result


class _Operations(TorchDispatchMode):
    """Operations below torch's functions, in backward passes and optimizers too."""

    def __init__(self, waits: CudaSyncs) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        host = all(map(self.waits.is_host, given))
        packet = func.overloadpacket
        if not host:
            if packet in WAITING:
                self.waits.say(f"{packet.__name__} of {[tuple(each.shape) for each in given]}")
            elif packet in (aten.index, aten.index_put, aten.index_put_) and any(
                each.dtype in (torch.bool, torch.uint8) for each in given[1:]
            ):
                self.waits.say(f"an index of booleans, of {tuple(given[0].shape)}")
        result = func(*args, **kwargs)
        self.waits.note_host(tree_leaves(result), host=host)
        return result
