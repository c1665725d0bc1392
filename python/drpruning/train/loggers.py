"""The records of a run for those who watch elsewhere: TensorBoard, trackio, Weights & Biases (``training.tracker``).

Each is told the same numbers under the same names, ``STAGE/NAME`` or ``STAGE/NAME/DOMAIN``, over the optimizer steps of
the stage. Steps that a resumed run takes again are told again.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import yaml

from drpruning.errors import MissingExtraError
from drpruning.records import Evaluated, Record, StepTaken

PROJECT = "drpruning"


class Tracker(Protocol):
    """A sink that is closed when the run ends."""

    def write(self, record: Record) -> None:
        """Takes note of ``record``."""

    def close(self) -> None:
        """Writes out what is left."""


def check_tracker(kind: str) -> None:
    """Raises MissingExtraError if the package of ``training.tracker`` is not installed."""
    if kind != "none" and find_spec(kind) is None:
        raise MissingExtraError(
            f'`training.tracker: {kind}` needs {kind}: pip install "drpruning[{kind}]"',
            "Or use --set training.tracker=none; metrics.jsonl has everything.",
        )


def open_tracker(kind: str, folder: Path) -> Tracker:
    """The tracker named in ``training.tracker``, for the run in ``folder``."""
    check_tracker(kind)
    if kind == "tensorboard":
        return TensorBoardSink(folder / "tensorboard")
    return TrackioSink(folder) if kind == "trackio" else WandbSink(folder)


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record that make curves over steps, by name; none for records that have no such."""
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


class TensorBoardSink:
    """Writes event files.

    Args:
        folder: Where they go; those that are there already are added to.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes a second to load

        self._writer = SummaryWriter(str(folder))

    def write(self, record: Record) -> None:
        """Writes ``record`` if it has numbers over steps."""
        if isinstance(record, (StepTaken, Evaluated)):
            for name, value in scalars(record).items():
                self._writer.add_scalar(name, value, record.step)
        if isinstance(record, Evaluated):
            self._writer.flush()

    def close(self) -> None:
        """Writes out what is left."""
        self._writer.close()


class TrackioSink:
    """Tells trackio, which keeps what it is told under ``TRACKIO_DIR`` or on a Space, as its own variables say.

    Args:
        folder: The run folder; names the run, which goes on under that name after a resume.
    """

    def __init__(self, folder: Path) -> None:
        import trackio  # noqa: PLC0415 - an extra

        self._run: Any = trackio.init(project=PROJECT, name=run_name(folder), config=recipe_of(folder), resume="allow")

    def write(self, record: Record) -> None:
        """Tells ``record`` if it has numbers over steps."""
        if isinstance(record, (StepTaken, Evaluated)):
            self._run.log(scalars(record), step=record.step)

    def close(self) -> None:
        """Waits until everything is told."""
        self._run.finish()


class WandbSink:
    """Tells Weights & Biases, online or offline as ``WANDB_MODE`` says.

    Args:
        folder: The run folder; names the run, which goes on under its id after a resume.
    """

    def __init__(self, folder: Path) -> None:
        import wandb  # noqa: PLC0415 - an extra

        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=PROJECT, name=run_name(folder), id=identity, resume="allow", dir=folder, config=recipe_of(folder)
        )
        for stage in ("pretrain", "prune", "continue"):
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write(self, record: Record) -> None:
        """Tells ``record`` if it has numbers over steps."""
        if isinstance(record, (StepTaken, Evaluated)):
            self._run.log({**scalars(record), f"{record.stage}/step": record.step})

    def close(self) -> None:
        """Waits until everything is told."""
        self._run.finish()


def run_name(folder: Path) -> str:
    """The run's own name: its folder's, and for one to compare with also that of the run beside it.

    Example:
        >>> run_name(Path("runs/quickstart")), run_name(Path("runs/quickstart/compare/constant"))
        ('quickstart', 'quickstart-constant')
    """
    whole = folder.absolute()
    return f"{whole.parents[1].name}-{whole.name}" if whole.parent.name == "compare" else whole.name


def recipe_of(folder: Path) -> dict[str, Any]:
    """The resolved recipe in a run folder."""
    body: dict[str, Any] = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return body
