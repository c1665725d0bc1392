"""The shape to prune to, checked against the source model before anything is spent.

Three rules come from those who load the result: transformers (a Llama config refuses a width that is no multiple of
the query heads), grouped-query attention (query heads leave together with the key/value head they share), and all of
them (every block has the same shape). ``head_dim`` never changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from drpruning.errors import ConfigError
from drpruning.pruning.architectures import Axis, architecture_of, head_dim_of, weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG_FIELDS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "intermediate": "intermediate_size",
}
"""What transformers calls each size."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Sizes of the model to prune to. What is left out stays as it is in the source.

    Attributes:
        layers: Decoder blocks.
        hidden: Width of the residual stream.
        heads: Query heads of a block.
        kv_heads: Key/value heads of a block; follows from ``heads``, since a group of query heads and its key/value
            head are kept or removed as one.
        intermediate: Width of the MLP of a block.

    Example:
        >>> from transformers import LlamaConfig
        >>> llama2_7b = LlamaConfig()
        >>> Target(layers=24, hidden=2048, heads=16, intermediate=5504).resolve(llama2_7b)
        Target(layers=24, hidden=2048, heads=16, kv_heads=16, intermediate=5504)
        >>> Target(heads=48).resolve(llama2_7b)
        Traceback (most recent call last):
        drpruning.errors.ConfigError: target heads=48 is larger than the source's 32
        Choose heads between 1 and 32.
    """

    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    intermediate: int | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Target:
        """The complete shape of a model: what pruning starts from."""
        return cls(**sizes_of(config))

    def resolve(self, config: PreTrainedConfig) -> Target:
        """This target with every size filled in from the source, if it is one that can be reached and loaded.

        Raises:
            ConfigError: A size is zero, larger than the source's, or does not fit the others; names the nearest that
                do.
        """
        source = sizes_of(config)
        wanted = {name: size for name, size in asdict(self).items() if size is not None}
        for name, size in wanted.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ConfigError(
                    f"target {name} must be a whole number of at least 1, got {size!r}",
                    f"Choose {name} between 1 and {source[name]}, or leave it out to keep {source[name]}.",
                )
            if size > source[name]:
                raise ConfigError(
                    f"target {name}={size} is larger than the source's {source[name]}",
                    f"Choose {name} between 1 and {source[name]}.",
                )
        heads, kv_heads = _heads(source, wanted)
        sizes = {**source, **wanted, "heads": heads, "kv_heads": kv_heads}
        if architecture_of(config).hidden_multiple_of_heads:
            _check_width(sizes, source)
        return Target(**sizes)

    def sizes(self) -> dict[str, int]:
        """The sizes by name, in the order they are declared; those left out are missing."""
        return {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) is not None}

    def config_fields(self) -> dict[str, int]:
        """The sizes under the names that a transformers config has for them."""
        return {CONFIG_FIELDS[name]: size for name, size in self.sizes().items()}


def sizes_of(config: PreTrainedConfig) -> dict[str, int]:
    """The sizes of a model by the names of :class:`Target`.

    Raises:
        ConfigError: The architecture is not supported, or its heads do not share key/value heads evenly.
    """
    architecture_of(config)
    sizes = {name: int(getattr(config, field)) for name, field in CONFIG_FIELDS.items()}
    if sizes["heads"] % sizes["kv_heads"] != 0:
        raise ConfigError(
            f"the source's {sizes['heads']} query heads do not share its {sizes['kv_heads']} key/value heads evenly",
            "transformers cannot run such a model; check its config.json.",
        )
    return sizes


def axis_sizes(config: PreTrainedConfig, target: Target) -> dict[Axis, int]:
    """Entries along each axis of the weights of a model of ``config``'s kind and of the shape ``target``.

    Raises:
        ConfigError: The target does not fit the source.
    """
    return entries_along(config, target.resolve(config).sizes())


def entries_along(config: PreTrainedConfig, sizes: Mapping[str, int]) -> dict[Axis, int]:
    """The same for complete sizes by the names of :class:`Target`, which are not checked."""
    head_dim = head_dim_of(config)
    return {
        "vocab": config.vocab_size,
        "hidden": sizes["hidden"],
        "query": sizes["heads"] * head_dim,
        "key_value": sizes["kv_heads"] * head_dim,
        "head_dim": head_dim,
        "intermediate": sizes["intermediate"],
    }


def parameter_count(config: PreTrainedConfig, target: Target | None = None) -> int:
    """Parameters of a model of ``config``'s kind and of the shape ``target``, without building it.

    Args:
        config: Configuration of the source.
        target: The shape; the source's own when left out.

    Raises:
        ConfigError: The target does not fit the source.

    Example:
        >>> from transformers import LlamaConfig
        >>> parameter_count(LlamaConfig())
        6738415616
        >>> parameter_count(LlamaConfig(), Target(layers=24, hidden=2048, heads=16, intermediate=5504))
        1345423360
    """
    target = (target or Target()).resolve(config)
    along = axis_sizes(config, target)
    return sum(math.prod(along[axis] for axis in weight.axes) for weight in weights_of(config, target.layers))


def _heads(source: dict[str, int], wanted: dict[str, int]) -> tuple[int, int]:
    """Query heads and key/value heads of the target: as many query heads to a group as the source has."""
    group = source["heads"] // source["kv_heads"]
    heads = wanted.get("heads", wanted.get("kv_heads", source["kv_heads"]) * group)
    kv_heads = wanted.get("kv_heads", max(1, heads // group))
    if heads != kv_heads * group:
        below = max(1, heads // group)
        groups = sorted({below, min(below + 1, source["kv_heads"])})
        nearest = " or ".join(f"heads={count * group}, kv_heads={count}" for count in groups)
        raise ConfigError(
            f"target heads={heads}, kv_heads={kv_heads} breaks the source's groups of {group} query heads to a "
            f"key/value head; query heads leave only with their whole group",
            f"Nearest valid: {nearest}.",
        )
    return heads, kv_heads


def _check_width(sizes: dict[str, int], source: dict[str, int]) -> None:
    """LlamaConfig's rule, which transformers applies even where head_dim is given."""
    hidden, heads = sizes["hidden"], sizes["heads"]
    if hidden % heads == 0:
        return
    widths = [
        width for width in (hidden - hidden % heads, hidden - hidden % heads + heads) if width <= source["hidden"]
    ]
    group = source["heads"] // source["kv_heads"]
    fitting = [count for count in range(group, source["heads"] + 1, group) if hidden % count == 0]
    nearest = [f"hidden={width}" for width in widths if width > 0]
    nearest += [f"heads={count}" for count in sorted(fitting, key=lambda count: (abs(count - heads), count))[:2]]
    raise ConfigError(
        f"target hidden={hidden} is not a multiple of heads={heads}; LlamaConfig refuses such a model",
        f"Nearest valid: {', '.join(nearest)}." if nearest else "Change heads and hidden together.",
    )
