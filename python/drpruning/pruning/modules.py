"""The places where masks act, as mixins over the model's own modules; nothing else of the model is touched.

    embedding            its output, times the hidden mask; with ``mask_norms`` by one where that is not zero
    norm of the stream   its mean square runs over the hidden units that are kept; with ``mask_norms`` its output is
                         masked too
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

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from drpruning.pruning.closed import OpenUnits, cut, open_units, pass_over, varying

Masks = Mapping[str, Tensor]
"""Mask values by kind: ``layer`` [L], ``head`` [L, kv_heads], ``intermediate`` [L, F], ``hidden`` [D]; a kind that is
missing masks nothing."""


class Here:
    """What applies in one place: inside one block, or outside of them.

    Masked modules read their place and not the whole, so that one compiled graph serves every block: nothing in it
    depends on which block it is.

    Attributes:
        opened: Along each axis the indices of the units to work on; an axis that is missing has all.
        hidden: Mask of the embedding's output, None where nothing is masked. Like all masks here, of open units only.
            With masked norms it is one for all of them: the public code multiplies the embedding where it is read.
        norm: Mask of the norms' outputs, None where nothing is masked.
        mean_factor: What a norm's mean square is multiplied by.
        written: Mask of what the block writes to the stream.
        columns: For ``query`` and ``intermediate`` the mask of what the block's projections read.
        passed_over: Whether the block is closed as a whole.
    """

    def __init__(self) -> None:
        self.opened: dict[str, Tensor] = {}
        self.hidden: Tensor | None = None
        self.norm: Tensor | None = None
        self.mean_factor: Tensor | None = None
        self.written: Tensor | None = None
        self.columns: dict[str, Tensor] = {}
        self.passed_over = False

    def masks(self) -> list[Tensor]:
        """The masks that act in the block."""
        return [*([] if self.written is None else [self.written]), *self.columns.values()]

    def __deepcopy__(self, memo: dict[int, Any]) -> Here:
        """A copied model starts without masks: those of a training step hang on its graph."""
        return Here()


class AppliedMasks:
    """What the masked modules of one model apply at present, laid out as they need it; one object shared by all.

    Attributes:
        open: The units a forward pass works on; all of them unless closed ones are skipped.
        layer: Mask of the blocks, None where there is none.
        hidden: Mask of the hidden units that are open, None where there is none.
        outside: What applies outside of the blocks.
        blocks: What applies in each block.
    """

    def __init__(self, num_blocks: int, *, head_dim: int, group: int, mask_norms: bool = False) -> None:
        self.num_blocks = num_blocks
        self.mask_norms = mask_norms
        self.head_dim = head_dim
        self.group = group  # query heads that share a key/value head
        self.widths = {"query_width": head_dim * group, "key_value_width": head_dim}
        self.outside = Here()
        self.blocks = [Here() for _ in range(num_blocks)]
        self.set({})

    def set(self, masks: Masks, *, skip_pruned_units: bool = False, opened: OpenUnits | None = None) -> None:
        """Applies ``masks`` from the next forward pass on.

        Args:
            masks: Values by kind.
            skip_pruned_units: Leave out what they close.
            opened: What they leave open, if that is known already; finding out waits for the device.
        """
        self.open = (opened or open_units(masks, **self.widths)) if skip_pruned_units else OpenUnits()
        layer, hidden = masks.get("layer"), masks.get("hidden")
        mean_factor: Tensor | None = None
        if hidden is not None:
            kept = hidden.detach().count_nonzero().clamp(min=1)
            hidden = cut(hidden, self.open.hidden)
            # Masked units are zero already, so their mean square over all units differs from that over the kept ones
            # by this factor alone. It stays on the device: no wait, no shape that depends on data.
            mean_factor = hidden.shape[0] / kept.double()  # a scalar: it takes the type of what it multiplies
        self.layer, self.hidden = layer, hidden
        rows: tuple[Tensor | None, ...] = (hidden,) * self.num_blocks
        if layer is not None:
            rows = (layer[:, None] if hidden is None else torch.outer(layer, hidden)).unbind()
        columns: dict[str, list[Tensor]] = {}
        if "head" in masks:
            columns["query"] = self._of_open(
                "query", masks["head"].repeat_interleave(self.widths["query_width"], dim=1)
            )
        if "intermediate" in masks:
            columns["intermediate"] = self._of_open("intermediate", masks["intermediate"])
        for block, here in enumerate([*self.blocks, self.outside]):
            here.hidden, here.norm, here.mean_factor = hidden, None, mean_factor
            if self.mask_norms and hidden is not None:
                here.hidden, here.norm = (hidden != 0).to(hidden.dtype), hidden
            here.opened = self.open.at(block)
            if here is not self.outside:
                here.written = rows[block]
                here.columns = {axis: of_blocks[block] for axis, of_blocks in columns.items()}
                here.passed_over = block in self.open.passed_over
                if here.opened:
                    for mask in here.masks():
                        varying(mask)

    def _of_open(self, axis: str, mask: Tensor) -> list[Tensor]:
        return [cut(row, self.open.at(block).get(axis)) for block, row in enumerate(mask.unbind())]

    def __deepcopy__(self, memo: dict[int, Any]) -> AppliedMasks:
        """A copied model starts without masks, and its modules share this object's copies of their places."""
        copied = AppliedMasks(self.num_blocks, head_dim=self.head_dim, group=self.group, mask_norms=self.mask_norms)
        copied.outside, copied.blocks = copy.deepcopy((self.outside, self.blocks), memo)
        return copied


class MaskedEmbedding(nn.Embedding):
    """A token embedding whose output is masked along the hidden units."""

    here: Here

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Embeds ``input``."""
        embedded = super().forward(input)
        hidden, opened = self.here.hidden, self.here.opened.get("hidden")
        if opened is not None:
            embedded = embedded.index_select(-1, opened)
        return embedded if hidden is None else embedded * hidden.to(embedded.dtype)


class MaskedNorm(nn.Module):
    """An RMSNorm whose mean runs over the hidden units that are kept; equal to the original where all are."""

    here: Here
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalises the last dimension."""
        factor = self.here.mean_factor
        if factor is None:
            return super().forward(hidden_states)  # type: ignore[no-any-return]  # the original norm is next in line
        x = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) * factor + self.variance_epsilon)
        weight = cut(self.weight, self.here.opened.get("hidden"))
        if self.here.norm is not None:
            weight = weight * self.here.norm.to(weight.dtype)
        return weight * (x * scale).to(hidden_states.dtype)


class MaskedProjection(nn.Linear):
    """A projection that works on open units, and masks what it writes to the residual stream.

    A projection that writes to the stream (``axes[0] == "hidden"``) is masked along both dimensions. One that only
    reads from it needs no mask, since what it reads is masked, but leaves closed units out.
    """

    here: Here
    axes: tuple[str, str]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Projects ``input``."""
        here = self.here
        rows, columns = (here.opened.get(axis) for axis in self.axes)
        weight = cut(self.weight, rows, columns)
        bias: Tensor | None = self.bias
        if bias is not None:
            bias = cut(bias, rows)
        if self.axes[0] == "hidden":
            mask = here.columns.get(self.axes[1])
            if mask is not None:
                weight = weight * mask.to(weight.dtype)
            if here.written is not None:
                written = here.written.to(weight.dtype)
                weight = weight * written[:, None]
                bias = None if bias is None else bias * written
        return functional.linear(input, weight, bias)


class MaskedBlock(nn.Module):
    """A decoder block that is passed over while its mask is zero."""

    here: Here

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Calls the block; never a compiled version of one that is passed over, where there is nothing to compile."""
        if self.here.passed_over:
            uncompiled: Any = self._call_impl
            return uncompiled(hidden_states, *args, **kwargs)
        if "hidden" in self.here.opened:
            varying(hidden_states, hidden_states.ndim - 1)
        return super().__call__(hidden_states, *args, **kwargs)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the block adds to ``hidden_states``, or those alone. With a key/value cache every block takes part."""
        cached = kwargs.get("cache", kwargs.get("past_key_values"))
        if self.here.passed_over and cached is None:
            return pass_over(hidden_states, [*self.parameters(), *self.here.masks()])
        return super().forward(hidden_states, *args, **kwargs)


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def mask_module(module: ModuleT, masked: type[nn.Module], **attributes: Any) -> ModuleT:
    """Exchanges the class of ``module`` for one that is ``masked`` first and what it was second."""
    if not isinstance(module, masked):  # else another wrapper masked it before: this one takes over
        plain: nn.Module = module
        plain.__class__ = _masked_class(masked, type(module))
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


_CLASSES: dict[tuple[type, type], type[Any]] = {}


def _masked_class(masked: type[nn.Module], plain: type[nn.Module]) -> type[Any]:
    """One class for all modules of a kind: to a compiler, modules of different classes have nothing in common."""
    if (masked, plain) not in _CLASSES:
        _CLASSES[masked, plain] = type(f"{masked.__name__}Of{plain.__name__}", (masked, plain), {})
    return _CLASSES[masked, plain]
