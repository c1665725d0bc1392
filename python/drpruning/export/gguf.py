"""Write a model folder as one GGUF file, for llama.cpp and the software built on it. Needs the package ``gguf``.

llama.cpp's own converter is a script of its repository, not a package. It identifies tokenizers by a hash over their
ids, and so rejects the vocabulary of a user's corpus. Here names, types and layout are those of the package
(``gguf.get_tensor_name_map``, ``GGUFWriter``), and the tokenizer is identified by its pre-tokenizer. The fields of a
file are those of llama.cpp's ``conversion/*.py``; :mod:`drpruning.export.gguf_graphs` has the graph of each model.

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
from drpruning.export.gguf_graphs import (
    XIELU,
    Graph,
    context_of,
    graph_of,
    local_blocks,
    period_of,
    query_factor,
    rope_of,
)
from drpruning.export.gguf_tokenizer import write_tokenizer
from drpruning.files import new_file
from drpruning.hf.model_folder import convert
from drpruning.hf.models import load
from drpruning.pruning.architectures import (
    architecture_of,
    experts_per_token,
    head_dim_of,
    shared_width_of,
    weights_of,
)
from drpruning.pruning.target import sizes_of

Precision = Literal["float32", "float16", "bfloat16"]
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon")
"""Names of the epsilon of norms in configurations."""
FACTORS = {
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "logits_scaling": "add_logit_scale",
    "logit_scale": "add_logit_scale",
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
}
"""Fields of configurations that scale or cap, with the method of ``GGUFWriter`` that writes them."""


def write_gguf(model: Path | str, out: Path, precision: Precision = "float16") -> None:
    """Write the model folder ``model`` as the GGUF file ``out``, which appears complete or not at all.

    Args:
        model: A folder with config and safetensors, and with a tokenizer if the file should tokenize text.
        out: A path that does not exist.
        precision: Dtype of matrices; norms, biases and routers are float32.

    Raises:
        ConfigError: llama.cpp would not compute the same function, a value is beyond the range of ``precision``, or
            ``out`` exists.
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
    graph = graph_of(config)
    kind = gguf.GGMLQuantizationType[TYPES[precision]]
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as unfinished:
        writer = gguf.GGUFWriter(unfinished, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[graph.name]])
        _write_hyperparameters(writer, config, graph)
        _write_rope(writer, config, graph, gguf)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.name}" if kind.name != "F32" else "ALL_F32"])
        write_tokenizer(writer, Path(model), config.vocab_size)
        if graph.activations == XIELU:
            _write_xielu(writer, loaded)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[graph.name], config.num_hidden_layers)
        for name, tensor, keeps_float32 in _tensors(loaded, config, graph):
            stored = gguf.GGMLQuantizationType.F32 if keeps_float32 else kind
            convert(name, tensor, torch.float32 if keeps_float32 else getattr(torch, precision))  # checks the range
            values = gguf.quants.quantize(tensor.float().contiguous().numpy(), stored)
            written = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert written is not None, name
            if not name.endswith((".weight", ".bias")):
                written += ".weight"
            writer.add_tensor(written, values, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _write_hyperparameters(writer: Any, config: Any, graph: Graph) -> None:
    sizes, head_dim = sizes_of(config), head_dim_of(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context_of(config, graph))
    writer.add_embedding_length(sizes["hidden"])
    writer.add_block_count(sizes["layers"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_feed_forward_length(sizes["intermediate"])
    if "experts" in sizes:
        writer.add_expert_count(sizes["experts"])
        writer.add_expert_used_count(experts_per_token(config))
        writer.add_expert_feed_forward_length(sizes["intermediate"])
        if shared := shared_width_of(config):
            writer.add_expert_shared_feed_forward_length(shared)
    epsilon = next(getattr(config, name) for name in EPSILONS if hasattr(config, name))
    if architecture_of(config).norm.kind == "rms":
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        writer.add_layer_norm_eps(epsilon)
    period = period_of(local_blocks(config)) if graph.local != "none" and config.sliding_window else None
    if period is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(period)
    for name, add in FACTORS.items():
        if getattr(config, name, None) is not None:
            getattr(writer, add)(getattr(config, name))
    if graph.name == "GPTNEOX":
        writer.add_parallel_residual(config.use_parallel_residual)


def _write_xielu(writer: Any, model: Any) -> None:
    """Write the parameters of xIELU (arXiv:2411.13010) of each block."""
    modules = [block.mlp.act_fn for block in model.model.layers]
    for name in ("alpha_p", "alpha_n", "beta", "eps"):
        getattr(writer, f"add_xielu_{name}")([getattr(module, name).item() for module in modules])


def _write_rope(writer: Any, config: Any, graph: Graph, gguf: Any) -> None:
    rope = rope_of(config)
    width = int(head_dim_of(config) * rope.get("partial_rotary_factor", 1.0))
    base = rope.get("rope_theta", 10000.0)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(base)
    if graph.local == "differs":
        writer.add_rope_freq_base_swa(rope_of(config, "sliding_attention").get("rope_theta", base))
    scaling = rope.get("rope_type", "default")
    factor: Any = rope.get("factor")
    original: Any = rope.get("original_max_position_embeddings")
    if scaling == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, width))
    elif scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)
    elif scaling == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
        writer.add_rope_scaling_attn_factors(_yarn_scale(rope) / (0.1 * math.log(factor) + 1))
        if beta := rope.get("llama_4_scaling_beta"):
            writer.add_attn_temperature_scale(beta)
    elif scaling == "longrope":
        factor = max(1.0, factor or config.max_position_embeddings / original)
        scale = rope.get("attention_factor") or math.sqrt(1 + math.log(factor) / math.log(original))
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(scale)
        writer.add_tensor("rope_factors_long.weight", np.array(rope["long_factor"], np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(rope["short_factor"], np.float32))


def _tensors(model: Any, config: Any, graph: Graph) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield every weight by its name in transformers, in llama.cpp's layout, and whether it stays in float32."""
    offset = architecture_of(config).norm.offset
    factor, queries = query_factor(config), "q_norm" if graph.name == "GEMMA3" else "q_proj"
    described = {weight.name: weight for weight in weights_of(config)}
    for name, parameter in model.named_parameters():
        weight, tensor = described[name], parameter.detach()
        small = tensor.ndim == 1 or weight.part.is_norm or weight.part.is_router or "one" in weight.part.axes
        if name.endswith((".alpha_p", ".alpha_n")):
            continue  # xIELU's, in the hyperparameters
        if weight.part.is_norm and not weight.is_bias:
            tensor = tensor.float() + offset
        if weight.part.name.endswith(queries):
            tensor = tensor.float() * factor
        if "query_key_value" in weight.axes:
            tensor = _split_heads(tensor, config)
        if graph.neighbours and weight.part.name.endswith(("q_proj", "k_proj")):
            tensor = tensor.unflatten(0, (-1, 2, head_dim_of(config) // 2)).transpose(1, 2).flatten(0, 2)
        if weight.part.is_stacked and name.endswith("gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj"), gate, small
            yield name.replace("gate_up_proj", "up_proj"), up, small
        else:
            yield name, tensor, small
    if graph.output == "stored" and config.tie_word_embeddings:
        yield architecture_of(config).output.name, model.get_output_embeddings().weight.detach(), False


def _split_heads(tensor: Tensor, config: Any) -> Tensor:
    """Return the rows of a fused projection as queries, keys, values instead of by head."""
    sizes = sizes_of(config)
    group = sizes["heads"] // sizes["kv_heads"]
    heads = tensor.unflatten(0, (sizes["kv_heads"], group + 2, head_dim_of(config)))
    return torch.cat([part.flatten(0, 2) for part in heads.split([group, 1, 1], dim=1)])


def _yarn_scale(rope: dict[str, Any]) -> float:
    """Return the factor of rotated queries and keys, as transformers' ``_compute_yarn_parameters``."""
    if (given := rope.get("attention_factor")) is not None:
        return float(given)
    logarithm = 0.1 * math.log(max(1.0, rope["factor"]))
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return float((rope["mscale"] * logarithm + 1) / (rope["mscale_all_dim"] * logarithm + 1))
    return logarithm + 1


def _llama3_factors(rope: dict[str, Any], width: int) -> np.ndarray:
    """Return the divisors of the rotary frequencies for Llama 3's scaling, float32 [width / 2].

    Source: transformers' ``_compute_llama3_parameters``.
    """
    frequencies = 1 / rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    factors = []
    for frequency in frequencies.tolist():
        turns = original * frequency / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)
