"""Units that stay whatever training finds out: the first and last blocks, say, or an outlier of the residual stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drpruning.errors import ConfigError
from drpruning.pruning.target import Target


@dataclass(frozen=True, kw_only=True)
class Protected:
    """Indices of units that no mask may close; negative ones count from the end, as in Python.

    A protected unit counts as open in the size of its row, so that the others share what has to go.

    Attributes:
        layers: Decoder blocks.
        hidden: Units of the residual stream.
        heads: For each block named, key/value heads (with the query heads that share them).
        intermediate: For each block named, MLP units.

    Example:
        >>> source = Target(layers=4, hidden=8, heads=4, kv_heads=2, intermediate=6)
        >>> stays = Protected(layers=[0, -1]).masks(source, Target(layers=3, hidden=8, kv_heads=2, intermediate=6))
        >>> stays["layer"].tolist()
        [True, False, False, True]
    """

    layers: Sequence[int] = ()
    hidden: Sequence[int] = ()
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    intermediate: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def masks(self, source: Target, target: Target) -> dict[str, Tensor]:
        """For each kind with protected units, which they are: bool, in the shape of its gates.

        Raises:
            ConfigError: An index is out of range, or more units of a row are protected than the target keeps.
        """
        sizes, goals = source.sizes(), target.sizes()
        masks = {}
        for kind, name, units in (("layer", "layers", self.layers), ("hidden", "hidden", self.hidden)):
            if units:
                masks[kind] = _marked(name, units, sizes[name], goals[name])
        for kind, name, size, rows in (
            ("head", "heads", "kv_heads", self.heads),
            ("intermediate", "intermediate", "intermediate", self.intermediate),
        ):
            if rows:
                marked = torch.zeros(sizes["layers"], sizes[size], dtype=torch.bool)
                for block, units in rows.items():
                    at = _index(name, block, sizes["layers"], "block")
                    marked[at] = _marked(f"{name} of block {block}", units, sizes[size], goals[size])
                masks[kind] = marked
        return masks


def _marked(name: str, units: Sequence[int], size: int, goal: int) -> Tensor:
    marked = torch.zeros(size, dtype=torch.bool)
    for unit in units:
        marked[_index(name, unit, size, "unit")] = True
    if (count := int(marked.sum())) > goal:
        raise ConfigError(
            f"{count} protected {name}, but the target keeps {goal}",
            "Protect fewer, or keep more of them in the target.",
        )
    return marked


def _index(name: str, index: int, size: int, what: str) -> int:
    if not -size <= index < size:
        raise ConfigError(
            f"protected {name}: there is no {what} {index}", f"It can be {-size} to {size - 1}; -1 is the last."
        )
    return index % size
