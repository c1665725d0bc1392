"""Learned pruning masks over a transformers model. Needs torch and transformers.

:class:`Target`, :class:`Protected` and :func:`parameter_count` load neither, so that shapes can be planned without.
"""

from typing import TYPE_CHECKING, Any

from drpruning.pruning.target import Protected, Target, parameter_count

if TYPE_CHECKING:
    from drpruning.pruning.masked_model import MaskedModel

__all__ = ["MaskedModel", "Protected", "Target", "parameter_count"]


def __getattr__(name: str) -> Any:
    if name == "MaskedModel":
        from drpruning.pruning.masked_model import MaskedModel  # noqa: PLC0415 - torch takes seconds to load

        return MaskedModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
