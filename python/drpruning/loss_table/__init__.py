"""Held-out losses that somebody's training run wrote down, read from the file it wrote them to.

CSV, JSON lines, TensorBoard event files and the records of a run of ours all become one :class:`LossTable`: a row per
evaluation, a column per domain. Losses of finished models of several sizes become a :class:`SizeTable`.
"""

from drpruning.loss_table.learning_rates import read_learning_rates
from drpruning.loss_table.read import read_losses
from drpruning.loss_table.sizes import SizeTable, read_size_losses
from drpruning.loss_table.table import LossTable

__all__ = ["LossTable", "SizeTable", "read_learning_rates", "read_losses", "read_size_losses"]
