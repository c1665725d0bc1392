"""The shape and the cost of a small model, before anything is trained. Loads neither torch nor transformers."""

from drpruning.planning.accelerators import (
    ACCELERATORS,
    Accelerator,
    Serving,
    cache_bytes_per_token,
    decode_seconds,
    find_accelerator,
)
from drpruning.planning.model_shape import KNOWN, ModelShape, read_shape
from drpruning.planning.search import Budget, Candidate, search_shapes

__all__ = [
    "ACCELERATORS",
    "KNOWN",
    "Accelerator",
    "Budget",
    "Candidate",
    "ModelShape",
    "Serving",
    "cache_bytes_per_token",
    "decode_seconds",
    "find_accelerator",
    "read_shape",
    "search_shapes",
]
