"""Which units the masks close, and how a forward pass leaves them out.

A unit whose mask is exactly zero adds nothing to the output and gets exactly zero gradient (``docs/masks.md``), so a
forward pass can do without it: a closed block is passed over, and of every weight only the rows and columns of open
units take part. Loss and gradients are those of the masked pass, up to the order of floating point sums.

Sizes are rounded up, by keeping some closed units, so that they take few values in a run. As soon as one row of any
kind can do without units, every row of every kind is gathered, all of them where it needs all: so all blocks and steps
look alike to a compiler, and one graph serves them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drpruning.pruning.host_copy import HostCopy, send

LEVELS = 16
"""Values that the size of an axis can take on its way down."""
LEAST_GRANULE = 8
"""Sizes are multiples of this at least: narrower matrices are no faster."""


@dataclass(frozen=True)
class OpenUnits:
    """Ascending indices of the units a forward pass works on; None stands for all.

    Attributes:
        hidden: Units of the residual stream.
        query, key_value, intermediate: Entries along these axes for each block.
        passed_over: Blocks that are closed as a whole.
    """

    hidden: Tensor | None = None
    query: Mapping[int, Tensor] = field(default_factory=dict)
    key_value: Mapping[int, Tensor] = field(default_factory=dict)
    intermediate: Mapping[int, Tensor] = field(default_factory=dict)
    passed_over: frozenset[int] = frozenset()

    def at(self, block: int) -> dict[str, Tensor]:
        """Indices by axis of :mod:`drpruning.pruning.architectures` in ``block``; outside of blocks for any other."""
        rows = {"query": self.query, "key_value": self.key_value, "intermediate": self.intermediate}
        found = {axis: by_block[block] for axis, by_block in rows.items() if block in by_block}
        return found if self.hidden is None else {"hidden": self.hidden, **found}


@dataclass(frozen=True)
class Look:
    """Which units are open, found out on the device; how many, on its way to the host.

    Attributes:
        opened: By kind, bool [rows, units]: a row holds the units that are counted apart. A block is a row of its own,
            the hidden units are one row.
        counts: Open units of each row, int64, kind after kind.
    """

    opened: Mapping[str, Tensor]
    counts: HostCopy

    @classmethod
    @torch.no_grad()
    def at(cls, masks: Mapping[str, Tensor]) -> Look:
        """What ``masks``, by kind, leave open; at least one kind."""
        as_rows = {"layer": (-1, 1), "hidden": (1, -1)}
        opened = {kind: (mask.detach() != 0).view(as_rows.get(kind, mask.shape)) for kind, mask in masks.items()}
        return cls(opened, HostCopy(torch.cat([rows.sum(-1) for rows in opened.values()])))

    def left_out(self, masks: Mapping[str, Tensor]) -> Tensor:
        """How many units ``masks`` leave open that were closed at this look: int64, a scalar on the device."""
        missed = [(mask.detach() != 0) & ~self.opened[kind].view(mask.shape) for kind, mask in masks.items()]
        return torch.stack([each.sum() for each in missed]).sum()

    @torch.no_grad()
    def units(self, *, query_width: int, key_value_width: int) -> OpenUnits:
        """The units to work on; waits for the counts, since the sizes decide what the device is told.

        Args:
            query_width: Entries of the query axis that belong to one key/value head.
            key_value_width: Entries of the key/value axis that belong to one.
        """
        opened = self.opened
        counts = self.counts.read().tolist()
        count = dict(zip(opened, _split(counts, [len(rows) for rows in opened.values()]), strict=True))
        passed_over = frozenset(block for block, number in enumerate(count.get("layer", ())) if number == 0)

        sizes = {
            kind: [_rounded(number, 1 if kind == "head" else granule_of(rows.shape[-1])) for number in count[kind]]
            for kind, rows in opened.items()
            if kind != "layer"
        }
        if all(min(of_rows) >= opened[kind].shape[-1] for kind, of_rows in sizes.items()):
            return OpenUnits(passed_over=passed_over)
        units = {kind: self._chosen(kind, of_rows) for kind, of_rows in sizes.items()}
        heads = units.get("head", {})
        return OpenUnits(
            hidden=_by_row(units.get("hidden", {})).get(0),
            query=_by_row({size: (rows, spread(each, query_width)) for size, (rows, each) in heads.items()}),
            key_value=_by_row({size: (rows, spread(each, key_value_width)) for size, (rows, each) in heads.items()}),
            intermediate=_by_row(units.get("intermediate", {})),
            passed_over=passed_over,
        )

    def _chosen(self, kind: str, sizes: Sequence[int]) -> dict[int, tuple[list[int], Tensor]]:
        """The units to work on of a kind, by number of units: its rows, and ascending indices [rows, units].

        Rows of one size are sorted together: sizes mostly agree, and a row sorted alone takes some eight small kernels.
        """
        opened = self.opened[kind]
        order = torch.argsort(opened.logical_not().byte(), dim=-1, stable=True)  # open ones first
        rows_of = {size: [row for row, each in enumerate(sizes) if each == size] for size in dict.fromkeys(sizes)}
        whole = len(rows_of) == 1
        return {
            size: (rows, (order if whole else order[send(torch.tensor(rows), order.device)])[:, :size].sort().values)
            for size, rows in rows_of.items()
        }


def open_units(masks: Mapping[str, Tensor], *, query_width: int, key_value_width: int) -> OpenUnits:
    """What ``masks`` leave open, found out now: waits for the device.

    Args:
        masks: Values by kind, as :data:`drpruning.pruning.modules.Masks`.
        query_width: Entries of the query axis that belong to one key/value head.
        key_value_width: Entries of the key/value axis that belong to one.
    """
    if not masks:
        return OpenUnits()
    return Look.at(masks).units(query_width=query_width, key_value_width=key_value_width)


def every_unit(masks: Mapping[str, Tensor], *, query_width: int, key_value_width: int) -> OpenUnits:
    """All units of all rows, gathered: what a forward pass works on at most once it can do without one unit.

    Args:
        masks: Values by kind, as :data:`drpruning.pruning.modules.Masks`; only their shapes count.
        query_width: As of :func:`open_units`.
        key_value_width: As of :func:`open_units`.
    """

    def rows(kind: str, width: int = 1) -> dict[int, Tensor]:
        if kind not in masks:
            return {}
        mask = masks[kind]
        units = torch.arange(mask.shape[-1], device=mask.device)
        return {block: spread(units, width) for block in range(len(mask) if mask.ndim > 1 else 1)}

    return OpenUnits(
        hidden=rows("hidden").get(0),
        query=rows("head", query_width),
        key_value=rows("head", key_value_width),
        intermediate=rows("intermediate"),
    )


def granule_of(units: int) -> int:
    """What the number of units that take part is a multiple of.

    Example:
        >>> granule_of(4096), granule_of(1376), granule_of(96)
        (256, 88, 8)
    """
    return max(LEAST_GRANULE, LEAST_GRANULE * round(units / LEVELS / LEAST_GRANULE))


def cut(weight: Tensor, *indices: Tensor | None) -> Tensor:
    """The entries of ``weight`` at ``indices`` along each of its dimensions; its gradient is zero elsewhere.

    Args:
        weight: One or two dimensions.
        *indices: For each dimension distinct indices, or None for all.
    """
    if all(index is None for index in indices):
        return weight
    result: Tensor = _Cut.apply(weight, *indices)
    return result


class _Cut(torch.autograd.Function):
    """Selecting, with a backward that writes instead of adding: the indices are distinct."""

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


def pass_over(hidden_states: Tensor, parts: list[Tensor]) -> Tensor:
    """``hidden_states`` unchanged, with gradients of zero for the ``parts`` of a closed block: what it computes.

    The gradients are there, and not missing, because an optimizer with momentum moves what has a gradient of zero and
    leaves alone what has none.
    """
    result: Tensor = _PassOver.apply(hidden_states, *parts)
    return result


class _PassOver(torch.autograd.Function):
    @staticmethod
    def forward(hidden_states: Tensor, *parts: Tensor) -> Tensor:
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        zeros = [p.new_zeros(()).expand(p.shape) if w else None for p, w in zip(ctx.saved_tensors, wanted, strict=True)]
        return gradients[0], *zeros


def varying(tensor: Tensor, dimension: int = 0) -> Tensor:
    """Tells a compiler that ``tensor`` will have other sizes; returns it."""
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor


def spread(units: Tensor, width: int) -> Tensor:
    """Entries, [..., U * width], of units [..., U] that are ``width`` entries wide each."""
    return (units[..., None] * width + torch.arange(width, device=units.device)).flatten(-2)


def _by_row(groups: Mapping[int, tuple[list[int], Tensor]]) -> dict[int, Tensor]:
    """Indices by row, in the order of rows.

    ``data``: to the compiler a row is a tensor of one varying size, not a view of a matrix with two.
    """
    found = {
        row: varying(each.data) for rows, indices in groups.values() for row, each in zip(rows, indices, strict=True)
    }
    return dict(sorted(found.items()))


def _rounded(number: int, granule: int) -> int:
    """Up to a multiple of ``granule``, and not to none."""
    return granule * max(1, math.ceil(number / granule))


def _split(values: Sequence[int], lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    start = 0
    for length in lengths:
        yield values[start : start + length]
        start += length
