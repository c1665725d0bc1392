"""Bytes of the tensors that are alive while code runs on tensors without storage: the memory of a step never taken.

torch's fake tensors have shapes, types and lifetimes and no contents, so real training code runs on them, on any
machine, in seconds. What an operation needs inside itself and frees before it returns is not seen, except in the one
where it is as large as anything in a step: :data:`INSIDE`.
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

INSIDE = {torch.ops.aten.logsumexp.default}
"""Operations that make a copy of their first argument inside: of a loss's logits, the exponentials."""


@dataclass(frozen=True)
class Peak:
    """The most that was alive at one time.

    Attributes:
        total: Bytes.
        parts: The same by what they are for.
    """

    total: int = 0
    parts: dict[str, int] = field(default_factory=dict)


@dataclass
class _Alive:
    storage: weakref.ref[UntypedStorage]
    size: int
    part: str


class LiveBytes(TorchDispatchMode):
    """Within this context, counts what operations create until it is freed.

    Args:
        resized: Whether storages change their size, as FSDP's do when sharded weights come and go.

    Attributes:
        peaks: The peak of each phase, by its name.
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
        """Within the context the peak is that of phase ``name``, and what is created belongs to ``part``.

        Args:
            name: Of the phase; a name that exists continues that phase.
            part: See :class:`Peak`.
            entry: Whether what is alive at the start counts, or only from the first operation on.
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
        """Counts gradients as a part of their own, and names a phase anew when more than half of them are there.

        In a backward pass activations go while gradients come, so its peak is at its start or at its end, and which it
        is may change with the depth of the model.
        """
        half = sum(parameter.numel() for parameter in parameters) / 2
        there: set[int] = set()
        count = 0

        def note(parameter: Tensor) -> None:
            nonlocal count
            if parameter.grad is not None:
                self.assign(parameter.grad, "gradients")
            if id(parameter) not in there:
                there.add(id(parameter))
                count += parameter.numel()
            if count > half and self._phase.endswith("backward"):
                self._phase += ", late"

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(note)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._note(_here(tensor).untyped_storage())
        if self._resized:
            self._measure_again()
        self._note_peak(args[0].nbytes if func in INSIDE else 0)
        return made

    def _note(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            reference = weakref.ref(storage, lambda _: self._freed(key))
            self._alive[key] = _Alive(reference, storage.nbytes(), self._part)
            self._add(self._part, storage.nbytes())

    def assign(self, tensor: Tensor, part: str) -> None:
        """Moves a tensor to another part."""
        alive = self._alive.get(_here(tensor).untyped_storage()._cdata)
        if alive is not None:
            self._add(alive.part, -alive.size)
            self._add(part, alive.size)
            alive.part = part

    def _measure_again(self) -> None:
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


def _here(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
