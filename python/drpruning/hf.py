"""A causal language model of transformers from a folder or by its name, whole or, on each rank of several, in part.

Safetensors are read here: a model is built without storage, and each tensor, or the rows of it that a rank holds, goes
from the file into the model's own memory, in the dtype asked for. Nothing is drawn at random, and no rank has a tensor
in memory that it does not keep, but for the one that is being read.

Other formats, quantised weights, and architectures whose files transformers converts while it reads them are left to
``from_pretrained``; pickled weights (``pytorch_model.bin``) to its restricted reader, which executes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils.hub import cached_file

from drpruning.errors import ConfigError
from drpruning.pruning.architectures import ARCHITECTURES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
RECOMPUTED = re.compile(r"rotary_emb\.inv_freq$")
"""Tensors in files of older releases of transformers that the model computes from its configuration."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(
    folder: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32, device: torch.device | str = "cpu"
) -> Any:
    """Return a whole model from a Hugging Face folder or name, in evaluation mode.

    Args:
        folder: The folder or name.
        dtype: Of the weights; ``auto``: the configuration's, or else the files'.
        device: Where the weights are read to.

    Raises:
        ConfigError: There is no such model, it cannot be read, or a tensor is missing, unknown or of another shape.
    """
    found = outline(folder, dtype)
    if found is not None:
        model, weights = found
        return weights.fill(model, torch.device(device))
    options: dict[str, Any] = {"dtype": dtype, "weights_only": True, "output_loading_info": True}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(folder), **options)
        model, report = loaded
        if missing := sorted(report["missing_keys"]):  # transformers would train on, with random numbers
            raise ValueError(f"{folder} has no tensor {missing[0]!r}, which its config.json asks for")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise cannot_load(str(folder), error) from error
    return model.to(device)


def outline(
    folder: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32
) -> tuple[Any, SafetensorsWeights] | None:
    """Return a model without storage, and the files that fill it; None where only transformers can read them.

    Args:
        folder: A Hugging Face folder or name.
        dtype: As in :func:`load`.

    Raises:
        ConfigError: As :func:`load` raises it.
    """
    source = str(folder)
    try:
        config = AutoConfig.from_pretrained(source)
        weights = None if getattr(config, "quantization_config", None) else SafetensorsWeights.find(source)
        if weights is None:
            return None
        model = without_storage(config, (config.dtype or weights.dtype()) if dtype == "auto" else dtype)
        problem = weights.mismatch(model)
        if config.model_type not in ARCHITECTURES and (problem or not can_be_filled(model)):
            return None  # transformers may convert what is in the files
        if problem:
            raise ValueError(problem)
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise cannot_load(source, error) from error
    with suppress(OSError):  # else the one that transformers makes of the configuration
        model.generation_config = GenerationConfig.from_pretrained(source)
    model.name_or_path = model.config.name_or_path = source
    return model.eval(), weights


def without_storage(config: Any, dtype: torch.dtype) -> Any:
    """Return a model of ``config`` on torch's meta device; torch's random state stays as it was."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def can_be_filled(model: Any) -> bool:
    """Whether a model without storage gets all of its tensors from its files and its configuration.

    Tensors that are in no file are known for rotary embeddings alone.
    """
    if getattr(model, "_keep_in_fp32_modules", None) or getattr(model, "_keep_in_fp32_modules_strict", None):
        return False
    return not any(
        not _is_rotary(module) and (module._non_persistent_buffers_set or any(_plain_tensors(module)))
        for module in model.modules()
    )


def fill_buffers(model: Any, device: torch.device) -> None:
    """Compute the tensors that are in no file, such as the angles of rotary embeddings, from the configuration."""
    for module in filter(_is_rotary, model.modules()):
        computed = type(module)(module.config)
        for name, tensor in [*computed.named_buffers(recurse=False), *_plain_tensors(computed)]:
            setattr(module, name, tensor.to(device))


@dataclass(frozen=True)
class SafetensorsWeights:
    """The weights of a model in safetensors files.

    Attributes:
        source: Folder or name of the model.
        listing: The file that lists the tensors: the index, or the only file.
        files: For each tensor the file that has it.
    """

    source: str
    listing: Path
    files: dict[str, Path]

    @classmethod
    def find(cls, source: str) -> SafetensorsWeights | None:
        """Return the weights of a folder, or of a model on the hub, which is downloaded; None: it has no safetensors.

        Raises:
            OSError, ValueError, SafetensorError: A file cannot be read.
        """
        if (single := _file(source, SINGLE)) is not None:
            with _opened(single) as file:
                return cls(source, single, dict.fromkeys(file.keys(), single))
        if (index := _file(source, INDEX)) is None:
            return None
        try:
            named = {str(name): str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is not an index of safetensors: {error}") from error
        if outside := [file for file in named.values() if Path(file).name != file]:
            raise ValueError(f"{index} names {outside[0]!r}; expected the name of a file in the same folder")
        paths = {name: _file(source, name) for name in sorted(set(named.values()))}
        if missing := [name for name, path in paths.items() if path is None]:
            raise ValueError(f"{index} names the file {missing[0]}, which is not there")
        return cls(source, index, {name: path for name, file in named.items() if (path := paths[file]) is not None})

    def dtype(self) -> torch.dtype:
        """Return the dtype of the first floating-point tensor."""
        found = (DTYPES.get(part.get_dtype()) for _, part in self._parts(sorted(self.files)) if part is not None)
        return next(filter(None, found), torch.float32)

    def mismatch(self, model: Any) -> str:
        """Return what first keeps the files from filling ``model``, with tensor and file, or an empty string."""
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        tied = set(wanted) - set(self._names(model))
        if missing := sorted(wanted.keys() - self.files.keys() - tied):
            return f"{self.listing} has no tensor {missing[0]!r}, which its config.json asks for"
        unknown = sorted(name for name in self.files.keys() - wanted.keys() if not RECOMPUTED.search(name))
        if unknown:
            return f"{self.files[unknown[0]]} has the tensor {unknown[0]!r}, which its config.json does not ask for"
        for name, part in self._parts(sorted(wanted.keys() & self.files.keys())):
            shape = None if part is None else tuple(part.get_shape())
            if shape is None:
                return f"{self.files[name]} has no tensor {name!r}, which {self.listing} says it has"
            if shape != wanted[name]:
                return f"{self.files[name]} has {name!r} of shape {shape}; its config.json asks for {wanted[name]}"
            if part.get_dtype() not in DTYPES:
                return f"{self.files[name]} has {name!r} of type {part.get_dtype()}; expected {', '.join(DTYPES)}"
        return ""

    @torch.no_grad()
    def fill(self, model: Any, device: torch.device) -> Any:
        """Give a model without storage its memory on ``device``, and read its weights, of a sharded one this rank's.

        Args:
            model: As :func:`outline` returned it; sharded by FSDP2 or not.
            device: Of this rank.

        Returns:
            The model, changed in place.

        Raises:
            ConfigError: A file cannot be read.
        """
        model.to_empty(device=device)
        model.tie_weights()
        fill_buffers(model, device)
        tensors = self._names(model)
        try:
            for name, part in self._parts(sorted(tensors, key=lambda name: (self.files[name], name))):
                local, rows = _own(tensors[name])
                if local.numel():
                    local.copy_(part[rows] if local.ndim else part[:])
        except (OSError, SafetensorError) as error:
            raise cannot_load(self.source, error) from error
        return model

    def _names(self, model: Any) -> dict[str, Tensor]:
        """Return parameters, tied ones once, and the buffers that are in files."""
        inside = model.state_dict().keys()
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in inside}
        return {**dict(model.named_parameters()), **buffers}

    def _parts(self, names: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield each tensor's slice, to be read by indexing; None where the file does not have it. Opens files once."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        for path, own in by_file.items():
            with _opened(path) as file:
                there = set(file.keys())
                for name in own:
                    yield name, file.get_slice(name) if name in there else None


def cannot_load(source: str, error: Exception) -> ConfigError:
    """What to raise for a ``source`` that transformers does not load because of ``error``."""
    return ConfigError(
        f"the model {source!r} cannot be loaded: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
        "Give a folder with config.json and safetensors, or the name of a model on the hub you have access to.",
    )


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise SafetensorError(f"{path} cannot be read: {error}") from error


def _file(source: str, name: str) -> Path | None:
    """Return a file of a folder, or of a model on the hub; None where there is no such file."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _own(tensor: Tensor) -> tuple[Tensor, slice]:
    """Return the memory of this rank's part of a tensor, and which rows it is: FSDP2 shards as ``torch.chunk`` does."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), slice(0, tensor.shape[0] if tensor.ndim else None)
    local, mesh = tensor.to_local().detach(), tensor.device_mesh
    (dimension,) = (number for number, placement in enumerate(tensor.placements) if isinstance(placement, Shard))
    rows = -(-tensor.shape[0] // mesh.size(dimension))
    first = min(rows * mesh.get_local_rank(dimension), tensor.shape[0])
    assert len(local) == min(rows, tensor.shape[0] - first)
    return local, slice(first, first + len(local))


def _is_rotary(module: nn.Module) -> bool:
    return "RotaryEmbedding" in type(module).__name__ and hasattr(module, "config")


def _plain_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]
