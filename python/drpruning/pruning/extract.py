"""Extract an ordinary, smaller model from a masked one, and write it as a Hugging Face folder.

Extraction selects the kept indices along every axis. Where the masks of kept units are one in evaluation, nothing else
is needed. Soft mask values are multiplied into the weights (:class:`Fold`). Either way the extracted model computes
what the masked model computed in evaluation.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from drpruning.errors import ConfigError, StateError
from drpruning.files import new_folder
from drpruning.hf.files import TEXT_FILES
from drpruning.hf.model_folder import MAX_SHARD_SIZE, write_model
from drpruning.hf.models import build_on_meta, disk_errors, load, load_on_meta, model_file
from drpruning.hf.tensor_stream import ReadTensor
from drpruning.pruning.architecture_spec import Dimension
from drpruning.pruning.architectures import Weight, architecture_of, head_dim_of, weights_of
from drpruning.pruning.masked_modules import Masks
from drpruning.pruning.sparse_forward import entries_of, unit_entries
from drpruning.pruning.target import Target, axis_sizes, pruned_fields, sizes_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


DECISIONS = "pruning.json"


@dataclass(frozen=True)
class KeptUnits:
    """Sorted indices of the kept units in the source model.

    Attributes:
        layers: Decoder blocks.
        hidden: Units of the residual stream.
        heads: Key/value groups, one list for each kept block.
        intermediate: MLP units, one list for each kept block. In a mixture of experts unit j of expert e has the index
            e * units + j, and every kept expert has the same number of units.
        experts: Experts, one list for each kept block; empty where the MLPs are no experts.
    """

    layers: list[int]
    hidden: list[int]
    heads: list[list[int]]
    intermediate: list[list[int]]
    experts: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, masks: Masks, source: Target) -> KeptUnits:
        """Return the units that ``masks`` keep of a model of shape ``source``; a kind without a mask keeps all."""
        sizes = source.sizes()
        layers = _kept_indices(masks.get("layer"), sizes["layers"])
        heads, intermediate = masks.get("head"), masks.get("intermediate")
        hidden = _kept_indices(masks.get("hidden"), sizes["hidden"])
        groups = [_kept_indices(None if heads is None else heads[block], sizes["kv_heads"]) for block in layers]
        width = sizes["intermediate"]
        if "experts" not in sizes:
            units = [_kept_indices(None if intermediate is None else intermediate[block], width) for block in layers]
            return cls(layers=layers, hidden=hidden, heads=groups, intermediate=units)
        expert = masks.get("expert")
        experts = [_kept_indices(None if expert is None else expert[block], sizes["experts"]) for block in layers]
        units = [
            [
                number * width + unit
                for number in chosen
                for unit in _kept_indices(None if intermediate is None else intermediate[block, number], width)
            ]
            for block, chosen in zip(layers, experts, strict=True)
        ]
        return cls(layers=layers, hidden=hidden, heads=groups, intermediate=units, experts=experts)

    def to_dict(self) -> dict[str, Any]:
        """Return the lists by name, without those that are empty for models of this kind."""
        return {name: units for name, units in asdict(self).items() if name != "experts" or units}

    def write(self, folder: Path, source: Target, target: Target) -> None:
        """Write ``folder/pruning.json``: both shapes and the kept units."""
        body = {"source": source.sizes(), "target": target.sizes(), "kept": self.to_dict()}
        (folder / DECISIONS).write_text(json.dumps(body) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> KeptUnits:
        """Read the kept units of the model in ``folder`` from its ``pruning.json``.

        Raises:
            StateError: The file is missing or damaged.
        """
        path = folder / DECISIONS
        try:
            kept = cls(**json.loads(path.read_text(encoding="utf-8"))["kept"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"cannot read the kept units from {path}: {error}",
                "Export the model again, or start its run again in another folder.",
            ) from error
        return kept


@dataclass(frozen=True)
class Fold:
    """Soft mask values, to be multiplied into the weights of an extracted model.

    They act where the masks act (:mod:`drpruning.pruning.masked_modules`). The embedding is multiplied by the hidden
    values. Each part that writes to the residual stream is multiplied by layer and hidden values along its rows and its
    bias. Each projection is multiplied by the values of what it reads along its columns. A tied output layer would be
    multiplied with the embedding, so the last norm is divided by the same values.

    Attributes:
        values: By kind, as :class:`drpruning.pruning.masked_modules.Masks`; positive where a unit is kept.
        norms: Whether the hidden values multiply the norms' gains instead of the embedding.
        embedding: Factor on the whole embedding, see :func:`embedding_factor`.
    """

    values: Masks = field(default_factory=dict)
    norms: bool = False
    embedding: float = 1.0

    def factors(self, weight: Weight, config: PreTrainedConfig, kept: KeptUnits) -> list[Tensor | None]:
        """Return the factor along each dimension of a weight of the extracted model, float32; None where it is one.

        Args:
            weight: The weight; its block is one of the extracted model's.
            config: The extracted model's configuration.
            kept: Units of the source.
        """
        factors: list[Tensor | None] = [None] * len(weight.axes)
        architecture, hidden, part = architecture_of(config), self.values.get("hidden"), weight.part
        if hidden is not None:
            hidden = hidden[kept.hidden]
        if part is architecture.embedding:
            factors[1] = _product(self.embedding, None if self.norms else hidden)
        elif part is architecture.final_norm:
            embedding = self.embedding if config.tie_word_embeddings else 1.0
            divisor = None if self.norms or hidden is None or not config.tie_word_embeddings else 1 / hidden
            factors[0] = _product(1 / embedding, hidden if self.norms else divisor)
        if weight.block is None:
            return factors
        source = kept.layers[weight.block]
        if part.writes_to_stream:
            factors[0] = hidden
            if "layer" in self.values:
                layer = self.values["layer"][source]
                factors[0] = layer.expand(config.hidden_size) if hidden is None else layer * hidden
        elif part.is_norm and part.axes[0] == "hidden":
            factors[0] = hidden if self.norms else None
        if weight.axes[1:] == ("intermediate",) and "intermediate" in self.values:
            factors[1] = self.values["intermediate"][source, kept.intermediate[weight.block]]
        if part.is_stacked and part.writes_to_stream:
            rows = weight.axes.index("hidden")
            factors[0], factors[rows] = None, factors[0]
            if "intermediate" in self.values and not weight.is_bias:
                of_experts = self.values["intermediate"][source].flatten()[kept.intermediate[weight.block]]
                by_expert = of_experts.view(len(kept.experts[weight.block]), -1)
                factors[weight.axes.index("intermediate")] = by_expert.unsqueeze(rows)
        if weight.axes[1:] == ("query",) and "head" in self.values:
            heads = self.values["head"][source, kept.heads[weight.block]]
            factors[1] = heads.repeat_interleave(axis_sizes(config, Target())["query"] // heads.shape[0])
        return factors


def embedding_factor(source: PreTrainedConfig, pruned: PreTrainedConfig, dtype: torch.dtype) -> float:
    """Return the factor on the embedding that makes up for a model class that scales by the root of its hidden size.

    Such a class (Gemma) reads the scale from the hidden size, in the dtype of the weights, so the extracted model has
    another one.

    Example:
        >>> from transformers import GemmaConfig
        >>> embedding_factor(GemmaConfig(hidden_size=64), GemmaConfig(hidden_size=16), torch.float32)
        2.0
    """
    if not architecture_of(source).scale_embedding:
        return 1.0
    before, after = (_rounded(_rounded(config.hidden_size**0.5, torch.float32), dtype) for config in (source, pruned))
    return before / after


def _rounded(number: float, dtype: torch.dtype) -> float:
    """Return the nearest number of a dtype without a tensor: memory is planned on tensors without values."""
    mantissa, exponent = math.frexp(number)
    bits = 1 - round(math.log2(torch.finfo(dtype).eps))
    return math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)


def _product(number: float, values: Tensor | None) -> Tensor | None:
    """Return the product as a tensor that broadcasts; None where it is one."""
    if number == 1.0:
        return values
    return torch.tensor(number) if values is None else number * values


@dataclass(frozen=True)
class Cut:
    """The weights of an extracted model, each computed when it is read.

    Attributes:
        source: Configuration of the model before the cut.
        config: Configuration of the extracted model.
        kept: Units of the source.
        fold: Mask values to multiply into the weights, with the factor on the embedding.
        dtype: Dtype of the weights.
        read: Returns a weight of the source by name.
    """

    source: PreTrainedConfig
    config: PreTrainedConfig
    kept: KeptUnits
    fold: Fold
    dtype: torch.dtype
    read: ReadTensor

    @classmethod
    def of(cls, model: PreTrainedModel, kept: KeptUnits, target: Target, fold: Fold, read: ReadTensor) -> Cut:
        """Return the cut of ``model``, whose weights ``read`` returns, to the shape ``target``."""
        config = pruned_config(model.config, kept, target)
        fold = replace(fold, embedding=embedding_factor(model.config, config, model.dtype))
        return cls(model.config, config, kept, fold, model.dtype, read)

    def weights(self) -> dict[str, Weight]:
        """Return the weights of the extracted model by name."""
        return {weight.name: weight for weight in weights_of(self.config)}

    @torch.no_grad()
    def weight(self, weight: Weight) -> Tensor:
        """Return a weight of the extracted model, on the source's device; it may share the source's memory."""
        name, index = weight.name, unit_indices(self.source, self.kept, weight.block)
        if weight.block is not None:
            name = name.replace(f".{weight.block}.", f".{self.kept.layers[weight.block]}.", 1)
        tensor, along = self.read(name), axis_sizes(self.source, Target())
        for dimension, axis in enumerate(weight.axes):
            chosen = entries_of(axis, index, along)
            if chosen is not None:
                tensor = select_entries(tensor, dimension, chosen.to(tensor.device))
        offset = architecture_of(self.config).norm.offset if weight.part.is_norm and not weight.is_bias else 0.0
        for dimension, factor in enumerate(self.fold.factors(weight, self.config, self.kept)):
            if factor is not None:
                broadcast = factor.to(tensor.device)
                if factor.ndim < 2:
                    broadcast = broadcast.view(-1, *[1] * (tensor.ndim - 1 - dimension))
                if offset:  # the gain is the sum, which has fewer digits in a narrow dtype
                    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                tensor = ((tensor + offset) * broadcast - offset).to(self.dtype)
        return tensor


def extract(
    model: PreTrainedModel,
    kept: KeptUnits,
    target: Target,
    fold: Fold = Fold(),
) -> PreTrainedModel:
    """Return an ordinary model with the ``kept`` units of ``model``, of the same class, dtype and device.

    Args:
        model: The source; it is not changed.
        kept: The number of units of each kind in ``target``.
        target: The complete shape.
        fold: Mask values to multiply into the weights.
    """
    weights = dict(model.named_parameters())
    cut = Cut.of(model, kept, target, fold, lambda name: weights[name].detach())
    # The initial weights are overwritten; drawing them must not change the run's random state.
    with model.device, torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        pruned: PreTrainedModel = AutoModelForCausalLM.from_config(
            cut.config, dtype=model.dtype, trust_remote_code=False
        )
    unfilled = dict(pruned.named_parameters())
    for name, weight in cut.weights().items():  # one at a time: besides both models at most one weight is in memory
        unfilled.pop(name).detach().copy_(cut.weight(weight))
    assert not unfilled, f"weights without a source: {', '.join(unfilled)}"
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.train(model.training)
    return pruned


@dataclass(frozen=True)
class PruningDecisions:
    """What was decided about the units of a model: written next to the weights of the extracted model.

    Attributes:
        kept: The kept units.
        source: Shape before pruning.
        target: Shape after pruning.
        tensors: By name, gates, masks and scores of all units.
    """

    kept: KeptUnits
    source: Target
    target: Target
    tensors: Mapping[str, Tensor]


def write_pruned_model(
    model: PreTrainedModel,
    decisions: PruningDecisions,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    read: ReadTensor | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Write an extracted model as a folder that transformers loads.

    Next to the weights, ``masks.safetensors`` has the tensors of ``decisions``, ``pruning.json`` both shapes and the
    indices of the kept units.

    Args:
        model: The extracted model.
        decisions: How it was made.
        folder: A new or empty folder; it appears complete or not at all.
        tokenizer: Written with the model.
        read: Returns a weight of a model on the meta device, as for :func:`drpruning.hf.model_folder.write_model`.
        max_shard_size: Largest file of weights, in the notation of transformers.

    Raises:
        ConfigError: ``folder`` exists and is not empty.
        DiskError: It cannot be written.
    """
    tensors = {name: value.cpu().contiguous() for name, value in decisions.tensors.items()}
    try:
        with disk_errors(folder), new_folder(folder) as unfinished:
            write_model(model, unfinished, read, max_shard_size=max_shard_size)
            if tokenizer is not None:
                tokenizer.save_pretrained(unfinished)
            decisions.kept.write(unfinished, decisions.source, decisions.target)
            save_file(tensors, unfinished / "masks.safetensors")
    except FileExistsError as error:
        raise ConfigError(f"cannot export: {error}", "Choose another folder, or remove it.") from error


def write_cut(
    cut: Cut,
    decisions: PruningDecisions,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    generation_config: GenerationConfig | None = None,
) -> None:
    """Write the model that ``cut`` extracts, one weight at a time; see :func:`write_pruned_model`."""
    outline, weights = build_on_meta(cut.config, cut.dtype), cut.weights()
    outline.generation_config = copy.deepcopy(generation_config)
    write_pruned_model(outline, decisions, folder, tokenizer, read=lambda name: cut.weight(weights[name]))


def rewrite(model: Path | str, folder: Path, *, dtype: str, max_shard_size: str = MAX_SHARD_SIZE) -> None:
    """Write a model folder with weights of another dtype, its tokenizer and its pruning decisions.

    Safetensors are read and written one tensor at a time; other formats are loaded whole.

    Args:
        model: A folder that transformers loads.
        folder: A new or empty folder; it appears complete or not at all.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        max_shard_size: Largest file of weights, in the notation of transformers.

    Raises:
        ConfigError: The model cannot be loaded, or ``folder`` is not empty.
        DiskError: ``folder`` cannot be written.
    """
    numbers: torch.dtype = getattr(torch, dtype)
    on_meta = load_on_meta(model, numbers)
    outline, read = (load(model, numbers), None) if on_meta is None else (on_meta[0], on_meta[1].tensor)
    source = Path(model)
    try:
        with disk_errors(folder), new_folder(folder) as unfinished:
            write_model(outline, unfinished, read, dtype=numbers, max_shard_size=max_shard_size)
            names = [path.name for path in source.glob("*token*")] if source.is_dir() else []
            for name in dict.fromkeys([*names, *TEXT_FILES, "masks.safetensors", DECISIONS]):
                if (path := model_file(str(model), name)) is not None:
                    shutil.copyfile(path, unfinished / name)
    except FileExistsError as error:
        raise ConfigError(f"cannot export: {error}", "Choose another folder, or remove it.") from error


def pruned_config(config: PreTrainedConfig, kept: KeptUnits, target: Target) -> PreTrainedConfig:
    """Return the source's configuration with the target's sizes, ``head_dim`` and the kept entries of block lists."""
    fields = pruned_fields(config, config.to_dict(), target.sizes(), kept.layers)
    pruned = type(config).from_dict(fields)
    for choice in ("_attn_implementation", "_experts_implementation"):
        if hasattr(config, choice):
            setattr(pruned, choice, getattr(config, choice))
    return pruned


def _kept_indices(mask: Tensor | None, size: int) -> list[int]:
    return list(range(size)) if mask is None else mask.nonzero().flatten().tolist()


def unit_indices(config: PreTrainedConfig, kept: KeptUnits, block: int | None) -> dict[Dimension, Tensor]:
    """Return entries of units along each axis of a weight; a missing axis has all.

    Args:
        config: Configuration of the source.
        kept: The units.
        block: The weight is of the ``block``-th kept block; None: it is outside of blocks.

    Returns:
        Indices [N] by axis; of the units inside experts [E, N], for each kept expert.
    """
    index: dict[Dimension, Tensor] = {"hidden": torch.tensor(kept.hidden)}
    if block is not None:
        head_dim, sizes = head_dim_of(config), sizes_of(config)
        heads = torch.tensor(kept.heads[block])
        index["key_value"] = unit_entries(heads, head_dim)
        index["query"] = unit_entries(heads, head_dim * (sizes["heads"] // sizes["kv_heads"]))
        index["intermediate"] = torch.tensor(kept.intermediate[block])
        if kept.experts:
            experts, units = kept.experts[block], kept.intermediate[block]
            index["expert"] = torch.tensor(experts, dtype=torch.int64)
            of_experts = torch.tensor(units, dtype=torch.int64).view(len(experts), len(units) // max(1, len(experts)))
            index["intermediate"] = of_experts - sizes["intermediate"] * index["expert"][:, None]
    return index


def select_entries(tensor: Tensor, dimension: int, entries: Tensor) -> Tensor:
    """Return the entries along a dimension.

    Args:
        tensor: A weight.
        dimension: The dimension.
        entries: Indices [N]; or [E, N] for each matrix along the first dimension of ``tensor``, E.
    """
    if entries.ndim == 1:
        return tensor.index_select(dimension, entries)
    return torch.stack([each.index_select(dimension - 1, of) for each, of in zip(tensor, entries, strict=True)])
