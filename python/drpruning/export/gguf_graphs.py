"""llama.cpp's compute graphs: which graph computes a model, and the settings that the graph fixes.

A GGUF file names a graph and its sizes; the graph itself is C++ code. Many graphs have no setting for a feature of the
model class, such as the biases of Qwen3's attention or a window that is not periodic. A model with another value is an
error: a file would load and compute another function. Each entry was read in llama.cpp's ``src/models/*.cpp``.

This file loads neither torch nor gguf: plans check targets with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from drpruning.errors import ConfigError
from drpruning.pruning.architectures import head_dim_of

SILU, RELU2, XIELU = ("silu",), ("relu2",), ("xielu",)
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Activations that a graph computes alike. GELU is the tanh approximation, read from a table in float16."""
NO_BIAS = {"attention_bias": False}
OTHER_CONVERTER = "llama.cpp's convert_hf_to_gguf.py converts more models. This one runs in transformers and vLLM."


@dataclass(frozen=True)
class Graph:
    """A compute graph of llama.cpp.

    Attributes:
        name: Its name in ``gguf.MODEL_ARCH``.
        neighbours: Whether the graph rotates neighbouring entries of a head where transformers rotates entry i with
            entry i + head_dim / 2. The rows of queries and keys are then stored in the graph's order.
        square: Whether the graph requires hidden size = heads * head_dim.
        partial: Whether the graph rotates a part of each head.
        output: Whether a file has the output layer: ``any``, ``stored`` (also where it is the embedding), or ``tied``
            (never).
        local: Blocks with local attention. ``none``: the graph has none. ``periodic``: the last block of each period
            is global. ``differs``: periodic, and the rotation of global blocks differs.
        activations: Values of ``hidden_act`` that the graph computes.
        fixed: Other fields of the configuration, with the only value that the graph computes.
    """

    name: str
    neighbours: bool = False
    square: bool = False
    partial: bool = False
    output: Literal["any", "stored", "tied"] = "any"
    local: Literal["none", "periodic", "differs"] = "none"
    activations: tuple[str, ...] = SILU
    fixed: Mapping[str, Any] = field(default_factory=dict)


GRAPHS: dict[str, Graph] = {
    "llama": Graph("LLAMA", neighbours=True),
    "mistral": Graph("LLAMA", neighbours=True),
    "qwen2": Graph("QWEN2"),
    "qwen3": Graph("QWEN3", fixed=NO_BIAS),
    "gemma": Graph("GEMMA", output="tied", activations=GELU, fixed=NO_BIAS),
    "gemma2": Graph("GEMMA2", output="tied", local="periodic", activations=GELU, fixed=NO_BIAS),
    "gemma3_text": Graph("GEMMA3", local="differs", activations=GELU, fixed=NO_BIAS),
    "phi": Graph("PHI2", square=True, partial=True, output="stored", activations=GELU),
    "phi3": Graph("PHI3", square=True, partial=True),
    "olmo2": Graph("OLMO2", square=True, output="stored", fixed=NO_BIAS),
    "olmo3": Graph("OLMO2", square=True, output="stored", local="differs", fixed=NO_BIAS),
    "gpt_neox": Graph(
        "GPTNEOX", square=True, partial=True, output="stored", activations=GELU, fixed={"attention_bias": True}
    ),
    "granite": Graph("GRANITE", neighbours=True),
    "smollm3": Graph("SMOLLM3", neighbours=True, fixed={**NO_BIAS, "mlp_bias": False}),
    "stablelm": Graph("STABLELM", square=True, partial=True, output="stored"),
    "starcoder2": Graph("STARCODER2", square=True, activations=GELU, fixed={"use_bias": True}),
    "cohere": Graph("COMMAND_R", square=True, output="tied", fixed=NO_BIAS),
    "cohere2": Graph("COHERE2", square=True, output="tied", local="differs", fixed=NO_BIAS),
    "glm": Graph("CHATGLM", square=True, partial=True),
    "glm4": Graph("GLM4", partial=True),
    "nemotron": Graph("NEMOTRON", square=True, partial=True, output="stored", activations=RELU2),
    "ministral": Graph("LLAMA", neighbours=True),
    "ministral3": Graph("MISTRAL3", neighbours=True),
    "apertus": Graph("APERTUS", activations=XIELU, fixed=NO_BIAS),
    "seed_oss": Graph("SEED_OSS", fixed={"attention_out_bias": False, "mlp_bias": False}),
    "hunyuan_v1_dense": Graph("HUNYUAN_DENSE", fixed=NO_BIAS),
    "ernie4_5": Graph("ERNIE4_5", fixed={"use_bias": False}),
    "exaone4": Graph("EXAONE4", fixed={"sliding_window": None}),
    "arcee": Graph("ARCEE", neighbours=True, activations=RELU2, fixed={**NO_BIAS, "mlp_bias": False}),
    "helium": Graph("LLAMA"),
    "mixtral": Graph("LLAMA", neighbours=True),
    "qwen2_moe": Graph("QWEN2MOE", square=True, output="stored", fixed={"norm_topk_prob": False}),
    "qwen3_moe": Graph("QWEN3MOE", fixed={**NO_BIAS, "norm_topk_prob": True}),
    "olmoe": Graph("OLMOE", square=True, output="stored", fixed={**NO_BIAS, "norm_topk_prob": False, "clip_qkv": None}),
}
"""By ``config.model_type``."""


def graph_of(config: Any) -> Graph:
    """Return the graph that computes a model.

    Args:
        config: A configuration of transformers, or a :class:`drpruning.planning.ModelShape`.

    Raises:
        ConfigError: llama.cpp has no graph that computes the same function; names the feature.
    """
    kind = config.model_type
    if kind not in GRAPHS:
        raise ConfigError(
            f"models of type {kind!r} are not converted to GGUF here, only {', '.join(GRAPHS)}", OTHER_CONVERTER
        )
    graph = GRAPHS[kind]
    heads = config.num_attention_heads * head_dim_of(config)
    problems = [*unsupported_features(config, graph), *_unsupported_orders(config, graph)]
    if graph.square and heads != config.hidden_size:
        problems.append(f"its hidden size is {config.hidden_size}, expected heads times head_dim, {heads}")
    if problems:
        raise ConfigError(
            f"llama.cpp does not compute this model of type {kind!r}: {'; '.join(problems)}", OTHER_CONVERTER
        )
    return graph


def unsupported_features(config: Any, graph: Graph) -> Iterator[str]:
    """Yield the settings that the graph does not compute, whatever the sizes and the order of blocks."""
    activation = activation_of(config)
    if activation is not None and activation not in graph.activations:
        yield f"its activation is {activation!r}, expected {' or '.join(map(repr, graph.activations))}"
    for name, value in graph.fixed.items():
        if (got := getattr(config, name, value)) != value:
            yield f"config.{name} is {got!r}, expected {value!r}"
    if graph.output == "tied" and not config.tie_word_embeddings:
        yield "its output layer has separate weights, expected those of the embedding"
    rope = rope_of(config)
    if (scaling := rope.get("rope_type", "default")) not in SCALINGS:
        yield f"its rope_type is {scaling!r}, expected {', '.join(SCALINGS)}"
    if scaling == "yarn" and not rope.get("truncate", True):
        yield "its YaRN has truncate=False, expected True: llama.cpp rounds the dimensions that bound its ramp"
    if rope.get("partial_rotary_factor", 1.0) != 1 and not graph.partial:
        yield "it rotates a part of each head (partial_rotary_factor), expected whole heads"
    local, base = rope_of(config, "sliding_attention").get("rope_theta"), rope.get("rope_theta")
    if graph.name == "OLMO2" and local != base:
        yield f"its blocks with local attention have rope_theta {local}, expected {base} as in the others"
    if graph.name == "COMMAND_R" and getattr(config, "use_qk_norm", False) != (config.num_hidden_layers >= NORMED_FROM):
        yield (
            f"it has {config.num_hidden_layers} blocks and use_qk_norm={getattr(config, 'use_qk_norm', False)}; the "
            f"graph has norms of queries and keys from {NORMED_FROM} blocks on"
        )


def _unsupported_orders(config: Any, graph: Graph) -> Iterator[str]:
    """Yield what is wrong with the order of blocks."""
    if graph.local == "differs" and period_of(local_blocks(config)) is None:
        yield (
            "its blocks with local attention are not periodic (config.layer_types), and blocks with global attention "
            "rotate differently"
        )
    if graph.name == "SMOLLM3":
        rotated = [int((block + 1) % NO_ROPE_STEP != 0) for block in range(config.num_hidden_layers)]
        if list(config.no_rope_layers)[: config.num_hidden_layers] != rotated:
            yield f"its blocks without rotation (config.no_rope_layers) are not every {NO_ROPE_STEP}th"


def order_condition(graph: Graph, config: Any) -> str:
    """Return what the kept blocks of a model must satisfy for the graph to compute the pruned model, or nothing."""
    if graph.local == "differs" and any(local_blocks(config)):
        return "if the kept blocks with local attention are periodic"
    if graph.name == "SMOLLM3":
        return f"if every {NO_ROPE_STEP}th kept block, and no other, is one without rotation"
    return ""


NO_ROPE_STEP, NORMED_FROM = 4, 64
"""Constants of the graphs of SmolLM3 (blocks after which one does not rotate) and Command R (blocks of Command R+)."""
SCALINGS = ("default", "linear", "llama3", "yarn", "longrope")
"""Scalings of rotary embeddings that files have fields for. llama.cpp selects LongRoPE's factors by the context that is
allocated, transformers by the length of the sequence."""


def activation_of(config: Any) -> str | None:
    """Return the activation of a model's MLP; None where the configuration does not name it."""
    return getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)


def rope_of(config: Any, blocks: str = "full_attention") -> dict[str, Any]:
    """Return the rotary parameters of the blocks of a type; some models have two, as of :class:`Graph.local`."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return dict(rope.get(blocks, rope))


def local_blocks(config: Any) -> list[bool]:
    """Return for each block whether its attention is local, within ``config.sliding_window``."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if window is None:
        return [False] * config.num_hidden_layers
    if types is not None:
        return [kind == "sliding_attention" for kind in types[: config.num_hidden_layers]]
    return [bool(getattr(config, "use_sliding_window", True))] * config.num_hidden_layers


def period_of(local: list[bool]) -> int | None:
    """Return the period after which a block with global attention follows, or None where there is no period.

    Example:
        >>> period_of([True, True, False, True]), period_of([False, False]), period_of([False, True])
        (3, 1, None)
    """
    for period in range(1, len(local) + 2):
        if local == [block % period < period - 1 for block in range(len(local))]:
            return period
    return None


def context_of(config: Any, graph: Graph) -> int:
    """Return the context length up to which llama.cpp computes the same function.

    A graph without local attention attends to every token. That is the model's attention up to its window.
    """
    positions, local = int(config.max_position_embeddings), local_blocks(config)
    if not any(local) or (graph.local != "none" and period_of(local) is not None):
        return positions
    return min(positions, int(config.sliding_window))


def query_factor(config: Any) -> float:
    """Return what queries are multiplied by, since the graph divides scores of Gemma by another number than the model.

    The graph divides by the root of head_dim, or of hidden size / heads in a model with as many blocks as a 27B has.
    """
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is None:
        return 1.0
    is_27b = config.num_hidden_layers == {"gemma2": 46, "gemma3_text": 62}.get(config.model_type)
    divisor = config.hidden_size // config.num_attention_heads if is_27b else head_dim_of(config)
    return float((divisor / scalar) ** 0.5)
