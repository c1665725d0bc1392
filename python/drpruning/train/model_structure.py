"""The structure of a causal model of any architecture: blocks, output layer, parameters, shape, operations.

Continued pretraining needs no list of architectures: blocks are found by their number, parameters are counted on a
model without storage, and one pass through the output layer shows whether losses can be computed in chunks.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from drpruning.config import DataConfig, TrainingConfig
from drpruning.errors import ConfigError
from drpruning.hf.models import build_on_meta, text_config
from drpruning.pruning import Target, parameter_count
from drpruning.pruning.architectures import ARCHITECTURES, SIZE_FIELDS, architecture_of
from drpruning.pruning.model_flops import products_per_token

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""Fields of a configuration for the experts of a block; a token passes through ``num_experts_per_tok`` of them."""


def supports_masks(config: Any) -> bool:
    """Return whether :mod:`drpruning.pruning` supports models of this type."""
    return getattr(config, "model_type", None) in ARCHITECTURES


def check_model(config: Any, training: TrainingConfig, data: DataConfig, *, hidden: bool = False) -> None:
    """Check that the stages of a recipe support a model, before its weights are read.

    Args:
        config: transformers configuration of the model.
        training: The recipe's section.
        data: The recipe's section.
        hidden: Whether distillation compares its residual streams with those of a teacher.

    Raises:
        ConfigError: It is quantised, no causal language model, or does not support a setting.
    """
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            "the model is quantised (config.quantization_config is set); training needs floating point weights",
            "Give the original checkpoint in bfloat16 or float32.",
        )
    if supports_masks(config) and training.cross_entropy in ("auto", "plain"):
        return
    model = build_on_meta(config)
    if training.cross_entropy not in ("auto", "plain") and not has_plain_head(model):
        raise ConfigError(
            f"training.cross_entropy {training.cross_entropy} needs logits that are the output layer's output; "
            f"a model of type {config.model_type!r} changes them afterwards or adds a bias",
            "Use --set training.cross_entropy=auto, which computes all logits for such a model.",
        )
    if supports_masks(config):
        return
    if data.document_mask and "position_ids" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            f"data.document_mask needs a model that takes position_ids; one of type {config.model_type!r} does not",
            "Use --set data.document_mask=false.",
        )
    if hidden or training.compile or training.activation_checkpointing != "none":
        decoder_blocks(model)


def decoder_blocks(model: Any) -> list[nn.Module]:
    """Return the decoder blocks of a model of transformers, in order.

    Raises:
        ConfigError: There is no module list with as many modules as the configuration has blocks.
    """
    if supports_masks(model.config):
        return list(model.get_submodule(architecture_of(model.config).blocks).children())
    number = getattr(text_config(model.config), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise ConfigError(
        f"the decoder blocks of a model of type {model.config.model_type!r} are not found: "
        f"it has no list of {number} modules",
        "Use one process without training.compile or activation_checkpointing, and continue.distill.hidden_weight=0.",
    )


def has_plain_head(model: Any) -> bool:
    """Return whether the logits are exactly the output of the output layer, a product without a bias.

    Only then can losses replace the logits there (:func:`drpruning.train.losses.replace_logits`). Models that cap or
    scale their logits are counterexamples. The body of the model does not run: zeros replace its last hidden states.

    Args:
        model: A model of transformers; it needs no storage.
    """
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        return False
    body, weight, seen = model.base_model, head.weight, []
    if body is model:
        return False
    hidden_BTD = torch.zeros((1, 2, head.in_features), dtype=weight.dtype, device=weight.device)
    body.forward = lambda *arguments, **named: _LastHidden(hidden_BTD)
    handle = head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            tokens_BT = torch.zeros((1, 2), dtype=torch.int64, device=weight.device)
            logits = model(input_ids=tokens_BT, use_cache=False).logits
    except (
        RuntimeError,
        AttributeError,
        TypeError,
        KeyError,
    ):  # needs more outputs of its body than the last hidden states
        return False
    finally:
        handle.remove()
        del body.forward  # restores that of its class
    return len(seen) == 1 and seen[0] is logits


class _LastHidden:
    """The output of a model's body: its last hidden states, and None for every other attribute."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        self.last_hidden_state = hidden_BTD

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int) -> Tensor:
        return self.last_hidden_state


def num_parameters(config: Any) -> int:
    """Return the number of parameters of a model of ``config``, tied ones once, without its storage."""
    if supports_masks(config):
        return parameter_count(config)
    return sum(parameter.numel() for parameter in build_on_meta(config).parameters())


def shape_of(config: Any) -> dict[str, int]:
    """Return the sizes of a model that its configuration has, by the names of :class:`drpruning.pruning.Target`."""
    if supports_masks(config):
        return Target.of(config).sizes()
    text = text_config(config)
    sizes = {name: getattr(text, field, None) for name, field in SIZE_FIELDS.items()}
    return {name: size for name, size in sizes.items() if isinstance(size, int)}


def products_of_model(model: Any, length: int) -> float:
    """Return the products of a token's forward pass, see :func:`drpruning.pruning.model_flops.products_per_token`.

    Args:
        model: A model of transformers; it needs no storage.
        length: Tokens in a row.
    """
    config = model.config
    if supports_masks(config):
        return products_per_token(config, Target.of(config).sizes(), length)
    text = text_config(config)
    heads = getattr(text, "num_attention_heads", None) or 0  # none in a state space model
    head_dim = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    return _weights_in_products(model) + getattr(text, "num_hidden_layers", 0) * heads * head_dim * length


def _weights_in_products(model: Any) -> float:
    """Return the weights in a token's products: matrices but the embedding's; of experts the active ones."""
    text = text_config(model.config)
    experts = next((number for name in EXPERTS if (number := getattr(text, name, None))), None)
    active = (getattr(text, "num_experts_per_tok", None) or experts or 1) / experts if experts else 1.0
    head: Any = model.get_output_embeddings()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    total = 0.0
    for name, weight in model.named_parameters():
        matrix = weight.dim() > 1 and not name.endswith("bias")  # experts have a matrix of biases
        multiplies = matrix and (id(weight) not in embeddings or (head is not None and weight is head.weight))
        if multiplies:
            total += weight.numel() * (active if ".experts" in name else 1.0)
    return total


def block_output(output: Any) -> Tensor:
    """Return the residual stream after a block: some blocks return a tuple that begins with it."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream
