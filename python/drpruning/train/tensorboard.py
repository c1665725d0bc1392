"""The records of a run as TensorBoard scalars, for those who watch there: ``training.tensorboard: true``."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from drpruning.records import Evaluated, Record, StepTaken


class TensorBoardSink:
    """Writes steps and evaluations, tagged by stage, over optimizer steps.

    Args:
        folder: Where the event files go; one that is there already is added to.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder))

    def write(self, record: Record) -> None:
        """Writes ``record`` if it has numbers over steps."""
        match record:
            case StepTaken():
                self._scalar(record, "loss", record.loss)
                self._scalar(record, "learning_rate", record.learning_rate)
                self._scalar(record, "grad_norm", record.grad_norm)
                self._scalar(record, "tokens_per_second", record.tokens_per_second)
                self._scalars(record, "sparsity", record.expected)
            case Evaluated():
                self._scalars(record, "held_out_loss", record.losses)
                self._scalars(record, "weight", record.weights)
                self._scalars(record, "reference_ratio", record.reference_ratio)
                self._scalars(record, "excess_loss", record.excess_loss)
                self._writer.flush()
            case _:
                pass

    def close(self) -> None:
        """Writes out what is left."""
        self._writer.close()

    def _scalars(self, record: StepTaken | Evaluated, name: str, values: dict[str, float] | None) -> None:
        for key, value in (values or {}).items():
            self._scalar(record, f"{name}/{key}", value)

    def _scalar(self, record: StepTaken | Evaluated, name: str, value: float) -> None:
        self._writer.add_scalar(f"{record.stage}/{name}", value, record.step)
