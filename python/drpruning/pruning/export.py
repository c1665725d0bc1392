"""From masks to an ordinary, smaller model: select the kept indices along every axis, and write the result.

Where the masks of kept units are one in evaluation, selecting is all there is to do. Soft values are multiplied into
the weights (:class:`Fold`). Either way the extracted model computes what the masked one did in evaluation.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from drpruning.errors import ConfigError, StateError
from drpruning.files import new_folder
from drpruning.pruning.architectures import Axis, Weight, architecture_of, head_dim_of, weights_of
from drpruning.pruning.closed import spread
from drpruning.pruning.loading import load
from drpruning.pruning.modules import Masks
from drpruning.pruning.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


DECISIONS = "pruning.json"


@dataclass(frozen=True)
class KeptUnits:
    """Indices into the source of the units that stay, sorted.

    Attributes:
        layers: Decoder blocks.
        hidden: Units of the residual stream.
        heads: Key/value groups, one list for each kept block.
        intermediate: MLP units, one list for each kept block.
    """

    layers: list[int]
    hidden: list[int]
    heads: list[list[int]]
    intermediate: list[list[int]]

    @classmethod
    def of(cls, masks: Masks, source: Target) -> KeptUnits:
        """What ``masks`` keep of a model of shape ``source``; a kind without a mask keeps everything."""
        sizes = source.sizes()
        layers = _open(masks.get("layer"), sizes["layers"])
        heads, intermediate = masks.get("head"), masks.get("intermediate")
        return cls(
            layers=layers,
            hidden=_open(masks.get("hidden"), sizes["hidden"]),
            heads=[_open(None if heads is None else heads[block], sizes["kv_heads"]) for block in layers],
            intermediate=[
                _open(None if intermediate is None else intermediate[block], sizes["intermediate"]) for block in layers
            ],
        )

    def write(self, folder: Path, source: Target, target: Target) -> None:
        """Writes ``folder/pruning.json``: both shapes and what is kept."""
        body = {"source": source.sizes(), "target": target.sizes(), "kept": asdict(self)}
        (folder / DECISIONS).write_text(json.dumps(body) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> KeptUnits:
        """What the model in ``folder`` kept of its source, as its export wrote it.

        Raises:
            StateError: There is no such file, or it is not what an export writes.
        """
        path = folder / DECISIONS
        try:
            kept = cls(**json.loads(path.read_text(encoding="utf-8"))["kept"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{path} does not say what was kept of the source model: {error}",
                "Export the model again, or start its run again in another folder.",
            ) from error
        return kept


@dataclass(frozen=True)
class Fold:
    """Soft mask values that an extracted model has in its weights.

    They act where the masks act (:mod:`drpruning.pruning.modules`): the embedding is multiplied by the hidden values,
    each projection that writes to the residual stream by layer and hidden values along its rows and its bias, and by
    the values of what it reads along its columns. A tied output layer would be multiplied along with the embedding, so
    that the gain of the last norm is divided by the same values.

    Attributes:
        values: By kind, as :class:`drpruning.pruning.modules.Masks`; positive where a unit is kept.
        norms: Whether the hidden values multiply the norms' gains instead of the embedding.
    """

    values: Masks = field(default_factory=dict)
    norms: bool = False

    def factors(self, weight: Weight, config: PreTrainedConfig, kept: KeptUnits) -> list[Tensor | None]:
        """Return the factor along each dimension of a weight of the extracted model, float32; None where it is one.

        Args:
            weight: The weight; its block is one of the extracted model's.
            config: The extracted model's configuration.
            kept: Units of the source.
        """
        factors: list[Tensor | None] = [None] * len(weight.axes)
        if not self.values:
            return factors
        architecture, hidden = architecture_of(config), self.values.get("hidden")
        if hidden is not None:
            hidden = hidden[kept.hidden]
        if weight.block is None:
            if weight.name == f"{architecture.embedding}.weight":
                factors[1] = None if self.norms else hidden
            elif weight.axes == ("hidden",) and hidden is not None and (self.norms or config.tie_word_embeddings):
                factors[0] = hidden if self.norms else 1 / hidden
            return factors
        source = kept.layers[weight.block]
        norm = weight.axes == ("hidden",) and not weight.name.endswith(".bias")
        if norm:
            factors[0] = hidden if self.norms else None
        elif weight.axes[0] == "hidden":
            factors[0] = hidden
            if "layer" in self.values:
                layer = self.values["layer"][source]
                factors[0] = layer.expand(config.hidden_size) if hidden is None else layer * hidden
            if weight.axes[1:] == ("intermediate",) and "intermediate" in self.values:
                factors[1] = self.values["intermediate"][source, kept.intermediate[weight.block]]
            if weight.axes[1:] == ("query",) and "head" in self.values:
                heads = self.values["head"][source, kept.heads[weight.block]]
                width = head_dim_of(config) * (config.num_attention_heads // config.num_key_value_heads)
                factors[1] = heads.repeat_interleave(width)
        return factors


def extract(
    model: PreTrainedModel,
    kept: KeptUnits,
    target: Target,
    fold: Fold = Fold(),
) -> PreTrainedModel:
    """An ordinary model of shape ``target`` with the ``kept`` units of ``model``, in its class, type and device.

    Args:
        model: The source; it is not changed.
        kept: As many units of each kind as ``target`` says.
        target: The complete shape.
        fold: Mask values to multiply into the weights.
    """
    config = pruned_config(model.config, kept, target)
    # The initial weights are overwritten; a run's random state must not notice that they were drawn.
    with model.device, torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        pruned: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    weights, unfilled = dict(model.named_parameters()), dict(pruned.named_parameters())
    for weight in weights_of(config):  # one at a time: next to both models at most one weight is in memory
        name, index = weight.name, _indices(model.config, kept, weight.block)
        if weight.block is not None:
            name = name.replace(f".{weight.block}.", f".{kept.layers[weight.block]}.", 1)
        tensor = weights[name].detach()
        for dimension, axis in enumerate(weight.axes):
            if axis in index:
                tensor = tensor.index_select(dimension, index[axis].to(tensor.device))
        for dimension, factor in enumerate(fold.factors(weight, config, kept)):
            if factor is not None:
                along = factor.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1 - dimension))
                tensor = (tensor * along).to(model.dtype)
        unfilled.pop(weight.name).detach().copy_(tensor)
    assert not unfilled, f"weights without a source: {', '.join(unfilled)}"
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.train(model.training)
    return pruned


def rewrite(model: Path | str, folder: Path, *, dtype: str, max_shard_size: str = "5GB") -> None:
    """Writes a model folder again with weights of another type, its tokenizer and decisions along with it.

    Args:
        model: A folder that transformers loads.
        folder: A new or empty folder; it appears complete or not at all.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        max_shard_size: Largest file of weights, as transformers writes sizes.

    Raises:
        ConfigError: The model cannot be loaded, or ``folder`` is not empty.
    """
    loaded = load(model, getattr(torch, dtype))
    try:
        with new_folder(folder) as aside:
            loaded.save_pretrained(aside, max_shard_size=max_shard_size)
            beside = Path(model)
            names = [path.name for path in beside.glob("*token*")] if beside.is_dir() else []
            for name in (*names, "chat_template.jinja", "masks.safetensors", DECISIONS):
                if (beside / name).is_file():
                    shutil.copyfile(beside / name, aside / name)
    except FileExistsError as error:
        raise ConfigError(f"cannot export: {error}", "Choose another folder, or remove it.") from error


def pruned_config(config: PreTrainedConfig, kept: KeptUnits, target: Target) -> PreTrainedConfig:
    """The source's configuration with the target's sizes; ``head_dim`` always written, per-layer lists cut alike."""
    fields = config.to_dict() | target.config_fields() | {"head_dim": head_dim_of(config)}
    if fields.get("layer_types"):
        fields["layer_types"] = [config.layer_types[block] for block in kept.layers]
    if "max_window_layers" in fields:
        fields["max_window_layers"] = sum(block < config.max_window_layers for block in kept.layers)
    pruned = type(config).from_dict(fields)
    pruned._attn_implementation = config._attn_implementation
    return pruned


def _open(mask: Tensor | None, size: int) -> list[int]:
    return list(range(size)) if mask is None else mask.nonzero().flatten().tolist()


def _indices(config: PreTrainedConfig, kept: KeptUnits, block: int | None) -> dict[Axis, Tensor]:
    """Kept entries along each axis of a weight of the ``block``-th kept block; an axis not named is kept whole."""
    index: dict[Axis, Tensor] = {"hidden": torch.tensor(kept.hidden)}
    if block is not None:
        head_dim = head_dim_of(config)
        group = config.num_attention_heads // config.num_key_value_heads
        heads = torch.tensor(kept.heads[block])
        index["key_value"] = spread(heads, head_dim)
        index["query"] = spread(heads, head_dim * group)
        index["intermediate"] = torch.tensor(kept.intermediate[block])
    return index
