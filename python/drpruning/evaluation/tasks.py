"""Score a model in memory with lm-evaluation-harness: tasks by name, folder or list, scores as records."""

from __future__ import annotations

import io
import logging
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from drpruning.errors import ConfigError, MissingExtraError, StateError, install_command
from drpruning.evaluation.task_lists import ListedTask, is_list, read_list
from drpruning.files import locked
from drpruning.inputs import parse_yaml, read_file
from drpruning.records import JsonlSink, TaskMeasured
from drpruning.run_folder import RunFolder

BOOTSTRAP = 1000  # resamples for the error of metrics that are not means
EXAMPLES_SEED = 1234  # seed of the few-shot examples: the harness's default


@dataclass(frozen=True)
class TaskScore:
    """The score of a model on a task.

    Args:
        task: Name in lm-evaluation-harness.
        metrics: For instance ``acc`` and ``acc_norm``; a metric with a filter is named ``metric,filter``.
        errors: Standard errors over documents, where known.
        samples: Number of documents.
        version: Version of the task.
        shots: Number of examples before each question; None if unknown.
        counts: The metric to report, if a list of tasks sets it.
    """

    task: str
    metrics: dict[str, float]
    errors: dict[str, float]
    samples: int
    version: str
    shots: int | None = None
    counts: str | None = None

    def record(
        self, model: str, stage: str | None = None, step: int | None = None, dtype: str | None = None
    ) -> TaskMeasured:
        """Return the score as a run's record."""
        return TaskMeasured(
            model=model,
            task=self.task,
            metrics=dict(self.metrics),
            errors=dict(self.errors),
            samples=self.samples,
            shots=self.shots,
            stage=stage,
            step=step,
            dtype=dtype,
        )


@dataclass(frozen=True)
class Tasks:
    """Tasks to score models on, loaded once.

    Args:
        names: Names in the given order; for a list's groups of tasks the names of the groups.
        loaded: Task objects of lm-evaluation-harness, single tasks by name.
        listed: The tasks and groups of tasks of lists, by name.
        members: The single tasks of each group in ``listed``.
    """

    names: tuple[str, ...]
    loaded: Mapping[str, Any]
    listed: Mapping[str, ListedTask] = field(default_factory=dict)
    members: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def score(
        self,
        model: Any,
        tokenizer: Any,
        *,
        limit: int | None = None,
        batch_size: int = 8,
        num_fewshot: int | None = None,
    ) -> list[TaskScore]:
        """Score a model; restore its mode and the random state of torch.

        Args:
            model: A causal model of transformers, in memory.
            tokenizer: Its tokenizer.
            limit: Maximum number of documents of each task.
            batch_size: Documents in a forward pass.
            num_fewshot: Number of examples before each question; None: that of the list, else of the task.

        Returns:
            A score for each task, and one for each group of a list: the mean over its documents.

        Raises:
            ConfigError: The model has no tokenizer, or ``num_fewshot`` is given for a list.
        """
        import torch  # noqa: PLC0415 -- with lm_eval, seconds
        from lm_eval.evaluator import evaluate  # noqa: PLC0415
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

        if tokenizer is None:
            raise ConfigError("the model has no tokenizer, so it cannot read tasks", "Copy one into its folder.")
        if num_fewshot is not None and self.listed:
            raise ConfigError(
                "a list of tasks sets the number of examples before a question", "Leave out --num-fewshot."
            )
        training, state = model.training, torch.random.get_rng_state()
        model.eval()
        try:
            with _quiet():
                device = str(next(model.parameters()).device)
                harness = HFLM(
                    pretrained=model,
                    tokenizer=tokenizer,
                    batch_size=batch_size,
                    device=device,
                    trust_remote_code=False,
                )
                _set_examples(self.loaded.values(), num_fewshot)
                self._set_listed_examples()
                # simple_evaluate does the same, and also lists this machine's packages and hardware each time
                found = evaluate(
                    lm=harness,
                    task_dict={"tasks": dict(self.loaded), "groups": {}},
                    limit=limit,
                    bootstrap_iters=BOOTSTRAP,
                    log_samples=False,
                )
        finally:
            model.train(training)
            torch.random.set_rng_state(state)
        assert found is not None
        return self._by_name({score.task: score for score in _scores(found)})

    def _set_listed_examples(self) -> None:
        for name, item in self.listed.items():
            for task in self.members.get(name, (name,)):
                self.loaded[task].set_config(key="num_fewshot", value=item.shots)

    def _by_name(self, single: Mapping[str, TaskScore]) -> list[TaskScore]:
        """Return the scores in the order of the names; a group of a list replaces its tasks."""
        grouped = {member for members in self.members.values() for member in members}
        scores = []
        for name in dict.fromkeys([*self.names, *single]):
            if name in self.members:
                score = _pooled(name, [single[member] for member in self.members[name] if member in single])
            elif name in single and name not in grouped:
                score = single[name]
            else:
                continue
            item = self.listed.get(name)
            scores.append(score if item is None else _counting(score, item))
        return scores


def find_tasks(names: Sequence[str]) -> Tasks:
    """Load tasks.

    Args:
        names: Names of lm-evaluation-harness; folders, of which all tasks are loaded; or lists of tasks, a YAML file
            or the name of a shipped one (``paper``, ``sheared``).

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        ConfigError: There is no such task or list, a task has no such metric, or its data cannot be loaded.
    """
    listed = {item.task: item for name in names if is_list(name) for item in read_list(name)}
    names = [name for name in names if not is_list(name)]
    if twice := [name for name in names if name in listed]:
        raise ConfigError(f"task {twice[0]!r} is in a list and named separately", "Leave one out.")
    folders = [Path(name) for name in names if Path(name).is_dir()]
    known = [*(name for name in names if not Path(name).is_dir()), *listed]
    requested = [*known, *(task for folder in folders for task in tasks_in(folder))]
    found = _load_tasks(requested, known, folders)
    loaded, groups = found["tasks"], found["groups"]
    members = {name: [task.task_name for task in groups[name].get_all_tasks()] for name in listed if name in groups}
    _check_metrics(listed, members, loaded)
    return Tasks(tuple(requested), loaded, listed, members)


def _load_tasks(requested: Sequence[str], known: Sequence[str], folders: Sequence[Path]) -> Any:
    """Load tasks with lm-evaluation-harness: those of its names ``known``, and those in ``folders``."""
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "tasks need lm-evaluation-harness, which is not installed", install_command("lm-eval", "accelerate")
        ) from error
    with _quiet():
        manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=bool(known))
        if missing := [name for name in known if name not in manager.all_tasks]:
            raise ConfigError(
                f"there is no task {missing[0]!r}",
                "Give a name that `lm-eval ls tasks` lists, a list (paper, sheared, a YAML file), or a folder of tasks "
                "such as `drpruning benchmark build` writes.",
            )
        try:
            return manager.load(list(requested))
        except Exception as error:  # any error of the data's loader: no network, a moved file, a bad line
            reason = str(error).strip().splitlines()
            raise ConfigError(
                f"the tasks {', '.join(requested)} cannot be loaded: {reason[0] if reason else type(error).__name__}"
            ) from error


def _check_metrics(
    listed: Mapping[str, ListedTask], members: Mapping[str, list[str]], loaded: Mapping[str, Any]
) -> None:
    """Raise ConfigError if a task of a list is not loaded, or lacks the metric that the list names."""
    for name, item in listed.items():
        for task in members.get(name, [name]):
            if task not in loaded:
                raise ConfigError(f"{name!r} of a list is neither a task nor a group of tasks", "Name its tasks.")
            if item.metric not in (metrics := list(loaded[task].aggregation())):
                raise ConfigError(f"task {task!r} has no metric {item.metric!r}; it has {', '.join(map(str, metrics))}")


def record_scores(run: Path, role: str, scores: Sequence[TaskScore], dtype: str | None = None) -> None:
    """Add the scores of a run's model to the run's records, where its report finds them.

    Args:
        run: The run folder.
        role: ``base``, ``pruned`` or ``recovered``.
        scores: The scores.
        dtype: Type of weights and computation.

    Raises:
        StateError: Another process uses the run folder.
    """
    try:
        with locked(run), closing(JsonlSink(RunFolder(run).metrics)) as sink:
            for score in scores:
                sink.write(score.record(role, dtype=dtype))
    except BlockingIOError as error:
        raise StateError(
            f"another process uses {run}, so the scores of its model {role!r} were not recorded",
            "Rerun the command when that process has ended.",
        ) from error


def tasks_in(folder: Path) -> list[str]:
    """Return the names of the single tasks in the YAML files of a folder.

    Raises:
        ConfigError: There is none.
    """
    names = []
    for path in sorted(folder.glob("*.yaml")):
        body = parse_yaml(read_file(path), path, any_tag=True)  # lm-evaluation-harness has tags for functions
        if isinstance(body, dict) and isinstance(body.get("task"), str):
            names.append(body["task"])
    if not names:
        raise ConfigError(f"{folder} holds no tasks of lm-evaluation-harness (*.yaml with a `task`)")
    return names


def _set_examples(tasks: Iterable[Any], count: int | None) -> None:
    """Set the number of examples before a question, as ``lm-eval run`` does; a task with 0 keeps 0."""
    for task in tasks:
        own = task.get_config("num_fewshot")
        if own is None or (count is not None and own != 0):
            task.set_config(key="num_fewshot", value=count or 0)
        task.set_fewshot_seed(seed=EXAMPLES_SEED)


def _counting(score: TaskScore, item: ListedTask) -> TaskScore:
    """Return the score with the shots and metric of a list; the metric is the first of that name, with any filter."""
    counts = next((key for key in score.metrics if key.partition(",")[0] == item.metric), item.metric)
    return replace(score, shots=item.shots, counts=counts)


def _pooled(name: str, scores: Sequence[TaskScore]) -> TaskScore:
    """Return the score of a group: means over all documents, as in lm-evaluation-harness, with standard errors."""
    total = sum(score.samples for score in scores)
    shares = [score.samples / total for score in scores]
    pairs = list(zip(shares, scores, strict=True))
    metrics = [key for key in scores[0].metrics if all(key in score.metrics for score in scores)]
    known = [key for key in metrics if all(key in score.errors for score in scores)]
    return TaskScore(
        task=name,
        metrics={key: sum(share * score.metrics[key] for share, score in pairs) for key in metrics},
        errors={key: math.sqrt(sum((share * score.errors[key]) ** 2 for share, score in pairs)) for key in known},
        samples=total,
        version=scores[0].version,
    )


def _scores(found: Any) -> Iterator[TaskScore]:
    samples = found.get("n-samples", {})
    for task, results in found["results"].items():
        if task not in samples:
            continue  # the mean of a group
        metrics: dict[str, float] = {}
        errors: dict[str, float] = {}
        for key, value in results.items():
            name, comma, filtered = key.partition(",")
            if not comma or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            into = errors if name.endswith("_stderr") else metrics
            metric = name.removesuffix("_stderr")
            if math.isfinite(value):
                into[metric if filtered == "none" else f"{metric},{filtered}"] = float(value)
        version = str(found.get("versions", {}).get(task, ""))
        yield TaskScore(
            task, metrics, errors, int(samples[task]["effective"]), version, shots=found.get("n-shot", {}).get(task)
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence logs and warnings of lm-evaluation-harness, and its progress bars except on a terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
