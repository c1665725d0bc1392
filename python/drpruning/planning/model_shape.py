"""The shape of a model by name, from a folder, a ``config.json`` or a recipe, without torch and transformers.

transformers takes seconds to load, and a shape is a dozen numbers. :class:`ModelShape` has the numbers that shapes and
costs depend on, under the field names of a transformers config, and replaces one where only these are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from drpruning.config import ArchitectureConfig
from drpruning.errors import ConfigError, did_you_mean
from drpruning.hf.files import hub_config, local_config, read_config_fields
from drpruning.pruning.architectures import ARCHITECTURES, EXPERT_FIELDS, architecture_of, parts_of
from drpruning.pruning.target import pruned_fields, sizes_of


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a model under the field names of a transformers config.

    Attributes:
        other: The other fields of its ``config.json``, which are attributes too.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    quantization_config: Any = None
    other: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __getattr__(self, name: str) -> Any:
        """Return another field of the ``config.json``."""
        if name.startswith("__") or name == "other" or name not in self.other:
            raise AttributeError(name)
        return self.other[name]

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str) -> ModelShape:
        """Create from the fields of a ``config.json``.

        Args:
            config: The fields.
            where: Name of the model in error messages.

        Raises:
            ConfigError: A size is missing or not valid, or the model is of a type that cannot be pruned.
        """
        model_type = config.get("model_type")
        described = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
        names = {item.name for item in fields(cls)}
        other = {name: value for name, value in config.items() if name not in names | UNUSED_FIELDS}
        experts = described.size_fields.get("experts") if described else None
        if experts is not None and (found := [other.pop(name) for name in EXPERT_FIELDS if name in other]):
            other[experts] = found[0]
        known = {name: config[name] for name in names - {"other"} if config.get(name) is not None}
        for name, value in (described.defaults if described else {}).items():
            (known if name in names else other).setdefault(name, value)
        known.setdefault("num_key_value_heads", known.get("num_attention_heads"))
        for name in SIZES:
            _check_size(name, known.get(name), where)
        for name in (*described.size_fields.values(), "num_experts_per_tok") if described and experts else ():
            _check_size(name, other.get(name), where)
        known.setdefault("head_dim", known["hidden_size"] // known["num_attention_heads"])
        _check_size("head_dim", known["head_dim"], where)
        shape = cls(**{"model_type": "", "other": other, **known})
        architecture_of(shape)  # type: ignore[arg-type] # has the fields that are read
        return shape

    @classmethod
    def from_architecture(cls, architecture: ArchitectureConfig, vocabulary: int) -> ModelShape:
        """Create from a recipe's ``model.architecture``; ``vocabulary`` is used if it has none."""
        return cls(model_type=architecture.family, **architecture.transformers_sizes(vocabulary))

    @cached_property
    def has_plain_head(self) -> bool:
        """Whether the cross-entropy can be computed in chunks."""
        from drpruning.hf.models import build_on_meta  # noqa: PLC0415 - loads torch
        from drpruning.train.model_structure import has_plain_head  # noqa: PLC0415

        sizes = {**sizes_of(self), "layers": 1}  # type: ignore[arg-type] # has the fields that are read
        return has_plain_head(build_on_meta(transformers_config(self, sizes)))


@dataclass(frozen=True)
class OtherShape:
    """A model of a type that has no masks: it can be pretrained further, but not pruned.

    Its numbers come from transformers, which builds it on the meta device.

    Attributes:
        text: Its ``config.json``.
    """

    text: str

    @cached_property
    def config(self) -> Any:
        """The transformers configuration.

        Raises:
            ConfigError: transformers has no such model type, or rejects its sizes.
        """
        from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415
        from transformers import AutoConfig  # noqa: PLC0415 - takes seconds to load

        body = json.loads(self.text)
        try:
            return AutoConfig.for_model(body.pop("model_type"), **body)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise ConfigError(
                f"transformers rejects the model's config.json: {(str(error).strip() or 'no reason').splitlines()[0]}",
                "Give the config.json of a causal language model of transformers.",
            ) from error

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        from drpruning.hf.models import text_config  # noqa: PLC0415 - loads torch

        return int(text_config(self.config).vocab_size)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The sizes by the names of :class:`drpruning.pruning.Target`, where its config has them."""
        from drpruning.train.model_structure import shape_of  # noqa: PLC0415

        return shape_of(self.config)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        from drpruning.train.model_structure import num_parameters  # noqa: PLC0415

        return num_parameters(self.config)

    def products_per_token(self, length: int) -> float:
        """Return the products of a token's forward pass in rows of ``length``."""
        from drpruning.hf.models import build_on_meta  # noqa: PLC0415
        from drpruning.train.model_structure import products_of_model  # noqa: PLC0415

        return products_of_model(build_on_meta(self.config), length)

    @cached_property
    def has_plain_head(self) -> bool:
        """Whether the cross-entropy can be computed in chunks."""
        from drpruning.hf.models import build_on_meta  # noqa: PLC0415
        from drpruning.train.model_structure import has_plain_head  # noqa: PLC0415

        return has_plain_head(build_on_meta(self.config))

    def at_depth(self, layers: int) -> Any:
        """Return the configuration of the same model with ``layers`` blocks.

        Raises:
            ConfigError: The configuration has no number of blocks.
        """
        body = json.loads(self.text)
        name = self.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        number = body.get(name)
        if not isinstance(number, int):
            raise ConfigError(
                f"config.json of type {body.get('model_type')!r} has no {name}, so its memory cannot be planned",
                "Plan without --gpus.",
            )
        for key, value in body.items():  # lists with an entry for each block, such as layer_types
            if isinstance(value, list) and len(value) == number:
                body[key] = [value[at % number] for at in range(layers)]
        return OtherShape(json.dumps({**body, name: layers})).config


UNUSED_FIELDS = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
"""Fields of a ``config.json`` that do not describe the function of the model."""
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def _check_size(name: str, size: Any, where: str) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(
            f"{where}: {name}: expected a whole number of at least 1, got {size!r}",
            "Give the config.json of a causal language model of transformers.",
        )


def _shape_of_family(
    family: str, sizes: str, vocabulary: int, positions: int, *, head_dim: int = 128, tied: bool = False
) -> ModelShape:
    """Return a shape; ``sizes`` are layers, hidden, heads, kv_heads and intermediate."""
    layers, hidden, heads, kv_heads, intermediate = map(int, sizes.split())
    return ModelShape(
        model_type=family,
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
    )


KNOWN = {
    # layers, hidden, heads, kv_heads, intermediate; vocabulary, positions. From the models' own config.json.
    "meta-llama/Llama-2-7b-hf": _shape_of_family("llama", "32 4096 32 32 11008", 32000, 4096),
    "meta-llama/Llama-2-13b-hf": _shape_of_family("llama", "40 5120 40 40 13824", 32000, 4096),
    "meta-llama/Llama-3.1-8B": _shape_of_family("llama", "32 4096 32 8 14336", 128256, 131072),
    "meta-llama/Llama-3.2-3B": _shape_of_family("llama", "28 3072 24 8 8192", 128256, 131072, tied=True),
    "meta-llama/Llama-3.2-1B": _shape_of_family("llama", "16 2048 32 8 8192", 128256, 131072, head_dim=64, tied=True),
    "mistralai/Mistral-7B-v0.1": _shape_of_family("mistral", "32 4096 32 8 14336", 32000, 32768),
    "Qwen/Qwen2-7B": _shape_of_family("qwen2", "28 3584 28 4 18944", 152064, 131072),
    "Qwen/Qwen2.5-7B": _shape_of_family("qwen2", "28 3584 28 4 18944", 152064, 131072),
    "Qwen/Qwen2.5-3B": _shape_of_family("qwen2", "36 2048 16 2 11008", 151936, 32768, tied=True),
    "Qwen/Qwen2.5-1.5B": _shape_of_family("qwen2", "28 1536 12 2 8960", 151936, 131072, tied=True),
    "Qwen/Qwen3-8B-Base": _shape_of_family("qwen3", "36 4096 32 8 12288", 151936, 32768),
    "Qwen/Qwen3-4B-Base": _shape_of_family("qwen3", "36 2560 32 8 9728", 151936, 32768, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B": _shape_of_family("llama", "24 2048 32 32 8192", 49152, 8192, head_dim=64, tied=True),
    "HuggingFaceTB/SmolLM2-360M": _shape_of_family("llama", "32 960 15 5 2560", 49152, 8192, head_dim=64, tied=True),
    "HuggingFaceTB/SmolLM2-135M": _shape_of_family("llama", "30 576 9 3 1536", 49152, 8192, head_dim=64, tied=True),
}
"""Common base models by their name on the hub, to plan with offline."""


def read_shape(model: str) -> ModelShape:
    """Return the shape of a model that can be pruned.

    Args:
        model: A folder of transformers, a ``config.json``, or a name on the hub. For a name in :data:`KNOWN` nothing
            is downloaded, for others only the ``config.json``.

    Raises:
        ConfigError: There is no such model, or it is of a type that cannot be pruned.

    Example:
        >>> read_shape("meta-llama/Llama-3.1-8B").num_key_value_heads
        8
    """
    found = _find(model)
    return found if isinstance(found, ModelShape) else ModelShape.from_config(found, model)


def read_any_shape(model: str) -> ModelShape | OtherShape:
    """Return the shape of a model of any architecture; see :func:`read_shape`.

    Raises:
        ConfigError: There is no such model.
    """
    found = _find(model)
    if isinstance(found, ModelShape):
        return found
    if found.get("model_type") in ARCHITECTURES:
        return ModelShape.from_config(found, model)
    if not isinstance(found.get("model_type"), str):
        raise ConfigError(
            f"{model}: expected the name of an architecture as model_type, got {found.get('model_type')!r}",
            "Give the config.json of a causal language model of transformers.",
        )
    return OtherShape(json.dumps(found))


def _find(model: str) -> ModelShape | dict[str, Any]:
    """Return a shape of :data:`KNOWN`, or the fields of a ``config.json``."""
    by_name = {name.casefold(): shape for name, shape in KNOWN.items()}
    if not Path(model).expanduser().exists() and model.casefold() in by_name:
        return by_name[model.casefold()]
    return read_config_json(model)[0]


def read_config_json(model: str) -> tuple[dict[str, Any], Path | None]:
    """Return the fields of a model's ``config.json``, and the model's folder if it is on this machine.

    Args:
        model: See :func:`read_shape`; for a name in :data:`KNOWN` the fields are those of its shape.

    Raises:
        ConfigError: There is no such model, or its ``config.json`` is damaged.
    """
    if (path := local_config(model)) is not None:
        return read_config_fields(path, model), path.parent
    by_name = {name.casefold(): shape for name, shape in KNOWN.items()}
    if model.casefold() in by_name:
        shape = asdict(by_name[model.casefold()])
        return {**shape.pop("other"), **shape}, None
    if (path := hub_config(model)) is not None:
        return read_config_fields(path, model), None
    raise ConfigError(
        f"no model {model!r}: expected a folder, a config.json, a recipe, or a name on the hub that can be read now",
        did_you_mean(model, KNOWN) or f"Known without a connection: {', '.join(KNOWN)}.",
    )


def transformers_config(source: Any, sizes: Mapping[str, int]) -> Any:
    """Return the transformers configuration of a shape; loads transformers.

    Args:
        source: Configuration of the large model: of transformers, or a :class:`ModelShape`.
        sizes: The shape, complete, by the names of :class:`drpruning.pruning.Target`.

    Raises:
        ValueError: transformers rejects the shape; some releases raise StrictDataclassError instead.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - takes seconds to load

    if isinstance(source, ModelShape):
        known = {name: value for name, value in asdict(source).items() if name not in ("other", "quantization_config")}
        described = {part.bias for part in parts_of(source)}  # type: ignore[arg-type] # has the fields that are read
        values = dict(source.other)
        values |= {name: value for name, value in known.items() if "_bias" not in name or value or name in described}
    else:
        values = {name: value for name, value in source.to_dict().items() if name not in UNUSED_FIELDS}
    values = pruned_fields(source, values, sizes, range(sizes["layers"]))
    return AutoConfig.for_model(values.pop("model_type"), **values)
