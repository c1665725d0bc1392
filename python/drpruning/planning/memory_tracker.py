"""Track the bytes of live tensors while code runs on fake tensors: the peak memory of a step without running it.

torch's fake tensors have shapes, dtypes and lifetimes but no storage, so real training code runs on them in seconds, on
any machine. Memory that an operation allocates and frees inside itself is not tracked, except for the operations in
:data:`INTERNAL_COPY`, where it is as large as anything in a step.

``torch.distributed._tools.MemTracker`` is similar, but private: it records one peak of a run and one of each module,
not a peak of each phase of a stage.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

INTERNAL_COPY = {torch.ops.aten.logsumexp.default}
"""Operations that allocate a copy of their first argument internally: for the logits of a loss, the exponentials."""


@dataclass(frozen=True)
class Peak:
    """The largest memory of live tensors at one time.

    Attributes:
        total: Bytes.
        parts: Bytes by part, see :meth:`MemoryTracker.phase`.
    """

    total: int = 0
    parts: dict[str, int] = field(default_factory=dict)


@dataclass
class _Alive:
    storage: weakref.ref[UntypedStorage]
    size: int
    part: str


class MemoryTracker(TorchDispatchMode):
    """A context that counts the storage of every tensor that operations create, until it is freed.

    Args:
        resized: Whether storages change their size, as FSDP's do when it gathers and frees sharded weights.

    Attributes:
        peaks: The peak of each phase, by name.
    """

    def __init__(self, *, resized: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: dict[str, Peak] = {}
        self._resized = resized
        self._alive: dict[int, _Alive] = {}
        self._parts: dict[str, int] = {}
        self._phase, self._part = "", ""

    @contextmanager
    def phase(self, name: str, part: str, *, entry: bool = True) -> Iterator[None]:
        """Within the context, record the peak of phase ``name`` and count new tensors as ``part``.

        Args:
            name: Name of the phase; an existing name continues that phase.
            part: The use of the tensors that are created, for instance ``weights``.
            entry: Whether memory at the start counts towards the peak, or only from the first operation on.
        """
        before = self._phase, self._part
        self._phase, self._part = name, part
        if entry:
            self._note_peak()
        try:
            yield
        finally:
            self._phase, self._part = before

    def watch_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Count gradients as a separate part, and start a phase ``..., late`` once half of them exist.

        A backward pass frees activations while it creates gradients, so its peak is at its start or at its end; which
        of the two may change with the depth of the model.
        """
        half = sum(parameter.numel() for parameter in parameters) / 2
        seen: set[int] = set()
        count = 0

        def note(parameter: Tensor) -> None:
            nonlocal count
            if parameter.grad is not None:
                self.assign(parameter.grad, "gradients")
            if id(parameter) not in seen:
                seen.add(id(parameter))
                count += parameter.numel()
            if count > half and self._phase.endswith("backward"):
                self._phase += ", late"

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(note)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count its results."""
        results = func(*args, **(kwargs or {}))
        for tensor in tree_iter(results):
            if isinstance(tensor, Tensor):
                self._count(_local(tensor).untyped_storage())
        if self._resized:
            self._update_sizes()
        self._note_peak(args[0].nbytes if func in INTERNAL_COPY else 0)
        return results

    def _count(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            reference = weakref.ref(storage, lambda _: self._freed(key))
            self._alive[key] = _Alive(reference, storage.nbytes(), self._part)
            self._add(self._part, storage.nbytes())

    def assign(self, tensor: Tensor, part: str) -> None:
        """Count a tensor as another part."""
        alive = self._alive.get(_local(tensor).untyped_storage()._cdata)
        if alive is not None:
            self._add(alive.part, -alive.size)
            self._add(part, alive.size)
            alive.part = part

    def _update_sizes(self) -> None:
        for alive in list(self._alive.values()):
            storage = alive.storage()
            size = 0 if storage is None else storage.nbytes()
            if size != alive.size:
                self._add(alive.part, size - alive.size)
                alive.size = size

    def _freed(self, key: int) -> None:
        alive = self._alive.pop(key)
        self._add(alive.part, -alive.size)

    def _add(self, part: str, size: int) -> None:
        self._parts[part] = self._parts.get(part, 0) + size

    def _note_peak(self, inside: int = 0) -> None:
        total = sum(self._parts.values()) + inside
        if total > self.peaks.get(self._phase, Peak()).total:
            parts = dict(self._parts)
            parts["working"] = parts.get("working", 0) + inside
            self.peaks[self._phase] = Peak(total, parts)


def _local(tensor: Tensor) -> Tensor:
    """Return the shard of a tensor on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
