"""A run folder: the paths inside it, and its opening for one recipe.

    RUN/
      recipe.yaml      the recipe with all settings: what makes a folder a run folder
      metrics.jsonl    the records
      checkpoints/     of the stage in progress
      pruned/          the model after the prune stage
      export/          the model at the end
      compare/NAME/    run folders of the recipe's other strategies
      report.html, tensorboard/, log.txt

``pruned/`` and ``export/`` appear by a rename when they are complete. No other file of the package spells these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError, StateError
from drpruning.inputs import read_yaml

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS, PRUNED, EXPORT, COMPARE = "checkpoints", "pruned", "export", "compare"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    Args:
        path: The folder; it need not exist.

    Example:
        >>> RunFolder(Path("runs/quickstart")).compare("constant").export.as_posix()
        'runs/quickstart/compare/constant/export'
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe with all settings."""
        return self.path / RECIPE

    @property
    def metrics(self) -> Path:
        """The records."""
        return self.path / METRICS

    @property
    def checkpoints(self) -> Path:
        """The checkpoints of the stage in progress."""
        return self.path / CHECKPOINTS

    @property
    def pruned(self) -> Path:
        """The model after the prune stage."""
        return self.path / PRUNED

    @property
    def export(self) -> Path:
        """The model at the end."""
        return self.path / EXPORT

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        """The lines printed by the run."""
        return self.path / "log.txt"

    @property
    def tensorboard(self) -> Path:
        """Event files of ``training.logger: tensorboard``."""
        return self.path / "tensorboard"

    @property
    def exists(self) -> bool:
        """Whether this is a run folder."""
        return self.recipe.is_file()

    @property
    def name(self) -> str:
        """The run's name: the folder's, for a strategy of ``compare`` after that of the main run.

        Example:
            >>> RunFolder(Path("runs/quickstart")).name, RunFolder(Path("runs/quickstart/compare/constant")).name
            ('quickstart', 'quickstart-constant')
        """
        whole = self.path.absolute()
        return f"{whole.parents[1].name}-{whole.name}" if whole.parent.name == COMPARE else whole.name

    def compare(self, strategy: str) -> RunFolder:
        """Return the run folder of another strategy of the recipe."""
        return RunFolder(self.path / COMPARE / strategy)

    def read_recipe(self) -> dict[str, Any]:
        """Read the recipe as plain data.

        Raises:
            ConfigError: It is missing or not YAML, or not a mapping.
        """
        body = read_yaml(self.recipe)
        if not isinstance(body, dict):
            raise ConfigError(f"{self.recipe} holds {type(body).__name__}; a recipe is a mapping of sections")
        return body


def check_run_folder(folder: RunFolder, *, resume: bool) -> None:
    """Check that a run can start in ``folder`` or, with ``resume``, continue there.

    Raises:
        ConfigError: The folder is in use and ``resume`` is False, or is not a folder.
        StateError: It is not empty and not a run folder.
    """
    path = folder.path
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; a run needs a folder", "Give another one with --out.")
    if folder.exists:
        if not resume:
            raise ConfigError(
                f"the run folder {path} exists already", "Resume it with --resume, or give another --out."
            )
    elif path.is_dir() and any(path.iterdir()):
        raise StateError(f"{path} is not empty and not a run folder (it has no {RECIPE})", "Give another --out.")
