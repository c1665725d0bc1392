"""Write a model as a folder that transformers loads, one tensor at a time.

The folder has the files of ``save_pretrained`` of transformers, with the same bytes. That method holds the whole model
and a copy of each file in memory; here the memory holds one tensor or, where transformers stores the weights in another
layout than the model has them in (experts one by one), one block.
"""

from __future__ import annotations

import copy
import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from drpruning.errors import ConfigError
from drpruning.hf.models import INDEX, SINGLE, saved_tensors
from drpruning.hf.tensor_stream import LazyTensor, ReadTensor, write_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_SHARD_SIZE = "5GB"
"""Largest file of weights, in the notation of transformers."""
BLOCK = re.compile(r"^.*?\.\d+\.")
"""The prefix of the names of a block's tensors, such as ``model.layers.3.``."""


def write_model(
    model: PreTrainedModel,
    folder: Path,
    read: ReadTensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Write configuration and weights of a model into an empty folder.

    Args:
        model: The model; its tensors are used if ``read`` is None, otherwise their names, shapes and dtypes only: it
            may be on the meta device, or sharded.
        folder: The folder.
        read: Returns a tensor of the model by name. Names are read in the order of the files.
        dtype: Dtype of floating-point tensors; the model's by default.
        max_shard_size: Largest file of weights, in the notation of transformers.

    Raises:
        ConfigError: A value is beyond the range of ``dtype``.
        OSError: A file cannot be written.
    """
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype or model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tensors = saved_tensors(model)
    outlines = {
        name: torch.empty(tensor.shape, dtype=_stored_dtype(tensor, dtype), device="meta")
        for name, tensor in tensors.items()
    }
    source = _Source(model, outlines, read or (lambda name: tensors[name].detach()))
    split = split_torch_state_dict_into_shards(
        source.stored,
        filename_pattern=SINGLE.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        write_safetensors(folder / file, map(source.lazy, names), metadata={"format": "pt"})
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def convert(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another dtype.

    Raises:
        ConfigError: A finite value is beyond the range of the dtype: float16 ends at 65504.
    """
    converted = tensor.to(dtype)
    if dtype == torch.float16 and tensor.dtype != dtype and bool((converted.isinf() & tensor.isfinite()).any()):
        largest = tensor[tensor.isfinite()].abs().max().item()
        raise ConfigError(
            f"{name} has a value of {largest:g}; expected at most 65504, the largest of float16",
            "Choose bfloat16 or float32, for example --dtype bfloat16.",
        )
    return converted


def _stored_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


class _Source:
    """The tensors of a model by their names in its files.

    Args:
        model: The model.
        outlines: Its tensors on the meta device, in the dtypes of the files.
        read: Returns a tensor of the model.

    Attributes:
        stored: The tensors of the files, on the meta device.
    """

    def __init__(self, model: PreTrainedModel, outlines: dict[str, Tensor], read: ReadTensor) -> None:
        self._model, self._outlines, self._read = model, outlines, read
        # tensors that a conversion takes out of one have the size of that one's storage, by which files are divided
        self.stored = {
            name: torch.empty_like(tensor) for name, tensor in revert_weight_conversion(model, dict(outlines)).items()
        }
        self._block: dict[str, Tensor] = {}
        self._group_of: dict[str, list[str]] = {}
        if self.stored.keys() != outlines.keys():
            self._group_of = self._groups()

    def lazy(self, name: str) -> LazyTensor:
        """Return a tensor of the files, to be read when it is written."""
        outline = self.stored[name]
        return LazyTensor(name, outline.dtype, tuple(outline.shape), partial(self.tensor, name))

    def tensor(self, name: str) -> Tensor:
        """Read a tensor of the files; those of the last block are kept until another one is read."""
        if not self._group_of:
            return self._stored(name)
        if name not in self._block:
            self._block = {}
            own = {each: self._stored(each) for each in self._group_of[name]}
            self._block = revert_weight_conversion(self._model, own)
        return self._block.pop(name)

    def _stored(self, name: str) -> Tensor:
        return convert(name, self._read(name), self._outlines[name].dtype)

    def _groups(self) -> dict[str, list[str]]:
        """Return, by the name of a tensor in the files, the model's tensors that are converted together."""
        groups: dict[str, list[str]] = {}
        for name in self._outlines:
            block = BLOCK.match(name)
            groups.setdefault(name if block is None else block[0], []).append(name)
        found = {
            stored: names
            for names in groups.values()
            for stored in revert_weight_conversion(self._model, {name: self._outlines[name] for name in names})
        }
        assert found.keys() == self.stored.keys(), "a conversion of transformers combines tensors of several blocks"
        return found
