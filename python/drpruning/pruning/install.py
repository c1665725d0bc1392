"""Puts masked modules into a model, by the description of its architecture, and checks that it is what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drpruning.errors import ConfigError
from drpruning.pruning.architectures import architecture_of, weights_of
from drpruning.pruning.modules import (
    AppliedMasks,
    MaskedBlock,
    MaskedEmbedding,
    MaskedNorm,
    MaskedProjection,
    mask_module,
)
from drpruning.pruning.target import Target, axis_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def install(model: PreTrainedModel, applied: AppliedMasks) -> PreTrainedModel:
    """Makes the modules of ``model`` apply ``applied``; returns the same object."""
    architecture = architecture_of(model.config)
    mask_module(model.get_submodule(architecture.embedding), MaskedEmbedding, here=applied.outside)
    mask_module(model.get_submodule(architecture.final_norm), MaskedNorm, here=applied.outside)
    output = model.get_submodule(architecture.output)
    mask_module(output, MaskedProjection, here=applied.outside, axes=("vocab", "hidden"))
    for block, here in enumerate(applied.blocks):
        path = f"{architecture.blocks}.{block}"
        mask_module(model.get_submodule(path), MaskedBlock, here=here)
        for part in architecture.block:
            module = model.get_submodule(f"{path}.{part.name}")
            if part.axes == ("hidden",):
                mask_module(module, MaskedNorm, here=here)
            elif "hidden" in part.axes:
                mask_module(module, MaskedProjection, here=here, axes=part.axes)
    return model


def check_parameters(model: PreTrainedModel) -> None:
    """Makes sure the model has exactly the parameters of its description, in the shapes of its config.

    Raises:
        ConfigError: It has others; names the first.
    """
    along = axis_sizes(model.config, Target())
    expected = {weight.name: tuple(along[axis] for axis in weight.axes) for weight in weights_of(model.config)}
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ConfigError(
                f"cannot mask this {type(model).__name__}: parameter {name!r} has shape {found.get(name, 'none')}, "
                f"its config asks for {expected.get(name, 'none')}",
                "Pass the plain causal language model, without adapters, heads or other additions.",
            )
