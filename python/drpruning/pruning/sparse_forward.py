"""Sparse forward pass: compute with active units only.

A unit whose mask is exactly zero adds nothing to the output and gets exactly zero gradient (``docs/masks.md``). So a
forward pass can leave it out: a pruned block is skipped, and of every weight only the rows and columns of active units
are gathered. Loss and gradients are those of the masked pass, up to the order of floating point sums.

The host must have the number of active units, because it sets the shapes of the kernels that the host enqueues.
:class:`ActiveSet` holds the active units on the device and their counts on the way to the host. With the one-step
lookahead (:mod:`drpruning.pruning.lookahead`) the counts have arrived before they are needed.

Sizes are rounded up, by keeping some pruned units, so that they take few values in a run. As soon as one row of any
kind can leave out units, every row of every kind is gathered, with all of its units where it needs all: so all blocks
and steps look alike to a compiler, and one graph serves them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drpruning.pruning.architecture_spec import Axis, Dimension
from drpruning.pruning.async_copy import AsyncHostCopy, copy_to_device

LEVELS = 16
"""Number of values that the size of an axis takes while units are pruned."""
MIN_SIZE_MULTIPLE = 8
"""Sizes are multiples of at least this: narrower matrices are no faster."""


@dataclass(frozen=True)
class ActiveUnits:
    """Ascending indices of the units that a forward pass computes; None means all.

    Attributes:
        hidden: Units of the residual stream.
        query, key_value, intermediate: Entries along these axes by block.
        skipped_blocks: Blocks that are pruned as a whole.
    """

    hidden: Tensor | None = None
    query: Mapping[int, Tensor] = field(default_factory=dict)
    key_value: Mapping[int, Tensor] = field(default_factory=dict)
    intermediate: Mapping[int, Tensor] = field(default_factory=dict)
    skipped_blocks: frozenset[int] = frozenset()

    def in_block(self, block: int) -> dict[Dimension, Tensor]:
        """Return indices by axis of :mod:`drpruning.pruning.architectures`; the number of blocks: outside of blocks."""
        by_axis: dict[Axis, Mapping[int, Tensor]] = {
            "query": self.query,
            "key_value": self.key_value,
            "intermediate": self.intermediate,
        }
        found: dict[Dimension, Tensor] = {axis: rows[block] for axis, rows in by_axis.items() if block in rows}
        return found if self.hidden is None else {"hidden": self.hidden, **found}


@dataclass(frozen=True)
class ActiveSet:
    """Active units as masks on the device, and their counts in an asynchronous copy to the host.

    Attributes:
        active: By kind, bool [rows, units]: units of one row are counted together. A block is a row with one unit, the
            hidden units are one row. Units inside experts are [blocks, experts, units].
        counts: Active units of each row, int64, kind after kind.
    """

    active: Mapping[str, Tensor]
    counts: AsyncHostCopy

    @classmethod
    @torch.no_grad()
    def of(cls, masks: Mapping[str, Tensor]) -> ActiveSet:
        """Return the units whose mask is not zero.

        Args:
            masks: Values by kind, of at least one kind.
        """
        as_rows = {"layer": (-1, 1), "hidden": (1, -1)}
        active = {kind: (mask.detach() != 0).view(as_rows.get(kind, mask.shape)) for kind, mask in masks.items()}
        return cls(active, AsyncHostCopy(torch.cat([rows.sum(-1).flatten() for rows in active.values()])))

    def num_missed_units(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Count the units that ``masks`` keep active and this set does not have: int64, a scalar on the device."""
        missed = [(mask.detach() != 0) & ~self.active[kind].view(mask.shape) for kind, mask in masks.items()]
        return torch.stack([each.sum() for each in missed]).sum()

    @torch.no_grad()
    def units(self, *, query_width: int, key_value_width: int) -> ActiveUnits:
        """Return the indices to compute with; waits for the counts.

        Args:
            query_width: Entries of the query axis for each key/value head.
            key_value_width: Entries of the key/value axis for each key/value head.
        """
        counts = self._counts_by_kind()
        skipped = frozenset(block for block, number in enumerate(counts.get("layer", ())) if number == 0)
        sizes = {
            kind: [_round_up(number, 1 if kind == "head" else size_multiple(rows.shape[-1])) for number in counts[kind]]
            for kind, rows in self.active.items()
            if kind != "layer" and _can_skip(kind, rows)
        }
        if all(min(of_rows) >= self.active[kind].shape[-1] for kind, of_rows in sizes.items()):
            return ActiveUnits(skipped_blocks=skipped)
        units = {kind: self._choose(kind, of_rows) for kind, of_rows in sizes.items()}
        heads = units.get("head", {})
        return ActiveUnits(
            hidden=_by_row(units.get("hidden", {})).get(0),
            query=_by_row({size: (rows, unit_entries(each, query_width)) for size, (rows, each) in heads.items()}),
            key_value=_by_row(
                {size: (rows, unit_entries(each, key_value_width)) for size, (rows, each) in heads.items()}
            ),
            intermediate=_by_row(units.get("intermediate", {})),
            skipped_blocks=skipped,
        )

    def _counts_by_kind(self) -> dict[str, list[int]]:
        counts: Iterator[int] = iter(self.counts.read().tolist())
        return {kind: [next(counts) for _ in rows.flatten(0, -2)] for kind, rows in self.active.items()}

    def _choose(self, kind: str, sizes: Sequence[int]) -> dict[int, tuple[list[int], Tensor]]:
        """Choose the units of a kind to compute with: by size, the rows and ascending indices [rows, units].

        Rows of one size are sorted together: sizes mostly agree, and sorting one row alone takes some eight small
        kernels.
        """
        active = self.active[kind]
        order = torch.argsort(active.logical_not().byte(), dim=-1, stable=True)  # active units first
        rows_of = {size: [row for row, each in enumerate(sizes) if each == size] for size in dict.fromkeys(sizes)}
        whole = len(rows_of) == 1
        chosen = {}
        for size, rows in rows_of.items():
            of_rows = order if whole else order[copy_to_device(torch.tensor(rows), order.device)]
            chosen[size] = rows, of_rows[:, :size].sort().values
        return chosen


def find_active_units(masks: Mapping[str, Tensor], *, query_width: int, key_value_width: int) -> ActiveUnits:
    """Return the active units of ``masks`` now, with a device synchronisation.

    Args:
        masks: Values by kind, see :data:`drpruning.pruning.masked_modules.Masks`.
        query_width: Entries of the query axis for each key/value head.
        key_value_width: Entries of the key/value axis for each key/value head.
    """
    if not masks:
        return ActiveUnits()
    return ActiveSet.of(masks).units(query_width=query_width, key_value_width=key_value_width)


def all_units(masks: Mapping[str, Tensor], *, query_width: int, key_value_width: int) -> ActiveUnits:
    """Return all units of all rows as indices: the largest gather, which memory is planned for.

    Args:
        masks: Values by kind, see :data:`drpruning.pruning.masked_modules.Masks`; only their shapes are used.
        query_width: See :func:`find_active_units`.
        key_value_width: See :func:`find_active_units`.
    """

    def rows(kind: str, width: int = 1) -> dict[int, Tensor]:
        if kind not in masks or not _can_skip(kind, masks[kind]):
            return {}
        mask = masks[kind]
        units = torch.arange(mask.shape[-1], device=mask.device)
        return {block: unit_entries(units, width) for block in range(len(mask) if mask.ndim > 1 else 1)}

    return ActiveUnits(
        hidden=rows("hidden").get(0),
        query=rows("head", query_width),
        key_value=rows("head", key_value_width),
        intermediate=rows("intermediate"),
    )


def _can_skip(kind: str, mask: Tensor) -> bool:
    """Return whether a forward pass leaves out units of a kind.

    Experts need not be: no token is routed to one whose mask is zero. Units inside experts would leave each expert with
    another width, which stacked weights cannot have.
    """
    return kind != "expert" and mask.ndim < 3


def size_multiple(units: int) -> int:
    """Return the number whose multiples the size of an axis of ``units`` units takes.

    Example:
        >>> size_multiple(4096), size_multiple(1376), size_multiple(96)
        (256, 88, 8)
    """
    return max(MIN_SIZE_MULTIPLE, MIN_SIZE_MULTIPLE * round(units / LEVELS / MIN_SIZE_MULTIPLE))


def unit_entries(units: Tensor, width: int) -> Tensor:
    """Return the entries, [..., U * width], of units, [..., U], that are ``width`` entries wide each."""
    return (units[..., None] * width + torch.arange(width, device=units.device)).flatten(-2)


def entries_of(dimension: Dimension, active: Mapping[Dimension, Tensor], along: Mapping[Axis, int]) -> Tensor | None:
    """Return the entries along a dimension that belong to active units; None if all do.

    Args:
        dimension: Of a weight, see :class:`drpruning.pruning.architecture_spec.Part`.
        active: Active entries along ``hidden``, ``query``, ``key_value``, ``expert`` and ``intermediate`` (for several
            experts a row of entries for each); a missing axis has all.
        along: The number of entries along each axis.

    Example:
        >>> along = {"query": 4, "key_value": 2, "head_dim": 2}
        >>> entries_of(("query", "key_value"), {"query": torch.tensor([2, 3])}, along).tolist()
        [2, 3, 4, 5]
    """
    if dimension in active:
        return active[dimension]
    if dimension == "gate_up":
        units = active.get("intermediate")
        return None if units is None else unit_entries(units, 2)
    if isinstance(dimension, str):
        heads = active.get("query" if dimension == "query_head" else "key_value")
        if dimension not in ("query_head", "key_value_head", "query_key_value") or heads is None:
            return None
        heads = heads[:: along["head_dim"]] // along["head_dim"]
        if dimension == "query_key_value":
            return unit_entries(heads, along["head_dim"] * (2 + along["query"] // along["key_value"]))
        return heads
    if not any(axis in active for axis in dimension):
        return None
    device, start, parts = next(iter(active.values())).device, 0, list[Tensor]()
    for axis in dimension:
        chosen = active.get(axis)
        parts.append(start + (torch.arange(along[axis], device=device) if chosen is None else chosen))
        start += along[axis]
    return torch.cat(parts, dim=-1)


def gather(weight: Tensor, *indices: Tensor | None) -> Tensor:
    """Return the entries of ``weight`` at ``indices`` along each dimension; the gradient of other entries is zero.

    Args:
        weight: Any number of dimensions.
        *indices: For each dimension distinct indices, or None for all.
    """
    if all(index is None for index in indices):
        return weight
    result: Tensor = _Gather.apply(weight, *indices)
    return result


class _Gather(torch.autograd.Function):
    """``index_select`` whose backward pass writes instead of adding, since the indices are distinct."""

    @staticmethod
    def forward(weight: Tensor, *indices: Tensor | None) -> Tensor:
        for dimension, index in enumerate(indices):
            if index is not None:
                weight = weight.index_select(dimension, index)
        return weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, *indices = inputs
        ctx.shape = weight.shape
        ctx.save_for_backward(*indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        indices = ctx.saved_tensors
        for dimension, index in reversed(list(enumerate(indices))):
            if index is not None:
                shape = list(gradient.shape)
                shape[dimension] = ctx.shape[dimension]
                gradient = gradient.new_zeros(shape).index_copy_(dimension, index, gradient)
        return gradient, *(None for _ in indices)


def skip_block(hidden_states: Tensor, parts: list[Tensor]) -> Tensor:
    """Return ``hidden_states`` unchanged and give ``parts`` of a pruned block a gradient of zero.

    A zero gradient differs from a missing one: an optimizer with momentum moves a parameter whose gradient is zero and
    skips a parameter without a gradient. The masked pass computes zeros.
    """
    result: Tensor = _SkipBlock.apply(hidden_states, *parts)
    return result


class _SkipBlock(torch.autograd.Function):
    @staticmethod
    def forward(hidden_states: Tensor, *parts: Tensor) -> Tensor:
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        zeros = [p.new_zeros(()).expand(p.shape) if n else None for p, n in zip(ctx.saved_tensors, needed, strict=True)]
        return gradients[0], *zeros


def mark_dynamic(tensor: Tensor, dimension: int = 0) -> Tensor:
    """Mark the size of a dimension as varying, for torch.compile; return ``tensor``."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor


def _by_row(groups: Mapping[int, tuple[list[int], Tensor]]) -> dict[int, Tensor]:
    """Return indices by row, in the order of rows.

    ``data``: to a compiler a row is a tensor of one varying size, not a view of a matrix with two.
    """
    found = {
        row: mark_dynamic(each.data)
        for rows, indices in groups.values()
        for row, each in zip(rows, indices, strict=True)
    }
    return dict(sorted(found.items()))


def _round_up(number: int, multiple: int) -> int:
    """Return the least multiple that is at least ``number`` and positive."""
    return multiple * max(1, math.ceil(number / multiple))
