"""Masked modules: mixins over the model's own modules that apply masks; nothing else of the model is changed.

    embedding            its output, times the hidden mask; with ``mask_norms`` by one where that is not zero
    norm of the stream   its mean square is over the kept hidden units; with ``mask_norms`` its output is masked too
    attention output     its weight, times the head mask along the columns, layer and hidden mask along the rows
    MLP down projection  likewise, with the intermediate mask along the columns

Where pruned units are skipped, these and the other projections compute with active units only, and pruned blocks are
skipped; see :mod:`drpruning.pruning.sparse_forward`.

A mask along a weight's columns is the mask of the activations it reads, one along its rows (and bias) the mask of what
it writes. Masking the weight costs a pass over out * in numbers, masking activations one over tokens * (out + in), and
their gradient again: weights are several times cheaper from a few hundred tokens on.

A masked module is the same object with the same parameters under the same names: only its class is replaced by a
subclass. Where no mask is applied it computes what it computed before.

Shape suffixes: B rows, T positions, D hidden units, O and I outputs and inputs of a projection; active ones only, where
pruned units are skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from drpruning.errors import ConfigError
from drpruning.pruning.architectures import architecture_of, weights_of
from drpruning.pruning.sparse_forward import ActiveUnits, find_active_units, gather, mark_dynamic, skip_block
from drpruning.pruning.target import Target, axis_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Masks = Mapping[str, Tensor]
"""Mask values by kind: ``layer`` [L], ``head`` [L, kv_heads], ``intermediate`` [L, F], ``hidden`` [D]; a kind that is
missing masks nothing."""


class BlockMasks:
    """The masks of one block, or those outside of blocks.

    A masked module reads the masks of its block and not those of the model, so that one compiled graph serves every
    block: nothing in the graph depends on the number of the block.

    Attributes:
        active: Indices of the units to compute with, by axis; an axis that is missing has all. The masks below have
            these units only.
        hidden: Mask of the embedding's output; None masks nothing. With ``mask_norms`` it is one for every unit that
            is kept: the public code multiplies the embedding where it is read.
        norm: Mask of the norms' outputs; None masks nothing.
        mean_square_factor: Factor on a norm's mean square.
        output: Mask of what the block writes to the residual stream.
        inputs: Masks of what the block's projections read, for the axes ``query`` and ``intermediate``.
        skipped: Whether the block is pruned as a whole.
    """

    def __init__(self) -> None:
        self.active: dict[str, Tensor] = {}
        self.hidden: Tensor | None = None
        self.norm: Tensor | None = None
        self.mean_square_factor: Tensor | None = None
        self.output: Tensor | None = None
        self.inputs: dict[str, Tensor] = {}
        self.skipped = False

    def tensors(self) -> list[Tensor]:
        """Return the masks that act inside the block."""
        return [*([] if self.output is None else [self.output]), *self.inputs.values()]

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockMasks:
        """Return an object without masks: those of a training step belong to its autograd graph."""
        return BlockMasks()


class AppliedMasks:
    """The masks that the masked modules of one model apply, laid out by block; all modules share one object.

    Attributes:
        active: The units that a forward pass computes; all of them unless pruned units are skipped.
        layer: Mask of the blocks, None where there is none.
        hidden: Mask of the active hidden units, None where there is none.
        outside: Masks outside of the blocks.
        blocks: Masks of each block.
    """

    def __init__(self, num_blocks: int, *, head_dim: int, group: int, mask_norms: bool = False) -> None:
        self.num_blocks = num_blocks
        self.mask_norms = mask_norms
        self.head_dim = head_dim
        self.group = group  # query heads that share a key/value head
        self.widths = {"query_width": head_dim * group, "key_value_width": head_dim}
        self.outside = BlockMasks()
        self.blocks = [BlockMasks() for _ in range(num_blocks)]
        self.set({})

    def set(self, masks: Masks, *, skip_pruned_units: bool = False, active: ActiveUnits | None = None) -> None:
        """Apply ``masks`` from the next forward pass on.

        Args:
            masks: Values by kind.
            skip_pruned_units: Leave pruned units out of the computation.
            active: The active units of ``masks``, if they are known; finding them synchronises with the device.
        """
        self.active = (active or find_active_units(masks, **self.widths)) if skip_pruned_units else ActiveUnits()
        layer, hidden = masks.get("layer"), masks.get("hidden")
        mean_square_factor: Tensor | None = None
        if hidden is not None:
            kept = hidden.detach().count_nonzero().clamp(min=1)
            hidden = gather(hidden, self.active.hidden)
            # Masked units are zero already, so their mean square over all units differs from that over the kept ones
            # by this factor alone. It stays on the device: no synchronisation, no shape that depends on data.
            mean_square_factor = hidden.shape[0] / kept.double()  # a scalar takes the dtype of what it multiplies
        self.layer, self.hidden = layer, hidden
        outputs: tuple[Tensor | None, ...] = (hidden,) * self.num_blocks
        if layer is not None:
            outputs = (layer[:, None] if hidden is None else torch.outer(layer, hidden)).unbind()
        inputs: dict[str, list[Tensor]] = {}
        if "head" in masks:
            queries = masks["head"].repeat_interleave(self.widths["query_width"], dim=1)
            inputs["query"] = self._active_entries("query", queries)
        if "intermediate" in masks:
            inputs["intermediate"] = self._active_entries("intermediate", masks["intermediate"])
        for block, applied in enumerate([*self.blocks, self.outside]):
            applied.hidden, applied.norm, applied.mean_square_factor = hidden, None, mean_square_factor
            if self.mask_norms and hidden is not None:
                applied.hidden, applied.norm = (hidden != 0).to(hidden.dtype), hidden
            applied.active = self.active.in_block(block)
            if applied is not self.outside:
                applied.output = outputs[block]
                applied.inputs = {axis: by_block[block] for axis, by_block in inputs.items()}
                applied.skipped = block in self.active.skipped_blocks
                if applied.active:
                    for mask in applied.tensors():
                        mark_dynamic(mask)

    def _active_entries(self, axis: str, mask: Tensor) -> list[Tensor]:
        return [gather(row, self.active.in_block(block).get(axis)) for block, row in enumerate(mask.unbind())]

    def __deepcopy__(self, memo: dict[int, Any]) -> AppliedMasks:
        """Return an object without masks, which the copied modules share: ``memo`` maps each block to its copy."""
        copied = AppliedMasks(self.num_blocks, head_dim=self.head_dim, group=self.group, mask_norms=self.mask_norms)
        copied.outside, copied.blocks = copy.deepcopy((self.outside, self.blocks), memo)
        return copied


class MaskedEmbedding(nn.Embedding):
    """A token embedding whose output is masked along the hidden units."""

    block_masks: BlockMasks

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Embed ``input``, int64 [B, T]; return [B, T, D]."""
        embedded_BTD = super().forward(input)
        mask_D, active = self.block_masks.hidden, self.block_masks.active.get("hidden")
        if active is not None:
            embedded_BTD = embedded_BTD.index_select(-1, active)
        return embedded_BTD if mask_D is None else embedded_BTD * mask_D.to(embedded_BTD.dtype)


class MaskedNorm(nn.Module):
    """An RMSNorm whose mean is over the kept hidden units; equal to the original where all are kept."""

    block_masks: BlockMasks
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension of ``hidden_states``, [B, T, D]."""
        masks = self.block_masks
        factor = masks.mean_square_factor
        if factor is None:
            return super().forward(hidden_states)  # type: ignore[no-any-return]  # the original norm is the next base
        x_BTD = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        scale_BT1 = torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) * factor + self.variance_epsilon)
        weight_D = gather(self.weight, masks.active.get("hidden"))
        if masks.norm is not None:
            weight_D = weight_D * masks.norm.to(weight_D.dtype)
        return weight_D * (x_BTD * scale_BT1).to(hidden_states.dtype)


class MaskedProjection(nn.Linear):
    """A projection that computes active units, and masks what it writes to the residual stream.

    A projection that writes to the stream (``axes[0] == "hidden"``) is masked along both dimensions. A projection that
    only reads from the stream needs no mask, since its input is masked, and leaves out pruned units.
    """

    block_masks: BlockMasks
    axes: tuple[str, str]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Project ``input``, [B, T, I], to [B, T, O]."""
        masks = self.block_masks
        rows, columns = (masks.active.get(axis) for axis in self.axes)
        weight_OI = gather(self.weight, rows, columns)
        bias_O: Tensor | None = self.bias
        if bias_O is not None:
            bias_O = gather(bias_O, rows)
        if self.axes[0] == "hidden":
            mask_I = masks.inputs.get(self.axes[1])
            if mask_I is not None:
                weight_OI = weight_OI * mask_I.to(weight_OI.dtype)
            if masks.output is not None:
                mask_O = masks.output.to(weight_OI.dtype)
                weight_OI = weight_OI * mask_O[:, None]
                bias_O = None if bias_O is None else bias_O * mask_O
        return functional.linear(input, weight_OI, bias_O)


class MaskedBlock(nn.Module):
    """A decoder block that is skipped while its mask is zero."""

    block_masks: BlockMasks

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the block; a skipped block without its compiled version, since there is nothing to compile."""
        if self.block_masks.skipped:
            uncompiled: Any = self._call_impl
            return uncompiled(hidden_states, *args, **kwargs)
        if "hidden" in self.block_masks.active:
            mark_dynamic(hidden_states, hidden_states.ndim - 1)
        return super().__call__(hidden_states, *args, **kwargs)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the block's output; with a key/value cache every block is computed."""
        cached = kwargs.get("cache", kwargs.get("past_key_values"))
        if self.block_masks.skipped and cached is None:
            return skip_block(hidden_states, [*self.parameters(), *self.block_masks.tensors()])
        return super().forward(hidden_states, *args, **kwargs)


def install(model: PreTrainedModel, applied: AppliedMasks) -> PreTrainedModel:
    """Mask the modules of ``model`` that its architecture describes, in place; return the same object."""
    architecture = architecture_of(model.config)
    outside = applied.outside
    mask_module(model.get_submodule(architecture.embedding), MaskedEmbedding, block_masks=outside)
    mask_module(model.get_submodule(architecture.final_norm), MaskedNorm, block_masks=outside)
    output = model.get_submodule(architecture.output)
    mask_module(output, MaskedProjection, block_masks=outside, axes=("vocab", "hidden"))
    for block, masks in enumerate(applied.blocks):
        path = f"{architecture.blocks}.{block}"
        mask_module(model.get_submodule(path), MaskedBlock, block_masks=masks)
        for part in architecture.block:
            module = model.get_submodule(f"{path}.{part.name}")
            if part.axes == ("hidden",):
                mask_module(module, MaskedNorm, block_masks=masks)
            elif "hidden" in part.axes:
                mask_module(module, MaskedProjection, block_masks=masks, axes=part.axes)
    return model


def check_parameters(model: PreTrainedModel) -> None:
    """Check that the model has exactly the parameters of its architecture, in the shapes of its config.

    Raises:
        ConfigError: A parameter is missing, unknown or of another shape; names the first.
    """
    along = axis_sizes(model.config, Target())
    expected = {weight.name: tuple(along[axis] for axis in weight.axes) for weight in weights_of(model.config)}
    got = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise ConfigError(
                f"cannot mask this {type(model).__name__}: parameter {name!r}: expected shape "
                f"{expected.get(name, 'none')} from its config, got {got.get(name, 'none')}",
                "Pass the plain causal language model, without adapters, heads or other additions.",
            )


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def mask_module(module: ModuleT, masked: type[nn.Module], **attributes: Any) -> ModuleT:
    """Replace the class of ``module`` by a subclass of ``masked`` and the class itself, and set ``attributes``."""
    if not isinstance(module, masked):  # else an earlier wrapper has masked it, and only the attributes are replaced
        plain: nn.Module = module
        plain.__class__ = _masked_class(masked, type(module))
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


_CLASSES: dict[tuple[type, type], type[Any]] = {}


def _masked_class(masked: type[nn.Module], plain: type[nn.Module]) -> type[Any]:
    """Return one class for all modules of a kind: a compiler shares no graph between modules of different classes."""
    if (masked, plain) not in _CLASSES:
        _CLASSES[masked, plain] = type(f"{masked.__name__}Of{plain.__name__}", (masked, plain), {})
    return _CLASSES[masked, plain]
