"""Masked models: learn what to keep, cut it out. Needs torch and transformers.

Shapes can be planned without them: :class:`Target` and :func:`parameter_count` load neither.
"""

from typing import TYPE_CHECKING, Any

from drpruning.pruning.target import Target, parameter_count

if TYPE_CHECKING:
    from drpruning.pruning.masks import MaskedModel

__all__ = ["MaskedModel", "Target", "parameter_count"]


def __getattr__(name: str) -> Any:
    if name == "MaskedModel":
        from drpruning.pruning.masks import MaskedModel  # noqa: PLC0415 - torch takes seconds to load

        return MaskedModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
