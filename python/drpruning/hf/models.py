"""Load causal language models of transformers, whole or, with several ranks, each rank its shard.

Safetensors are read here. The model is built on torch's meta device. Then each tensor, or the rows of it that a rank
has, is read from the file into the model's memory, in the requested dtype. No weights are initialised at random, and
besides its shard a rank has one tensor in memory at a time.

``from_pretrained`` of transformers reads other formats, quantised weights, and architectures whose files it converts;
it reads pickled weights (``pytorch_model.bin``) with its restricted reader, which executes no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils.hub import cached_file

from drpruning.errors import ConfigError, DiskError, DrpruningError
from drpruning.files import UNWRITABLE
from drpruning.hf.files import MODEL_ADVICE, check_model_exists
from drpruning.hf.tensor_stream import DTYPES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
VERBATIM = ("llama", "mistral", "qwen2", "qwen3")
"""Types whose files have the tensors of the model under the same names; a file of another type may need a conversion by
transformers."""
RECOMPUTED = re.compile(r"rotary_emb\.inv_freq$")
"""Tensors that older releases of transformers wrote to files, and that the model computes from its configuration."""
FLOATS = {name: dtype for name, dtype in DTYPES.items() if dtype.is_floating_point}
"""Types of weights that are read, by their names in safetensors."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise errors of a full, read-only or forbidden disk as :class:`DiskError`.

    safetensors and tokenizers raise ``SafetensorError`` and ``Exception`` itself for errors of the operating system.

    Raises:
        DiskError: A file in ``folder`` cannot be written.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError):
            unwritable = not isinstance(error, DrpruningError) and error.errno in UNWRITABLE
        else:
            unwritable = isinstance(error, SafetensorError) or type(error) is Exception
        if not unwritable:
            raise
        step = "Free disk space, fix permissions or choose another folder, then rerun."
        raise DiskError(f"cannot write the model {folder}: {error}", step) from error


def load(
    folder: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32, device: torch.device | str = "cpu"
) -> Any:
    """Load a whole model from a Hugging Face folder or name, in evaluation mode.

    Args:
        folder: The folder or name.
        dtype: Dtype of the weights; ``auto``: that of the configuration, else that of the files.
        device: Where the weights are read to.

    Raises:
        ConfigError: There is no such model, it cannot be read, or a tensor is missing, unknown or of another shape.
    """
    on_meta = load_on_meta(folder, dtype)
    if on_meta is not None:
        model, weights = on_meta
        return weights.fill(model, torch.device(device))
    options: dict[str, Any] = {"dtype": dtype, "weights_only": True, "output_loading_info": True}
    try:
        config = read_config(str(folder))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, trust_remote_code=False, **options
        )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):  # transformers would initialise them at random
            raise ValueError(f"{folder} has no tensor {missing[0]!r}, which its config.json requires")
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise load_error(str(folder), error) from error
    return model.to(device)


def load_on_meta(
    folder: str | Path, dtype: torch.dtype | Literal["auto"] = torch.float32
) -> tuple[Any, SafetensorsWeights] | None:
    """Build a model on the meta device and find the files that fill it; None if only transformers can read them.

    Args:
        folder: A Hugging Face folder or name.
        dtype: See :func:`load`.

    Raises:
        ConfigError: See :func:`load`.
    """
    source = str(folder)
    config = read_config(source)
    try:
        weights = None if getattr(config, "quantization_config", None) else SafetensorsWeights.find(source)
        if weights is None:
            return None
        model = build_on_meta(config, (config.dtype or weights.dtype()) if dtype == "auto" else dtype)
        problem = weights.mismatch(model)
        if (problem and config.model_type not in VERBATIM) or not can_be_filled(model):
            return None  # transformers may convert the files
        if problem:
            raise ValueError(problem)
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise load_error(source, error) from error
    with suppress(OSError):  # else the one that transformers creates from the configuration
        model.generation_config = GenerationConfig.from_pretrained(source)
    model.name_or_path = model.config.name_or_path = source
    return model.eval(), weights


def read_config(source: str) -> Any:
    """Read the transformers configuration of a Hugging Face folder or name.

    Raises:
        ConfigError: There is no such model, or transformers rejects its configuration.
    """
    check_model_exists(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise load_error(source, error) from error
    for choice in ("_attn_implementation", "_experts_implementation"):
        if getattr(config, choice, None) is not None:  # else a file could name a kernel on the hub, which is code
            setattr(config, choice, None)
    return config


def text_config(config: Any) -> Any:
    """Return the text part of a configuration: ``config`` itself, except for multimodal models."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def build_on_meta(config: Any, dtype: torch.dtype | None = None) -> Any:
    """Build a model of ``config`` on torch's meta device, without storage and without changing torch's random state.

    Args:
        config: A transformers configuration.
        dtype: Dtype of the weights; that of the configuration by default.

    Raises:
        ConfigError: transformers has no causal language model of this type.
    """
    options = {} if dtype is None else {"dtype": dtype}
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"transformers builds no causal language model from a configuration of type {config.model_type!r}: "
            f"{_first_line(error)}",
            "Give a model that AutoModelForCausalLM loads.",
        ) from error


def can_be_filled(model: Any) -> bool:
    """Return whether a model on the meta device gets all of its tensors from its files and its configuration.

    Tensors that are in no file can be computed for rotary embeddings only.
    """
    if getattr(model, "_keep_in_fp32_modules", None) or getattr(model, "_keep_in_fp32_modules_strict", None):
        return False
    return not any(
        not _is_rotary(module) and (module._non_persistent_buffers_set or any(_plain_tensors(module)))
        for module in model.modules()
    )


def fill_buffers(model: Any, device: torch.device) -> None:
    """Compute the tensors that are in no file, those of rotary embeddings, from the configuration."""
    for module in filter(_is_rotary, model.modules()):
        computed = type(module)(module.config)
        for name, tensor in [*computed.named_buffers(recurse=False), *_plain_tensors(computed)]:
            setattr(module, name, tensor.to(device))


@dataclass(frozen=True)
class SafetensorsWeights:
    """The weights of a model in safetensors files.

    Attributes:
        source: Folder or name of the model.
        listing: The file that lists the tensors: the index, or the single file.
        files: The file of each tensor.
    """

    source: str
    listing: Path
    files: dict[str, Path]

    @classmethod
    def find(cls, source: str) -> SafetensorsWeights | None:
        """Find the weights of a folder, or download those of a model on the hub; None if it has no safetensors.

        Raises:
            OSError, ValueError, SafetensorError: A file cannot be read.
        """
        if (single := model_file(source, SINGLE)) is not None:
            with _open(single) as file:
                return cls(source, single, dict.fromkeys(file.keys(), single))
        if (index := model_file(source, INDEX)) is None:
            return None
        try:
            weight_map = json.loads(index.read_bytes())["weight_map"]
            file_names = {str(name): str(file) for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is not an index of safetensors: {error}") from error
        if outside := [file for file in file_names.values() if Path(file).name != file]:
            raise ValueError(f"{index} names {outside[0]!r}; expected the name of a file in the same folder")
        paths = {name: model_file(source, name) for name in sorted(set(file_names.values()))}
        if missing := [name for name, path in paths.items() if path is None]:
            raise ValueError(f"{index} names the file {missing[0]}, which does not exist")
        return cls(
            source, index, {name: path for name, file in file_names.items() if (path := paths[file]) is not None}
        )

    def dtype(self) -> torch.dtype:
        """Return the dtype of the first floating-point tensor."""
        found = (FLOATS.get(part.get_dtype()) for _, part in self._parts(sorted(self.files)) if part is not None)
        return next(filter(None, found), torch.float32)

    def mismatch(self, model: Any) -> str:
        """Return the first mismatch between the files and ``model``, with tensor and file, or an empty string."""
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        tied = set(expected) - set(saved_tensors(model))
        if missing := sorted(expected.keys() - self.files.keys() - tied):
            return f"{self.listing} has no tensor {missing[0]!r}, which its config.json requires"
        unknown = sorted(name for name in self.files.keys() - expected.keys() if not RECOMPUTED.search(name))
        if unknown:
            return f"{self.files[unknown[0]]} has the tensor {unknown[0]!r}, which its config.json does not have"
        for name, part in self._parts(sorted(expected.keys() & self.files.keys())):
            shape = None if part is None else tuple(part.get_shape())
            if shape is None:
                return f"{self.files[name]} has no tensor {name!r}, which {self.listing} lists"
            if shape != expected[name]:
                return f"{self.files[name]} has {name!r} of shape {shape}; its config.json requires {expected[name]}"
            if part.get_dtype() not in FLOATS:
                return f"{self.files[name]} has {name!r} of type {part.get_dtype()}; expected {', '.join(FLOATS)}"
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in sorted(tied & self.files.keys() & parameters.keys()):
            own = next(other for other in parameters if parameters[other] is parameters[name])
            if own in self.files and not torch.equal(self.tensor(name), self.tensor(own)):
                return (
                    f"{self.files[name]} has {name!r} with other values than {own!r}, and its config.json ties them; "
                    "expected equal ones, or tie_word_embeddings: false"
                )
        return ""

    @torch.no_grad()
    def fill(self, model: Any, device: torch.device) -> Any:
        """Allocate a model from the meta device on ``device`` and read its weights; of a sharded model this rank's.

        Args:
            model: The model of :func:`load_on_meta`; sharded by FSDP2 or not.
            device: Device of this rank.

        Returns:
            The model, changed in place.

        Raises:
            ConfigError: A file cannot be read.
        """
        model.to_empty(device=device)
        model.tie_weights()
        fill_buffers(model, device)
        tensors = saved_tensors(model)
        try:
            for name, part in self._parts(sorted(tensors, key=lambda name: (self.files[name], name))):
                local, rows = local_shard(tensors[name])
                if local.numel():
                    local.copy_(part[rows] if local.ndim else part[...])
        except (OSError, SafetensorError) as error:
            raise load_error(self.source, error) from error
        return model

    def tensor(self, name: str) -> Tensor:
        """Read a whole tensor, in the dtype of its file.

        Raises:
            ConfigError: The file cannot be read.
        """
        try:
            with _open(self.files[name]) as file:
                tensor: Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise load_error(self.source, error) from error
        return tensor

    def _parts(self, names: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield each tensor's slice, to be read by indexing, or None if the file lacks it; open each file once."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        for path, in_file in by_file.items():
            with _open(path) as file:
                stored = set(file.keys())
                for name in in_file:
                    yield name, file.get_slice(name) if name in stored else None


def saved_tensors(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a model that are in its files: parameters, tied ones once, and persistent buffers.

    Those of a model that FSDP2 shards are its shards, also where a forward pass has left some whole.
    """
    state: dict[str, Tensor] = model.state_dict()
    own = {name for named in (model.named_parameters(), model.named_buffers()) for name, _ in named}
    return {name: tensor for name, tensor in state.items() if name in own}


def load_error(source: str, error: Exception) -> ConfigError:
    """Return the error to raise if the model ``source`` cannot be loaded because of ``error``."""
    return ConfigError(
        f"the model {source!r} cannot be loaded: {_first_line(error)}",
        MODEL_ADVICE,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise SafetensorError(f"{path} cannot be read: {error}") from error


def model_file(source: str, name: str) -> Path | None:
    """Return the path of a file in a folder or of a model on the hub; None if it has no such file."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def local_shard(tensor: Tensor) -> tuple[Tensor, slice]:
    """Return this rank's shard of a tensor and its rows in the whole: FSDP2 shards like ``torch.chunk``."""
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
