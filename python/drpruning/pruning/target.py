"""The target shape of a pruning run, checked against the source model, and the units that stay protected.

Three rules come from the software that loads the result:

- transformers: some configs reject a width that is not a multiple of the query heads (Llama), or compute the width of a
  head as hidden size / heads (GPT-NeoX);
- grouped-query attention: query heads are pruned together with the key/value head they share;
- all loaders: every block has the same shape.

``head_dim`` never changes. This file loads neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from drpruning.errors import ConfigError
from drpruning.pruning.architecture_spec import Axis, entries
from drpruning.pruning.architectures import (
    EXPERT_FIELDS,
    SIZE_FIELDS,
    architecture_of,
    experts_per_token,
    head_dim_of,
    hidden_fits,
    hidden_rule_of,
    projections_of,
    shared_width_of,
    size_field,
    weights_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SIZES = (*SIZE_FIELDS, "experts")
"""Names of the sizes of :class:`Target`."""

EXPERT_MULTIPLE = 8
"""Hidden and intermediate sizes of a mixture of experts are multiples of it: transformers multiplies all experts by one
grouped product, which needs rows of a multiple of 16 bytes, eight numbers in bfloat16."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Target:
    """Sizes of the model to prune to. A size of None stays that of the source.

    Attributes:
        layers: Decoder blocks.
        hidden: Width of the residual stream.
        heads: Query heads of a block.
        kv_heads: Key/value heads of a block; follows from ``heads``, since a group of query heads and its key/value
            head are kept or pruned together.
        intermediate: Width of the MLP of a block; in a mixture of experts that of each expert.
        experts: Experts of a block, in a mixture of experts; not those that every token passes.

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
    experts: int | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Target:
        """Return the complete shape of a model."""
        return cls(**sizes_of(config))

    def resolve(self, config: PreTrainedConfig) -> Target:
        """Return this target with every size filled in from the source, if the shape can be reached and loaded.

        Raises:
            ConfigError: A size is zero, larger than the source's, or does not fit the others; names the nearest that
                does.
        """
        source = sizes_of(config)
        requested = {name: size for name, size in asdict(self).items() if size is not None}
        if "experts" in requested and "experts" not in source:
            raise ConfigError(
                f"target experts={requested['experts']}, but a model of type {config.model_type!r} has no experts",
                "Leave out experts; the MLP of a block is pruned by intermediate.",
            )
        for name, size in requested.items():
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
        heads, kv_heads = _heads(source, requested)
        sizes = {**source, **requested, "heads": heads, "kv_heads": kv_heads}
        _check_experts(config, sizes, source)
        if not hidden_fits(config, sizes["hidden"], heads):
            _check_width(config, sizes, source)
        return Target(**sizes)

    def sizes(self) -> dict[str, int]:
        """Return the sizes by name, in declaration order, without those that are None."""
        return {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) is not None}

    def __repr__(self) -> str:
        """Return the constructor's call with the sizes that are not None."""
        return f"Target({', '.join(f'{name}={size}' for name, size in self.sizes().items())})"


def sizes_of(config: PreTrainedConfig) -> dict[str, int]:
    """Return the sizes of a model by the names of :class:`Target`; ``experts`` only where its MLPs are experts.

    Raises:
        ConfigError: The architecture is not supported, or its heads do not share key/value heads evenly.
    """
    names = [name for name in SIZES if name != "experts" or architecture_of(config).routing is not None]
    kv_heads = getattr(config, "num_key_value_heads", None)  # classes without grouped queries have no such field
    sizes = {
        name: int(
            kv_heads or config.num_attention_heads if name == "kv_heads" else getattr(config, size_field(config, name))
        )
        for name in names
    }
    if sizes["heads"] % sizes["kv_heads"] != 0:
        raise ConfigError(
            f"the source's {sizes['heads']} query heads do not share its {sizes['kv_heads']} key/value heads evenly",
            "transformers cannot run such a model; check its config.json.",
        )
    return sizes


def axis_sizes(config: PreTrainedConfig, target: Target) -> dict[Axis, int]:
    """Return the number of entries along each axis of the weights of a model of shape ``target``.

    Args:
        config: Configuration of the source.
        target: The shape; sizes of None are those of the source.

    Raises:
        ConfigError: The target does not fit the source.
    """
    return entries_along(config, target.resolve(config).sizes())


def entries_along(config: PreTrainedConfig, sizes: Mapping[str, int]) -> dict[Axis, int]:
    """Return :func:`axis_sizes` of complete ``sizes`` by the names of :class:`Target`, without a check."""
    head_dim = head_dim_of(config)
    return {
        "vocab": config.vocab_size,
        "hidden": sizes["hidden"],
        "query": sizes["heads"] * head_dim,
        "key_value": sizes["kv_heads"] * head_dim,
        "query_key_value": (sizes["heads"] + 2 * sizes["kv_heads"]) * head_dim,
        "query_head": sizes["heads"],
        "key_value_head": sizes["kv_heads"],
        "head_dim": head_dim,
        "intermediate": sizes["intermediate"],
        "gate_up": 2 * sizes["intermediate"],
        "expert": sizes.get("experts", 1),
        "shared_intermediate": shared_width_of(config),
        "one": 1,
    }


def widest_input(config: PreTrainedConfig, target: Target | None = None) -> int:
    """Return the largest number of inputs of a projection in a block of a model of shape ``target``, by default all."""
    sizes = axis_sizes(config, target or Target())
    return max(entries(part.axes[1], sizes) for group in projections_of(config) for part in group)


def parameter_count(config: PreTrainedConfig, target: Target | None = None, *, active: bool = False) -> int:
    """Count the parameters of a model of shape ``target`` without building it.

    Args:
        config: Configuration of the source.
        target: The shape; that of the source by default.
        active: Count only those that a token passes: of the experts, as many as it is routed to.

    Raises:
        ConfigError: The target does not fit the source.

    Example:
        >>> from transformers import LlamaConfig
        >>> parameter_count(LlamaConfig())
        6738415616
        >>> parameter_count(LlamaConfig(), Target(layers=24, hidden=2048, heads=16, intermediate=5504))
        1345423360
        >>> from transformers import MixtralConfig
        >>> parameter_count(MixtralConfig()), parameter_count(MixtralConfig(), active=True)
        (46702792704, 12879925248)
    """
    return parameters_of(config, (target or Target()).resolve(config).sizes(), active=active)


def parameters_of(
    config: PreTrainedConfig, sizes: Mapping[str, int], *, blocks_only: bool = False, active: bool = False
) -> int:
    """Count the parameters of complete ``sizes`` by the names of :class:`Target`, without a check.

    Args:
        config: Configuration of the source.
        sizes: The sizes.
        blocks_only: Leave out embedding, output layer and last norm.
        active: See :func:`parameter_count`.
    """
    along = entries_along(config, sizes)
    chosen: dict[Axis, int] = {**along, "expert": experts_per_token(config) or 1}
    weights = weights_of(config, sizes["layers"])
    return sum(
        math.prod(entries(axis, chosen if active and weight.part.is_stacked else along) for axis in weight.axes)
        for weight in weights
        if not blocks_only or weight.block is not None
    )


def cycle_sizes(source: Mapping[str, int], target: Mapping[str, int], cycles: int) -> list[dict[str, int]]:
    """Return the sizes after each cycle of a prune stage, the target's last: geometric between source and target.

    Args:
        source: Complete sizes by the names of :class:`Target`.
        target: The same of the pruned model.
        cycles: Number of cycles.

    Example:
        >>> source = {"layers": 4, "hidden": 64, "heads": 4, "kv_heads": 2, "intermediate": 192}
        >>> cycle_sizes(source, {**source, "layers": 3, "hidden": 48, "intermediate": 144}, 2)[0]
        {'layers': 3, 'hidden': 55, 'heads': 4, 'kv_heads': 2, 'intermediate': 166}
    """
    shapes = []
    for cycle in range(1, cycles + 1):
        sizes = {name: round(size * (target[name] / size) ** (cycle / cycles)) for name, size in source.items()}
        sizes["heads"] = sizes["kv_heads"] * (source["heads"] // source["kv_heads"])
        shapes.append(sizes)
    return shapes


def pruned_fields(
    config: PreTrainedConfig, values: Mapping[str, Any], sizes: Mapping[str, int], layers: Sequence[int]
) -> dict[str, Any]:
    """Return the fields of the configuration of a pruned model.

    Args:
        config: Configuration of the source.
        values: Its fields.
        sizes: The shape, complete, by the names of :class:`Target`.
        layers: The blocks of the source that are kept; lists with an entry for each block keep theirs.
    """
    architecture = architecture_of(config)
    changed: dict[str, Any] = {size_field(config, name): size for name, size in sizes.items()}
    if "experts" in sizes:
        values = {name: value for name, value in values.items() if name not in EXPERT_FIELDS}
    if not hasattr(config, "num_key_value_heads"):
        del changed["num_key_value_heads"]
    if hasattr(config, "head_dim") or architecture.hidden != "heads times head_dim":
        changed["head_dim"] = head_dim_of(config)
    for name in architecture.block_lists:
        if values.get(name):
            changed[name] = [values[name][block] for block in layers]
    if "max_window_layers" in values:
        changed["max_window_layers"] = sum(block < values["max_window_layers"] for block in layers)
    return {**values, **changed}


def _heads(source: dict[str, int], requested: dict[str, int]) -> tuple[int, int]:
    """Return query heads and key/value heads of the target, in groups of the source's size."""
    group = source["heads"] // source["kv_heads"]
    heads = requested.get("heads", requested.get("kv_heads", source["kv_heads"]) * group)
    kv_heads = requested.get("kv_heads", max(1, heads // group))
    if heads != kv_heads * group:
        below = max(1, heads // group)
        groups = sorted({below, min(below + 1, source["kv_heads"])})
        nearest = " or ".join(f"heads={count * group}, kv_heads={count}" for count in groups)
        raise ConfigError(
            f"target heads={heads}, kv_heads={kv_heads} breaks the source's groups of {group} query heads to a "
            f"key/value head; query heads are pruned only with their whole group",
            f"Nearest valid: {nearest}.",
        )
    return heads, kv_heads


def _check_experts(config: PreTrainedConfig, sizes: Mapping[str, int], source: Mapping[str, int]) -> None:
    """Raise the error for fewer experts than a token is routed to, or for sizes that experts cannot have."""
    least = experts_per_token(config)
    if least is not None and sizes["experts"] < least:
        raise ConfigError(
            f"target experts={sizes['experts']} is smaller than num_experts_per_tok={least}: the source routes each "
            "token to that many experts",
            f"Choose experts={least} or more.",
        )
    for name in ("hidden", "intermediate") if least is not None else ():
        below = sizes[name] - sizes[name] % EXPERT_MULTIPLE
        if below != sizes[name] != source[name]:
            nearest = [size for size in (below, below + EXPERT_MULTIPLE) if 0 < size <= source[name]]
            raise ConfigError(
                f"target {name}={sizes[name]} is not a multiple of {EXPERT_MULTIPLE}, which the grouped product of a "
                "mixture of experts needs",
                f"Nearest valid: {' or '.join(f'{name}={size}' for size in nearest)}.",
            )


def _check_width(config: PreTrainedConfig, sizes: dict[str, int], source: dict[str, int]) -> None:
    """Raise the error for a width that does not fit the heads; transformers' rules hold even if ``head_dim`` is set."""
    hidden, heads = sizes["hidden"], sizes["heads"]
    unit = heads * head_dim_of(config) if hidden_rule_of(config) == "heads times head_dim" else heads
    widths = [width for width in (hidden - hidden % unit, hidden - hidden % unit + unit) if width <= source["hidden"]]
    group = source["heads"] // source["kv_heads"]
    fitting = [count for count in range(group, source["heads"] + 1, group) if hidden_fits(config, hidden, count)]
    nearest = [f"hidden={width}" for width in widths if width > 0 and hidden_fits(config, width, heads)]
    nearest += [f"heads={count}" for count in sorted(fitting, key=lambda count: (abs(count - heads), count))[:2]]
    rule = f"a multiple of heads={heads}" if unit == heads else f"heads={heads} times head_dim={head_dim_of(config)}"
    raise ConfigError(
        f"target hidden={hidden} is not {rule}; a model of type {config.model_type!r} needs that",
        f"Nearest valid: {', '.join(nearest)}." if nearest else "Change heads and hidden together.",
    )


@dataclass(frozen=True, kw_only=True)
class Protected:
    """Units that masks never prune, such as the first and last blocks; negative indices count from the end.

    A protected unit counts as active in the size of its row, so the other units of the row are pruned instead.

    Attributes:
        layers: Decoder blocks.
        hidden: Units of the residual stream.
        heads: By block, key/value heads (with the query heads that share them).
        intermediate: By block, MLP units.
        experts: By block, experts.

    Example:
        >>> source = Target(layers=4, hidden=8, heads=4, kv_heads=2, intermediate=6)
        >>> target = Target(layers=3, hidden=8, kv_heads=2, intermediate=6)
        >>> Protected(layers=[0, -1]).masks(source, target)["layer"].tolist()
        [True, False, False, True]
    """

    layers: Sequence[int] = ()
    hidden: Sequence[int] = ()
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    intermediate: Mapping[int, Sequence[int]] = field(default_factory=dict)
    experts: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def masks(self, source: Target, target: Target) -> dict[str, np.ndarray]:
        """Return the protected units of each mask kind that has some: bool, in the shape of its gates.

        Raises:
            ConfigError: An index is out of range, or more units of a row are protected than the target keeps.
        """
        sizes, goals = source.sizes(), target.sizes()
        if self.experts and "experts" not in sizes:
            raise ConfigError("protected experts, but the model has no experts", "Leave out protect.experts.")
        if self.intermediate and "experts" in sizes:
            raise ConfigError(
                "protected intermediate units, but each expert of a mixture of experts has units with its own order",
                "Protect whole experts: protect.experts.",
            )
        masks = {}
        for kind, name, units in (("layer", "layers", self.layers), ("hidden", "hidden", self.hidden)):
            if units:
                masks[kind] = _protected_row(name, units, sizes[name], goals[name])
        for kind, name, size, rows in (
            ("head", "heads", "kv_heads", self.heads),
            ("intermediate", "intermediate", "intermediate", self.intermediate),
            ("expert", "experts", "experts", self.experts),
        ):
            if rows:
                masks[kind] = np.zeros((sizes["layers"], sizes[size]), dtype=bool)
                for block, units in rows.items():
                    row = _resolve_index(name, block, sizes["layers"], "block")
                    masks[kind][row] = _protected_row(f"{name} of block {block}", units, sizes[size], goals[size])
        return masks


def _protected_row(name: str, units: Sequence[int], size: int, goal: int) -> np.ndarray:
    row = np.zeros(size, dtype=bool)
    for unit in units:
        row[_resolve_index(name, unit, size, "unit")] = True
    if (count := int(row.sum())) > goal:
        raise ConfigError(
            f"{count} protected {name}, but the target keeps {goal}",
            "Protect fewer, or keep more of them in the target.",
        )
    return row


def _resolve_index(name: str, index: int, size: int, what: str) -> int:
    if not -size <= index < size:
        raise ConfigError(
            f"protected {name}: there is no {what} {index}", f"It can be {-size} to {size - 1}; -1 is the last."
        )
    return index % size
