"""Loggers: the records of a run for TensorBoard, trackio or Weights & Biases (``training.logger``).

All of them get the same numbers under the same names, ``STAGE/NAME`` or ``STAGE/NAME/DOMAIN``, by the optimizer steps
of the stage. Steps that a resumed run repeats are logged again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

from drpruning.records import Evaluated, Record, StepTaken
from drpruning.run_folder import RunFolder

PROJECT = "drpruning"


class Logger(Protocol):
    """A sink that is closed when the run ends."""

    def write(self, record: Record) -> None:
        """Log ``record``."""

    def close(self) -> None:
        """Flush and close."""


def open_logger(kind: str, folder: RunFolder) -> Logger:
    """Open the logger of ``training.logger`` for the run in ``folder``."""
    if kind == "tensorboard":
        return TensorBoardLogger(folder.tensorboard)
    return TrackioLogger(folder) if kind == "trackio" else WandbLogger(folder)


def scalars(record: Record) -> dict[str, float]:
    """Return the numbers of a record that make curves over steps, by name; none for other records."""
    match record:
        case StepTaken():
            plain = {
                "loss": record.loss,
                "objective": record.objective,
                "learning_rate": record.learning_rate,
                "grad_norm": record.grad_norm,
                "tokens_per_second": record.tokens_per_second,
                "utilisation": record.utilisation,
                "loader_wait": record.loader_wait,
                "memory": record.memory,
            }
            by_name = {"sparsity": record.expected, "loss": record.domain_losses}
        case Evaluated():
            plain = {"divergence": record.divergence}
            by_name = {
                "held_out_loss": record.losses,
                "weight": record.weights,
                "reference_ratio": record.reference_ratio,
                "excess_loss": record.excess_loss,
            }
        case _:
            return {}
    found = {f"{record.stage}/{name}": float(value) for name, value in plain.items() if value is not None}
    for name, values in by_name.items():
        found |= {f"{record.stage}/{name}/{key}": value for key, value in (values or {}).items()}
    return found


class TensorBoardLogger:
    """Writes event files.

    Args:
        folder: The folder of the files; existing files are kept.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes a second to load

        self._writer = SummaryWriter(str(folder))

    def write(self, record: Record) -> None:
        """Write ``record`` if it has numbers over steps."""
        if isinstance(record, (StepTaken, Evaluated)):
            for name, value in scalars(record).items():
                self._writer.add_scalar(name, value, record.step)
        if isinstance(record, Evaluated):
            self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class TrackioLogger:
    """Logs to trackio, which stores under ``TRACKIO_DIR`` or on a Space by its own variables.

    Args:
        folder: The run folder; its name is the run's, also after a resume.
    """

    def __init__(self, folder: RunFolder) -> None:
        import trackio  # noqa: PLC0415 - an extra

        self._run: Any = trackio.init(project=PROJECT, name=folder.name, config=folder.read_recipe(), resume="allow")

    def write(self, record: Record) -> None:
        """Log ``record`` if it has numbers over steps."""
        if isinstance(record, (StepTaken, Evaluated)):
            self._run.log(scalars(record), step=record.step)

    def close(self) -> None:
        """Wait until all numbers are sent."""
        self._run.finish()


class WandbLogger:
    """Logs to Weights & Biases, online or offline by ``WANDB_MODE``.

    Args:
        folder: The run folder; its path gives the run's id, also after a resume.
    """

    def __init__(self, folder: RunFolder) -> None:
        import wandb  # noqa: PLC0415 - an extra

        identity = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=PROJECT, name=folder.name, id=identity, resume="allow", dir=folder.path, config=folder.read_recipe()
        )
        for stage in ("pretrain", "prune", "continue"):
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write(self, record: Record) -> None:
        """Log ``record`` if it has numbers over steps."""
        if isinstance(record, (StepTaken, Evaluated)):
            self._run.log({**scalars(record), f"{record.stage}/step": record.step})

    def close(self) -> None:
        """Wait until all numbers are sent."""
        self._run.finish()
