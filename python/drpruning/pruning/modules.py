"""The four places where masks act, as mixins over the model's own modules; nothing else of the model is touched.

    embedding            its output, times the hidden mask
    norm of the stream   its mean square runs over the hidden units that are kept
    attention output     its weight, times the head mask along the columns, layer and hidden mask along the rows
    MLP down projection  likewise, with the intermediate mask along the columns

A mask along a weight's columns is the mask of the activations it reads, one along its rows (and bias) the mask of what
it writes. Masking the weight costs a pass over out * in numbers, masking activations one over tokens * (out + in), and
their gradient again: weights are several times cheaper from a few hundred tokens on.

A masked module is the same object with the same parameters under the same names: only its class is exchanged for a
subclass. Where no mask of its kind is applied it runs its original forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Masks = Mapping[str, Tensor]
"""Mask values by kind: ``layer`` [L], ``head`` [L, kv_heads], ``intermediate`` [L, F], ``hidden`` [D]; a kind that is
missing masks nothing."""


class AppliedMasks:
    """What the masked modules of one model apply at present, laid out as they need it; one object shared by all."""

    def __init__(self, num_blocks: int, head_width: int) -> None:
        self.num_blocks = num_blocks
        self.head_width = head_width  # columns of the attention output that one key/value group fills
        self.set({})

    def set(self, masks: Masks) -> None:
        """Applies ``masks`` from the next forward pass on."""
        layer, hidden = masks.get("layer"), masks.get("hidden")
        self.hidden = hidden
        self.mean_factor: Tensor | None = None
        if hidden is not None:
            # Masked units are zero already, so their mean square over all units differs from that over the kept ones
            # by this factor alone. It stays on the device: no wait, no shape that depends on data.
            self.mean_factor = hidden.shape[0] / hidden.detach().count_nonzero().clamp(min=1)
        rows: tuple[Tensor | None, ...] = (hidden,) * self.num_blocks
        if layer is not None:
            rows = (layer[:, None] if hidden is None else torch.outer(layer, hidden)).unbind()
        self.rows = rows
        head, intermediate = masks.get("head"), masks.get("intermediate")
        self.columns: dict[str, tuple[Tensor, ...]] = {}
        if head is not None:
            self.columns["query"] = head.repeat_interleave(self.head_width, dim=1).unbind()
        if intermediate is not None:
            self.columns["intermediate"] = intermediate.unbind()

    def __deepcopy__(self, memo: dict[int, Any]) -> AppliedMasks:
        """A copied model starts without masks: those of a training step hang on its graph."""
        return AppliedMasks(self.num_blocks, self.head_width)


class MaskedEmbedding(nn.Embedding):
    """A token embedding whose output is masked along the hidden units."""

    applied: AppliedMasks

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Embeds ``input``."""
        embedded = super().forward(input)
        hidden = self.applied.hidden
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
        return self.weight * (x * scale).to(hidden_states.dtype)


class MaskedProjection(nn.Linear):
    """A projection from masked units into the residual stream."""

    applied: AppliedMasks
    block: int
    reads: str

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Projects ``input``."""
        rows, columns = self.applied.rows[self.block], self.applied.columns.get(self.reads)
        if rows is None and columns is None:
            return super().forward(input)
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if columns is not None:
            weight = weight * columns[self.block].to(weight.dtype)
        if rows is not None:
            rows = rows.to(weight.dtype)
            weight = weight * rows[:, None]
            bias = None if bias is None else bias * rows
        return functional.linear(input, weight, bias)


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def mask_module(module: ModuleT, masked: type[nn.Module], **attributes: Any) -> ModuleT:
    """Exchanges the class of ``module`` for one that is ``masked`` first and what it was second."""
    if not isinstance(module, masked):  # else another wrapper masked it before: this one takes over
        module.__class__ = type(f"{masked.__name__}Of{type(module).__name__}", (masked, type(module)), {})
    for name, value in attributes.items():
        setattr(module, name, value)
    return module
