"""Masked modules: mixins over the model's own modules that apply masks; nothing else of the model is changed.

    embedding            its output, times the hidden mask; with ``mask_norms`` by one where that is not zero
    norm of the stream   its mean is over the kept hidden units; with ``mask_norms`` its output is masked too
    norm over all heads  (OLMo 2) its mean is over the kept heads
    attention output     its weight, times the head mask along the columns, layer and hidden mask along the rows
    MLP down projection  likewise, with the intermediate mask along the columns
    norm after a block   (Gemma 2, OLMo 2) its gain, times layer and hidden mask; the rows of the projection before it
                         are multiplied by one where a hidden unit is kept, since the norm undoes any other factor
    router               its logits, plus the logarithm of the expert mask (:class:`MaskedRouter`)
    experts              their down projections, as that of an MLP
    attention sinks      none: a sink acts on the output of its head alone, which is masked

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
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from drpruning.errors import ConfigError
from drpruning.pruning.architecture_spec import Dimension, Norm, Part, Routing, entries
from drpruning.pruning.architectures import architecture_of, normalises_weights, parts_of, weights_of
from drpruning.pruning.sparse_forward import (
    ActiveUnits,
    entries_of,
    find_active_units,
    gather,
    mark_dynamic,
    skip_block,
)
from drpruning.pruning.target import Target, axis_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Masks = Mapping[str, Tensor]
"""Mask values by kind: ``layer`` [L], ``head`` [L, kv_heads], ``intermediate`` [L, F], ``hidden`` [D]; in a mixture of
experts ``expert`` [L, E] and ``intermediate`` [L, E, F]. A kind that is missing masks nothing."""


CACHES = ("cache", "past_key_values", "layer_past")
"""Arguments for the key/value cache of the blocks of transformers."""


class BlockMasks:
    """The masks of one block, or those outside of blocks.

    A masked module reads the masks of its block and not those of the model, so that one compiled graph serves every
    block: nothing in the graph depends on the number of the block.

    Attributes:
        active: Indices of the units to compute with, by dimension of a weight; a dimension that is missing has all. The
            masks below have these units only.
        hidden: Mask of the embedding's output; None masks nothing. With ``mask_norms`` it is one for every unit that
            is kept: the public code multiplies the embedding where it is read.
        norm: Mask of the norms' outputs; None masks nothing.
        kept: By axis that norms compute means over, one for each entry that is kept, else zero.
        mean_factors: By axis, the factor from the mean over all entries, zero where pruned, to that over kept ones.
        output: Mask of what the block writes to the residual stream.
        inputs: Masks of what the block's projections read, for the axes ``query`` and ``intermediate``.
        expert: Mask of the block's experts; None masks nothing.
        skipped: Whether the block is pruned as a whole.
    """

    def __init__(self) -> None:
        self.active: dict[Dimension, Tensor] = {}
        self.hidden: Tensor | None = None
        self.norm: Tensor | None = None
        self.kept: dict[Dimension, Tensor] = {}
        self.mean_factors: dict[Dimension, Tensor] = {}
        self.output: Tensor | None = None
        self.inputs: dict[Dimension, Tensor] = {}
        self.expert: Tensor | None = None
        self.skipped = False

    def tensors(self) -> list[Tensor]:
        """Return the masks that act inside the block."""
        outside = (mask for mask in (self.output, self.expert) if mask is not None)
        return [*outside, *self.inputs.values()]

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

    def __init__(self, config: PreTrainedConfig, *, mask_norms: bool = False) -> None:
        self.config = config
        self.num_blocks = config.num_hidden_layers
        self.mask_norms = mask_norms
        self.along = axis_sizes(config, Target())
        group = self.along["query"] // self.along["key_value"]  # query heads that share a key/value head
        self.widths = {"query_width": self.along["head_dim"] * group, "key_value_width": self.along["head_dim"]}
        architecture, parts = architecture_of(config), parts_of(config)
        self.skip_heads = architecture.skip_heads
        self.dimensions = dict.fromkeys(dimension for part in parts for dimension in part.axes)
        self.head_norms = [part.axes[0] for part in parts if part.is_norm and part.axes[0] in ("query", "key_value")]
        self.outside = BlockMasks()
        self.blocks = [BlockMasks() for _ in range(self.num_blocks)]
        self.set({})

    def set(self, masks: Masks, *, skip_pruned_units: bool = False, active: ActiveUnits | None = None) -> None:
        """Apply ``masks`` from the next forward pass on.

        Args:
            masks: Values by kind.
            skip_pruned_units: Leave pruned units out of the computation.
            active: The active units of ``masks``, if they are known; finding them synchronises with the device.
        """
        self.active = (active or find_active_units(masks, **self.widths)) if skip_pruned_units else ActiveUnits()
        if not self.skip_heads:
            self.active = replace(self.active, query={}, key_value={})
        layer, hidden = masks.get("layer"), masks.get("hidden")
        kept: Tensor | None = None
        mean_factor: Tensor | None = None
        if hidden is not None:
            number = hidden.detach().count_nonzero().clamp(min=1)
            hidden = gather(hidden, self.active.hidden)
            kept = (hidden.detach() != 0).to(hidden.dtype)
            # Masked units are zero already, so their mean square over all units differs from that over the kept ones
            # by this factor alone. It stays on the device: no synchronisation, no shape that depends on data.
            mean_factor = hidden.shape[0] / number.double()  # a scalar takes the dtype of what it multiplies
        self.layer, self.hidden = layer, hidden
        outputs: tuple[Tensor | None, ...] = (hidden,) * self.num_blocks
        if layer is not None:
            outputs = (layer[:, None] if hidden is None else torch.outer(layer, hidden)).unbind()
        inputs: dict[Dimension, list[Tensor]] = {}
        kept_heads: dict[Dimension, list[Tensor]] = {}
        if "head" in masks:
            inputs["query"] = self._active_entries("query", self._of_heads(masks["head"], "query"))
            kept_values = (masks["head"].detach() != 0).to(masks["head"].dtype)
            for axis in self.head_norms:
                kept_heads[axis] = self._active_entries(axis, self._of_heads(kept_values, axis))
        if "intermediate" in masks:
            inputs["intermediate"] = self._active_entries("intermediate", masks["intermediate"])
        for block, applied in enumerate([*self.blocks, self.outside]):
            applied.hidden, applied.norm = hidden, None
            if self.mask_norms:
                applied.hidden, applied.norm = kept, hidden
            applied.kept = {} if kept is None else {"hidden": kept}
            applied.mean_factors = {} if mean_factor is None else {"hidden": mean_factor}
            applied.active = dict(self.active.in_block(block))
            if applied is not self.outside:
                applied.output = outputs[block]
                applied.inputs = {axis: by_block[block] for axis, by_block in inputs.items()}
                applied.expert = masks["expert"][block] if "expert" in masks else None
                for normed, rows in kept_heads.items():
                    applied.kept[normed] = rows[block]
                    number = rows[block].count_nonzero().clamp(min=1)
                    applied.mean_factors[normed] = rows[block].shape[0] / number.double()
                applied.skipped = block in self.active.skipped_blocks
                if applied.active:
                    self._add_dimensions(applied)
                    for mask in (*applied.tensors(), *applied.kept.values()):
                        mark_dynamic(mask)

    def _of_heads(self, heads: Tensor, axis: Dimension) -> Tensor:
        """Repeat the values of key/value heads, [L, kv_heads], for each entry along an axis."""
        return heads.repeat_interleave(entries(axis, self.along) // heads.shape[1], dim=1)

    def _active_entries(self, axis: Dimension, mask: Tensor) -> list[Tensor]:
        return [gather(row, self.active.in_block(block).get(axis)) for block, row in enumerate(mask.unbind())]

    def _add_dimensions(self, applied: BlockMasks) -> None:
        """Add the active entries along fused dimensions, which follow from those along simple ones."""
        for dimension in self.dimensions:
            if dimension not in applied.active:
                found = entries_of(dimension, applied.active, self.along)
                if found is not None:
                    applied.active[dimension] = mark_dynamic(found)

    def __deepcopy__(self, memo: dict[int, Any]) -> AppliedMasks:
        """Return an object without masks, which the copied modules share: ``memo`` maps each block to its copy."""
        copied = AppliedMasks(self.config, mask_norms=self.mask_norms)
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
    """A norm whose mean is over the kept units; equal to the original where all are kept.

    Over the hidden units it is a norm of the stream; where it writes to the stream, layer and hidden masks multiply its
    output. Over the entries of all heads its mean is over the kept heads. With a gain for each head, only the gains of
    active heads are used.
    """

    block_masks: BlockMasks
    axis: Dimension
    writes: bool
    norm: Norm
    epsilon: float
    is_torch_layer_norm: bool
    weight: Tensor
    bias: Tensor | None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension of ``hidden_states``, [B, T, D]."""
        masks, axis = self.block_masks, self.axis
        active, factor = masks.active.get(axis), masks.mean_factors.get(axis)
        mask_D = masks.output if self.writes else masks.norm if axis == "hidden" else None
        if active is None and factor is None and mask_D is None:
            return super().forward(hidden_states)  # type: ignore[no-any-return]  # the original norm is the next base
        x_BTD = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        gain_D, bias_D = gather(self.weight, *_first(self.weight, active)), getattr(self, "bias", None)
        if self.norm.offset:
            gain_D = gain_D.to(x_BTD.dtype) + self.norm.offset
        if bias_D is not None:
            bias_D = gather(bias_D, active)
        if mask_D is not None:
            gain_D = gain_D * mask_D.to(gain_D.dtype)
            bias_D = None if bias_D is None else bias_D * mask_D.to(bias_D.dtype)
        kept_D = None if factor is None else masks.kept[axis].to(x_BTD.dtype)
        if kept_D is not None and axis != "hidden":  # hidden units are masked where they are written
            x_BTD = x_BTD * kept_D
        if self.norm.kind == "layer":
            return self._layer_norm(x_BTD, gain_D, bias_D, factor, kept_D).to(hidden_states.dtype)
        mean_square_BT1 = x_BTD.square().mean(-1, keepdim=True)
        if factor is not None:
            mean_square_BT1 = mean_square_BT1 * factor
        normed_BTD = x_BTD * torch.rsqrt(mean_square_BT1 + self.epsilon)
        if self.norm.float32_gain:
            return (normed_BTD * gain_D.to(normed_BTD.dtype)).to(hidden_states.dtype)
        return gain_D * normed_BTD.to(hidden_states.dtype)

    def _layer_norm(
        self, x_BTD: Tensor, gain_D: Tensor, bias_D: Tensor | None, factor: Tensor | None, kept_D: Tensor | None
    ) -> Tensor:
        """Subtract mean and divide by deviation of the kept units, in the steps of the original: equal to the bit.

        A pruned unit is zero in ``x_BTD``, but not after the mean is subtracted; ``kept_D`` makes it zero again.
        """
        gain_D, bias_D = gain_D.to(x_BTD.dtype), None if bias_D is None else bias_D.to(x_BTD.dtype)
        if not self.is_torch_layer_norm:
            mean_BT1 = x_BTD.mean(-1, keepdim=True)
            centred_BTD = x_BTD - (mean_BT1 if factor is None else mean_BT1 * factor)
            if kept_D is not None:
                centred_BTD = centred_BTD * kept_D
            variance_BT1 = centred_BTD.square().mean(-1, keepdim=True)
            if factor is not None:
                variance_BT1 = variance_BT1 * factor
            normed_BTD = gain_D * (centred_BTD * torch.rsqrt(variance_BT1 + self.epsilon))
            return normed_BTD if bias_D is None else normed_BTD + bias_D
        if factor is not None and kept_D is not None:
            # torch's kernel takes means over all units: pruned ones are set to the mean of the kept ones, and the
            # distances from it are multiplied so that the variance over all is that over the kept ones
            mean_BT1, stretch = x_BTD.mean(-1, keepdim=True) * factor, factor.sqrt()
            x_BTD = torch.where(kept_D != 0, x_BTD, mean_BT1)
            x_BTD = x_BTD + (x_BTD - mean_BT1) * (stretch - 1)
            gain_D = gain_D * kept_D / stretch
            bias_D = None if bias_D is None else bias_D * kept_D
        return functional.layer_norm(x_BTD, x_BTD.shape[-1:], gain_D, bias_D, self.epsilon)


def _first(weight: Tensor, index: Tensor | None) -> list[Tensor | None]:
    """Return indices along each dimension of a weight: ``index`` along the first, all along the others."""
    return [index, *[None] * (weight.ndim - 1)]


class MaskedProjection(nn.Linear):
    """A projection that computes active units, and masks what it writes to the residual stream.

    A projection that writes to the stream is masked along both dimensions. Where a norm follows, that norm writes: the
    projection's rows are multiplied by one or zero. A projection that only reads from the stream needs no mask, since
    its input is masked, and leaves out pruned units.
    """

    block_masks: BlockMasks
    axes: tuple[Dimension, Dimension]
    writes: bool

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
            mask_O = masks.output if self.writes else masks.kept.get("hidden")
            if mask_O is not None:
                mask_O = mask_O.to(weight_OI.dtype)
                weight_OI = weight_OI * mask_O[:, None]
                bias_O = None if bias_O is None else bias_O * mask_O
        return functional.linear(input, weight_OI, bias_O)


class MaskedRouter(nn.Module):
    """A router whose logits have the logarithm of the expert mask added: a mask multiplies the odds of its expert.

    With logits l and masks z, the softmax is that of l + log z, so expert e has the weight

        z_e exp(l_e) / sum over j of z_j exp(l_j)

    before the experts with the largest weights are chosen. The sum is over the chosen experts where the softmax is.

    - z = 0 adds minus infinity. The weight is exactly zero, the other weights are those of a router without the row,
      and tokens are routed to other experts. Multiplying an expert's output by z instead would leave tokens with fewer
      experts, which no model without the expert computes.
    - z = 1 adds zero, to the bit.
    - Between, the weights are continuous in z, and the gradient dl_e / dz_e = 1 / z_e is finite where weights are
      concerned, since they are proportional to z_e.

    An expert with z = 0 has a gradient of zero, and so has its mask: no token passes it. If fewer masks than chosen
    experts are above zero, the rest of the choice has weights of zero; if none is, all weights are zero.
    """

    block_masks: BlockMasks
    routing: Routing
    top_k: int
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Route tokens, [tokens, D]; return the logits [tokens, E], and weights and numbers of experts [tokens, k]."""
        mask_E, active = self.block_masks.expert, self.block_masks.active.get("hidden")
        if mask_E is None and active is None:
            return super().forward(hidden_states)  # type: ignore[no-any-return]  # the original router is the next base
        hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
        bias_E = getattr(self, "bias", None)
        logits_NE = functional.linear(hidden_states, gather(self.weight, None, active), bias_E)
        masked_NE = logits_NE.float()
        any_active: Tensor | None = None
        if mask_E is not None:
            positive_E = mask_E > 0
            any_active = positive_E.any()
            log_mask_E = torch.where(positive_E, mask_E, 1.0).log()
            log_mask_E = torch.where(positive_E | ~any_active, log_mask_E, -torch.inf)
            masked_NE = masked_NE + log_mask_E
        if self.routing.softmax == "chosen":
            chosen_NK, experts_NK = torch.topk(masked_NE.to(logits_NE.dtype), self.top_k, dim=-1)
            weights_NK = torch.softmax(chosen_NK, dim=-1)
        else:
            weights_NK, experts_NK = torch.topk(torch.softmax(masked_NE, dim=-1), self.top_k, dim=-1)
            if self.routing.normalise:
                weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        if any_active is not None:
            weights_NK = weights_NK * any_active
        if not self.routing.float32_weights:
            weights_NK = weights_NK.to(logits_NE.dtype)
        return masked_NE.to(logits_NE.dtype), weights_NK, experts_NK


class _ReplacedParameters:
    """A module with other tensors in place of some parameters; the module does not change.

    Assigning the tensors to the module would be a side effect, which a compiler does not trace where the forward pass
    is recomputed in the backward pass.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.module = module
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class MaskedParameters(nn.Module):
    """A module that reads parameters directly: the experts of a block, or an attention with a sink for each head.

    Experts are masked as :class:`MaskedProjection`, in the stacked weights and biases of each projection. Pruned
    experts cost nothing, since no token is routed to them. Pruned units inside experts are computed.
    """

    block_masks: BlockMasks
    parts: tuple[Part, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module with masked tensors in place of its parameters."""
        tensors = {part.weight: self._masked_weight(part, part.weight, part.axes) for part in self.parts}
        biased = [part for part in self.parts if part.bias]
        tensors |= {part.bias_name: self._masked_weight(part, part.bias_name, part.bias_axes) for part in biased}
        plain: Any = super(MaskedParameters, type(self))
        return plain.forward(_ReplacedParameters(self, tensors), *args, **kwargs)

    def _masked_weight(self, part: Part, name: str, axes: tuple[Dimension, ...]) -> Tensor:
        masks = self.block_masks
        tensor = gather(getattr(self, name), *(masks.active.get(axis) for axis in axes))
        if not part.is_stacked or part.matrix_axes[0] != "hidden":
            return tensor
        rows = axes.index("hidden")
        mask_EI = masks.inputs.get(part.matrix_axes[1]) if part.matrix_axes[1] in axes else None
        if mask_EI is not None:
            tensor = tensor * mask_EI.to(tensor.dtype).unsqueeze(rows)
        mask_O = masks.output if part.writes_to_stream else masks.kept.get("hidden")
        if mask_O is not None:
            tensor = tensor * mask_O.to(tensor.dtype).view(-1, *[1] * (tensor.ndim - 1 - rows))
        return tensor


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
        cached = any(kwargs.get(name) is not None for name in CACHES)
        if self.block_masks.skipped and not cached:
            return skip_block(hidden_states, [*self.parameters(), *self.block_masks.tensors()])
        return super().forward(hidden_states, *args, **kwargs)


def install(model: PreTrainedModel, applied: AppliedMasks) -> PreTrainedModel:
    """Mask the modules of ``model`` that its architecture describes, in place; return the same object."""
    architecture, parts = architecture_of(model.config), parts_of(model.config)
    outside, routing = applied.outside, architecture.routing
    if routing is not None:
        routing = replace(routing, normalise=normalises_weights(model.config, routing))
    mask_module(model.get_submodule(architecture.embedding.name), MaskedEmbedding, block_masks=outside)
    for part in (architecture.final_norm, architecture.output):
        _mask_part(model.get_submodule(part.name), part, architecture.norm, outside)
    for block, masks in enumerate(applied.blocks):
        path = f"{architecture.blocks}.{block}"
        mask_module(model.get_submodule(path), MaskedBlock, block_masks=masks)
        for part in parts:
            module = model.get_submodule(f"{path}.{part.name}")
            if part.is_router and routing is not None:
                mask_module(module, MaskedRouter, block_masks=masks, routing=routing)
            elif part.is_stacked or part.axes == ("query_head",):
                of_module = tuple(each for each in parts if each.name == part.name)
                mask_module(module, MaskedParameters, block_masks=masks, parts=of_module)
            elif part.axes[0] != "head_dim" and part.axes != ("one",):
                _mask_part(module, part, architecture.norm, masks)
    return model


def _mask_part(module: Any, part: Part, norm: Norm, masks: BlockMasks) -> None:
    if not part.is_norm:
        mask_module(module, MaskedProjection, block_masks=masks, axes=part.axes, writes=part.writes_to_stream)
        return
    epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    if epsilon is None:
        raise ConfigError(
            f"cannot mask the norm {part.name!r}: {type(module).__name__} has no variance_epsilon or eps",
            "Describe a model class whose norms have one.",
        )
    mask_module(
        module,
        MaskedNorm,
        block_masks=masks,
        axis=part.axes[0],
        writes=part.writes_to_stream,
        norm=norm,
        epsilon=float(epsilon),
        is_torch_layer_norm=isinstance(module, nn.LayerNorm),
    )


def check_parameters(model: PreTrainedModel) -> None:
    """Check that the model has exactly the parameters of its architecture, in the shapes of its config.

    Raises:
        ConfigError: A parameter is missing, unknown or of another shape; names the first.
    """
    along = axis_sizes(model.config, Target())
    expected = {weight.name: tuple(entries(axis, along) for axis in weight.axes) for weight in weights_of(model.config)}
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
