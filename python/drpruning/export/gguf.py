"""Write a model folder as one GGUF file, for llama.cpp and the software built on it. Needs the package ``gguf``.

llama.cpp's own converter is a script of its repository, not a package. It identifies tokenizers by a hash over their
ids, and so rejects the vocabulary of a user's corpus. Here names, types and layout are those of the package
(``gguf.get_tensor_name_map``, ``GGUFWriter``), and the tokenizer is identified by its pre-tokenizer. The fields of a
file are those of llama.cpp's ``conversion/llama.py`` and ``conversion/qwen.py``.

A model whose function llama.cpp does not compute is an error; it is never written as an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from drpruning.errors import ConfigError, MissingExtraError, install_command
from drpruning.export.gguf_tokenizer import write_tokenizer
from drpruning.files import new_file
from drpruning.hf.models import load
from drpruning.pruning.architectures import architecture_of, head_dim_of

Precision = Literal["float32", "float16", "bfloat16"]
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
GRAPHS = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""llama.cpp's name of the compute graph, by ``config.model_type``."""


def write_gguf(model: Path | str, out: Path, precision: Precision = "float16") -> None:
    """Write the model folder ``model`` as the GGUF file ``out``, which appears complete or not at all.

    Args:
        model: A folder with config and safetensors, and with a tokenizer if the file should tokenize text.
        out: A path that does not exist.
        precision: Dtype of matrices; norms and biases are float32.

    Raises:
        ConfigError: llama.cpp would not compute the same function, or ``out`` exists.
        MissingExtraError: The package ``gguf`` is not installed.
    """
    try:
        import gguf  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("GGUF files need gguf, which is not installed", install_command("gguf")) from error
    if out.exists():
        raise ConfigError(f"cannot export: {out} exists already", "Choose another file, or remove it.")
    loaded = load(model, "auto")
    config = loaded.config
    architecture_of(config)  # raises for unsupported architectures
    check_runs_in_llama_cpp(config)
    graph = gguf.MODEL_ARCH[GRAPHS[config.model_type]]
    kind = gguf.GGMLQuantizationType[TYPES[precision]]
    with new_file(out) as unfinished:
        writer = gguf.GGUFWriter(unfinished, gguf.MODEL_ARCH_NAMES[graph])
        _write_hyperparameters(writer, config, gguf)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.name}" if kind.name != "F32" else "ALL_F32"])
        write_tokenizer(writer, Path(model), config.vocab_size)
        names = gguf.get_tensor_name_map(graph, config.num_hidden_layers)
        for name, tensor in _tensors(loaded, config):
            stored = kind if tensor.ndim > 1 else gguf.GGMLQuantizationType.F32
            values = gguf.quants.quantize(tensor.float().numpy(), stored)
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert written is not None
            writer.add_tensor(written, values, raw_dtype=stored)
        if (factors := _llama3_factors(config)) is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def check_runs_in_llama_cpp(config: Any) -> None:
    """Check that llama.cpp has a compute graph for a model.

    Raises:
        ConfigError: It has none; names the feature.
    """
    if config.model_type not in GRAPHS:
        raise ConfigError(
            f"models of type {config.model_type!r} are not converted to GGUF here, only {', '.join(GRAPHS)}",
            "Export a Hugging Face folder and convert it by llama.cpp's convert_hf_to_gguf.py, which has more types.",
        )
    rope = config.rope_parameters or {}
    if (kind := rope.get("rope_type", "default")) not in {"default", "linear", "llama3"}:
        raise ConfigError(
            f"rope_type {kind!r} is not converted to GGUF; it can be default, linear or llama3",
            "llama.cpp's convert_hf_to_gguf.py converts more of them.",
        )
    if config.model_type == "qwen3" and config.attention_bias:
        raise ConfigError(
            "llama.cpp computes qwen3 without attention biases, this model has them (config.attention_bias)",
            "It runs in transformers and vLLM.",
        )


def context_of(config: Any) -> int:
    """Return the context length up to which llama.cpp's full attention equals the model's sliding window."""
    positions = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if window is None or not getattr(config, "use_sliding_window", True):
        return positions
    return min(positions, int(window))


def _write_hyperparameters(writer: Any, config: Any, gguf: Any) -> None:
    head_dim = head_dim_of(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context_of(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters or {}
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _tensors(model: Any, config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter by its name in transformers, with its rows in llama.cpp's order."""
    # llama.cpp rotates neighbouring entries in this graph, transformers entry i with entry i + head_dim / 2
    interleaved = GRAPHS[config.model_type] == "LLAMA"
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        part = name.split(".")[-2]
        if interleaved and part in {"q_proj", "k_proj"}:
            heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        yield name, tensor.contiguous()


def _llama3_factors(config: Any) -> np.ndarray | None:
    """Return the divisors of the rotary frequencies for Llama 3's scaling, float32 [head_dim / 2], or None.

    Source: transformers' ``_compute_llama3_parameters``.
    """
    rope = config.rope_parameters or {}
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = head_dim_of(config)
    frequencies = 1 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    factors = []
    for frequency in frequencies.tolist():
        turns = original * frequency / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)
