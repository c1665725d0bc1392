"""Learned pruning masks over a transformers model. Needs torch and transformers.

Shapes and descriptions of architectures load neither, so that shapes can be planned without.
"""

from typing import TYPE_CHECKING, Any

from drpruning.pruning.architecture_spec import ArchitectureSpec, Norm, Part, Routing
from drpruning.pruning.architectures import register_architecture
from drpruning.pruning.target import Protected, Target, parameter_count

if TYPE_CHECKING:
    from drpruning.pruning.masked_model import MaskedModel

__all__ = [
    "ArchitectureSpec",
    "MaskedModel",
    "Norm",
    "Part",
    "Protected",
    "Routing",
    "Target",
    "parameter_count",
    "register_architecture",
]


def __getattr__(name: str) -> Any:
    if name == "MaskedModel":
        from drpruning.pruning.masked_model import MaskedModel  # noqa: PLC0415 - torch takes seconds to load

        return MaskedModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
