"""Masked models: learn what to keep, cut it out. Needs torch and transformers."""

from drpruning.pruning.masks import MaskedModel
from drpruning.pruning.target import Target, parameter_count

__all__ = ["MaskedModel", "Target", "parameter_count"]
