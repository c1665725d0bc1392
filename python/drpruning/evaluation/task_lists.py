"""Lists of tasks with their number of examples and the metric to report, as papers report them.

The shipped lists are in ``evaluation/lists/``; any YAML file of the same form is a list.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from drpruning.config import Section
from drpruning.errors import ConfigError
from drpruning.inputs import expected_value, parse_yaml, read_text

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class ListedTask(Section):
    """One line of a list.

    Attributes:
        task: Name of a task or of a group of tasks in lm-evaluation-harness.
        shots: Number of examples before each question.
        metric: The metric to report, without its filter: ``acc``, ``exact_match``.
    """

    task: Name
    shots: Annotated[int, Field(ge=0)]
    metric: Name


class _TaskListFile(Section):
    tasks: Annotated[tuple[ListedTask, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_task_once(self) -> Self:
        names = [item.task for item in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"task {next(name for name in names if names.count(name) > 1)!r} is listed twice")
        return self


def shipped_lists() -> list[str]:
    """Return the names of the lists in this package."""
    folder = resources.files("drpruning.evaluation") / "lists"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def is_list(source: str) -> bool:
    """Return whether ``source`` is a list: the name of a shipped list, or a YAML file."""
    path = Path(source)
    return source in shipped_lists() or (path.suffix in {".yaml", ".yml"} and not path.is_dir())


def read_list(source: str) -> tuple[ListedTask, ...]:
    """Read the tasks of a YAML file, or of a shipped list by its name, in order.

    Raises:
        ConfigError: There is no such file, or it is not a list of tasks.

    Example:
        >>> [(item.task, item.shots, item.metric) for item in read_list("sheared")][4:6]
        [('arc_challenge', 25, 'acc_norm'), ('hellaswag', 10, 'acc_norm')]
    """
    if source in shipped_lists():
        text = (resources.files("drpruning.evaluation") / "lists" / f"{source}.yaml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = read_text(source)
    else:
        raise ConfigError(
            f"there is no file {source!r}",
            f"Give a YAML file of tasks, or a shipped list: {', '.join(shipped_lists())}.",
        )
    try:
        return _TaskListFile.model_validate(parse_yaml(text, f"list of tasks {source!r}")).tasks
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = expected_value(first["msg"])
        raise ConfigError(
            f"list of tasks {source!r}: {where or 'the file'}: {reason}",
            "Expected `tasks:`, a list of {task: arc_challenge, shots: 25, metric: acc_norm}.",
        ) from error
