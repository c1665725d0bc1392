"""Read held-out losses of any training run from its files.

CSV, JSON lines, TensorBoard event files and the records of ``drpruning train`` are read as one :class:`LossTable`: a
row per evaluation, a column per domain. Losses of finished models of several sizes become a :class:`SizeTable`.
"""

from drpruning.loss_table.learning_rates import read_learning_rates
from drpruning.loss_table.read import read_losses
from drpruning.loss_table.sizes import SizeTable, read_size_losses
from drpruning.loss_table.table import LossTable

__all__ = ["LossTable", "SizeTable", "read_learning_rates", "read_losses", "read_size_losses"]
