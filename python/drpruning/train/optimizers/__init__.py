"""AdamW with weights and moments in fewer bytes, for models that do not fit a GPU at 16 bytes a parameter."""

from drpruning.train.optimizers.adamw import LowPrecisionAdamW
from drpruning.train.optimizers.low_precision import to_float32, to_low_precision

__all__ = ["LowPrecisionAdamW", "to_float32", "to_low_precision"]
