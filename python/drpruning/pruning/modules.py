"""The places where masks act, as mixins over the model's own modules; nothing else of the model is touched.

    embedding            its output, times the hidden mask
    norm of the stream   its mean square runs over the hidden units that are kept
    attention output     its weight, times the head mask along the columns, layer and hidden mask along the rows
    MLP down projection  likewise, with the intermediate mask along the columns

Where closed units are skipped, these and the other projections work on the open ones, and closed blocks are passed
over; see :mod:`drpruning.pruning.closed`.

A mask along a weight's columns is the mask of the activations it reads, one along its rows (and bias) the mask of what
it writes. Masking the weight costs a pass over out * in numbers, masking activations one over tokens * (out + in), and
their gradient again: weights are several times cheaper from a few hundred tokens on.

A masked module is the same object with the same parameters under the same names: only its class is exchanged for a
subclass. Where no mask is applied it computes what it did before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from drpruning.pruning.closed import OpenUnits, cut, open_units, pass_over

Masks = Mapping[str, Tensor]
"""Mask values by kind: ``layer`` [L], ``head`` [L, kv_heads], ``intermediate`` [L, F], ``hidden`` [D]; a kind that is
missing masks nothing."""


class AppliedMasks:
    """What the masked modules of one model apply at present, laid out as they need it; one object shared by all.

    Attributes:
        open: The units a forward pass works on; all of them unless closed ones are skipped.
        layer: Mask of the blocks, None where there is none.
        hidden: Mask of the embedding's output, None where nothing is masked. Like everything here, of open units only.
        mean_factor: What a norm's mean square is multiplied by.
        rows: For each block the mask of what it writes to the stream.
        columns: For ``query`` and ``intermediate`` and each block, the mask of what its projections read.
    """

    def __init__(self, num_blocks: int, *, head_dim: int, group: int) -> None:
        self.num_blocks = num_blocks
        self.head_dim = head_dim
        self.group = group  # query heads that share a key/value head
        self.set({})

    def set(self, masks: Masks, *, skip_closed: bool = False, opened: OpenUnits | None = None) -> None:
        """Applies ``masks`` from the next forward pass on.

        Args:
            masks: Values by kind.
            skip_closed: Leave out what they close.
            opened: What they leave open, if that is known already; finding out waits for the device.
        """
        widths = {"query_width": self.head_dim * self.group, "key_value_width": self.head_dim}
        self.open = (opened or open_units(masks, **widths)) if skip_closed else OpenUnits()
        layer, hidden = masks.get("layer"), masks.get("hidden")
        self.layer = layer
        self.mean_factor: Tensor | None = None
        if hidden is not None:
            kept = hidden.detach().count_nonzero().clamp(min=1)
            hidden = cut(hidden, self.open.hidden)
            # Masked units are zero already, so their mean square over all units differs from that over the kept ones
            # by this factor alone. It stays on the device: no wait, no shape that depends on data.
            self.mean_factor = hidden.shape[0] / kept
        self.hidden = hidden
        rows: tuple[Tensor | None, ...] = (hidden,) * self.num_blocks
        if layer is not None:
            rows = (layer[:, None] if hidden is None else torch.outer(layer, hidden)).unbind()
        self.rows = rows
        head, intermediate = masks.get("head"), masks.get("intermediate")
        self.columns: dict[str, list[Tensor]] = {}
        if head is not None:
            self.columns["query"] = self._of_open("query", head.repeat_interleave(widths["query_width"], dim=1))
        if intermediate is not None:
            self.columns["intermediate"] = self._of_open("intermediate", intermediate)

    def of_block(self, block: int) -> list[Tensor]:
        """The masks that act in a block."""
        masks = [self.rows[block], *(columns[block] for columns in self.columns.values())]
        return [mask for mask in masks if mask is not None]

    def _of_open(self, axis: str, mask: Tensor) -> list[Tensor]:
        return [cut(row, self.open.along(axis, block)) for block, row in enumerate(mask.unbind())]

    def __deepcopy__(self, memo: dict[int, Any]) -> AppliedMasks:
        """A copied model starts without masks: those of a training step hang on its graph."""
        return AppliedMasks(self.num_blocks, head_dim=self.head_dim, group=self.group)


class MaskedEmbedding(nn.Embedding):
    """A token embedding whose output is masked along the hidden units."""

    applied: AppliedMasks

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Embeds ``input``."""
        embedded = super().forward(input)
        hidden, opened = self.applied.hidden, self.applied.open.hidden
        if opened is not None:
            embedded = embedded.index_select(-1, opened)
        return embedded if hidden is None else embedded * hidden.to(embedded.dtype)


class MaskedNorm(nn.Module):
    """An RMSNorm whose mean runs over the hidden units that are kept; equal to the original where all are."""

    applied: AppliedMasks
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalises the last dimension."""
        factor = self.applied.mean_factor
        if factor is None:
            return super().forward(hidden_states)  # type: ignore[no-any-return]  # the original norm is next in line
        x = hidden_states.float()
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) * factor + self.variance_epsilon)
        return cut(self.weight, self.applied.open.hidden) * (x * scale).to(hidden_states.dtype)


class MaskedProjection(nn.Linear):
    """A projection that works on open units, and masks what it writes to the residual stream.

    A projection that writes to the stream (``axes[0] == "hidden"``) is masked along both dimensions. One that only
    reads from it needs no mask, since what it reads is masked, but leaves closed units out.
    """

    applied: AppliedMasks
    axes: tuple[str, str]
    block: int | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Projects ``input``."""
        applied = self.applied
        rows, columns = (applied.open.along(axis, self.block) for axis in self.axes)
        weight = cut(self.weight, rows, columns)
        bias: Tensor | None = self.bias
        if bias is not None:
            bias = cut(bias, rows)
        if self.block is not None and self.axes[0] == "hidden":
            mask = applied.columns.get(self.axes[1])
            if mask is not None:
                weight = weight * mask[self.block].to(weight.dtype)
            written = applied.rows[self.block]
            if written is not None:
                written = written.to(weight.dtype)
                weight = weight * written[:, None]
                bias = None if bias is None else bias * written
        return functional.linear(input, weight, bias)


class MaskedBlock(nn.Module):
    """A decoder block that is passed over while its mask is zero."""

    applied: AppliedMasks
    block: int

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the block adds to ``hidden_states``, or those alone. With a key/value cache every block takes part."""
        cached = kwargs.get("cache", kwargs.get("past_key_values"))
        if self.block in self.applied.open.passed_over and cached is None:
            return pass_over(hidden_states, [*self.parameters(), *self.applied.of_block(self.block)])
        return super().forward(hidden_states, *args, **kwargs)


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def mask_module(module: ModuleT, masked: type[nn.Module], **attributes: Any) -> ModuleT:
    """Exchanges the class of ``module`` for one that is ``masked`` first and what it was second."""
    if not isinstance(module, masked):  # else another wrapper masked it before: this one takes over
        module.__class__ = type(f"{masked.__name__}Of{type(module).__name__}", (masked, type(module)), {})
    for name, value in attributes.items():
        setattr(module, name, value)
    return module
