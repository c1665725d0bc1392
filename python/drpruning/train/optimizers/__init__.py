"""AdamW whose weights and moments take fewer bytes: for models that do not fit a card at 16 bytes a parameter."""

from drpruning.train.optimizers.adamw import NarrowAdamW
from drpruning.train.optimizers.low_precision import narrow, widen

__all__ = ["NarrowAdamW", "narrow", "widen"]
