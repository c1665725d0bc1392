"""The bridge to lm-evaluation-harness: tasks by name, folder or list, a model in memory, scores as records."""

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

import yaml

from drpruning.errors import ConfigError, MissingExtraError, StateError
from drpruning.evaluation.task_lists import ListedTask, is_list, read_list
from drpruning.files import locked
from drpruning.records import JsonlSink, TaskMeasured
from drpruning.run_folder import RunFolder

BOOTSTRAP = 1000  # resamples, for metrics that are not means; the error of a mean is computed
EXAMPLES_SEED = 1234  # of the draw of examples: the harness's own


@dataclass(frozen=True)
class TaskScore:
    """What a model scored on a task.

    Args:
        task: As lm-evaluation-harness calls it.
        metrics: For instance ``acc`` and ``acc_norm``; a metric behind a filter is called ``metric,filter``.
        errors: Their standard errors over documents, where it knows them.
        samples: Documents scored.
        version: Of the task.
        shots: Examples before each question, where a list of tasks says so.
        counts: The metric that counts, where a list of tasks says so.
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
        """The score as a run's record."""
        return TaskMeasured(
            model=model,
            task=self.task,
            metrics=dict(self.metrics),
            errors=dict(self.errors),
            samples=self.samples,
            stage=stage,
            step=step,
            dtype=dtype,
        )


@dataclass(frozen=True)
class Tasks:
    """Tasks to score models on, found once.

    Args:
        names: As asked for; those of a list's groups of tasks are the names of the groups.
        loaded: What lm-evaluation-harness made of them, single tasks by their names.
        listed: By name, the tasks and groups of tasks that come from a list.
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
        """Scores a model; its mode and the random state of torch are as before when this returns.

        Args:
            model: A causal model of transformers, in memory.
            tokenizer: Its tokenizer.
            limit: Documents of each task, at most; for a quick look.
            batch_size: Documents in a forward pass.
            num_fewshot: Examples before each question; None: what the list, or else the task says.

        Returns:
            A score for each task, and one for each group of a list: the mean over its documents.

        Raises:
            ConfigError: The model brings no tokenizer, or ``num_fewshot`` is given for a list.
        """
        import torch  # noqa: PLC0415 -- with lm_eval, seconds
        from lm_eval.evaluator import evaluate  # noqa: PLC0415
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

        if tokenizer is None:
            raise ConfigError("the model brings no tokenizer, so it cannot read tasks", "Put one into its folder.")
        if num_fewshot is not None and self.listed:
            raise ConfigError("a list of tasks says how many examples come before a question", "Leave out --fewshot.")
        training, state = model.training, torch.random.get_rng_state()
        model.eval()
        try:
            with _quiet():
                device = str(next(model.parameters()).device)
                harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=device)
                _set_examples(self.loaded.values(), num_fewshot)
                self._set_listed_examples()
                # simple_evaluate would do the same, but lists this machine's packages and hardware each time
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
        """The scores in the order of the names; groups of a list in the place of their tasks."""
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
    """Looks up tasks.

    Args:
        names: Names that lm-evaluation-harness knows; folders of tasks, of which all are taken; or lists of tasks, a
            YAML file or the name of a shipped one (``paper``, ``sheared``).

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        ConfigError: There is no such task or list, a task has no such metric, or its data cannot be had.
    """
    listed = {item.task: item for name in names if is_list(name) for item in read_list(name)}
    names = [name for name in names if not is_list(name)]
    if twice := [name for name in names if name in listed]:
        raise ConfigError(f"task {twice[0]!r} is in a list and named by itself", "Leave one out.")
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "tasks need lm-evaluation-harness, which is not installed", 'pip install "drpruning[eval]"'
        ) from error
    folders = [Path(name) for name in names if Path(name).is_dir()]
    known = [*(name for name in names if not Path(name).is_dir()), *listed]
    wanted = [*known, *(task for folder in folders for task in tasks_in(folder))]
    with _quiet():
        manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=bool(known))
        if missing := [name for name in known if name not in manager.all_tasks]:
            raise ConfigError(
                f"there is no task {missing[0]!r}",
                "Give a name that `lm-eval ls tasks` lists, a list (paper, sheared, a YAML file), or a folder of tasks "
                "such as `drpruning benchmark build` writes.",
            )
        try:
            found = manager.load(wanted)
        except Exception as error:  # whatever the data's own loader raises: no network, a moved file, a bad line
            reason = str(error).strip().splitlines()
            raise ConfigError(
                f"the tasks {', '.join(wanted)} cannot be loaded: {reason[0] if reason else type(error).__name__}"
            ) from error
    loaded, groups = found["tasks"], found["groups"]
    members = {name: [task.task_name for task in groups[name].get_all_tasks()] for name in listed if name in groups}
    for name, item in listed.items():
        for task in members.get(name, [name]):
            if task not in loaded:
                raise ConfigError(f"{name!r} of a list is neither a task nor a group of tasks", "Name its tasks.")
            if item.metric not in (metrics := list(loaded[task].aggregation())):
                raise ConfigError(f"task {task!r} has no metric {item.metric!r}; it has {', '.join(map(str, metrics))}")
    return Tasks(tuple(wanted), loaded, listed, members)


def record_scores(run: Path, role: str, scores: Sequence[TaskScore], dtype: str | None = None) -> None:
    """Adds the scores of a run's finished model to the run's records, where its report finds them.

    Args:
        run: The run folder.
        role: ``base``, ``pruned`` or ``recovered``.
        scores: What to add.
        dtype: Type of weights and computation.

    Raises:
        StateError: Another process is at work in the run folder.
    """
    try:
        with locked(run), closing(JsonlSink(RunFolder(run).metrics)) as sink:
            for score in scores:
                sink.write(score.record(role, dtype=dtype))
    except BlockingIOError as error:
        raise StateError(
            f"another process is at work in {run}, so the scores of its model {role!r} were not recorded",
            "Give the command again when it is done.",
        ) from error


def tasks_in(folder: Path) -> list[str]:
    """The single tasks that the YAML files of a folder describe.

    Raises:
        ConfigError: There is none.
    """
    names = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            body = yaml.load(path.read_text(encoding="utf-8"), Loader=_AnyTag)  # noqa: S506 - derived from SafeLoader
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if isinstance(body, dict) and isinstance(body.get("task"), str):
            names.append(body["task"])
    if not names:
        raise ConfigError(f"{folder} holds no tasks of lm-evaluation-harness (*.yaml with a `task`)")
    return names


class _AnyTag(yaml.SafeLoader):
    """Reads YAML in which values may have tags of lm-evaluation-harness; those become None."""


_AnyTag.add_multi_constructor("!", lambda loader, suffix, node: None)


def _set_examples(tasks: Iterable[Any], count: int | None) -> None:
    """Sets how many examples come before a question, as ``lm-eval run`` does; a task that says 0 keeps that."""
    for task in tasks:
        own = task.get_config("num_fewshot")
        if own is None or (count is not None and own != 0):
            task.set_config(key="num_fewshot", value=count or 0)
        task.set_fewshot_seed(seed=EXAMPLES_SEED)


def _counting(score: TaskScore, item: ListedTask) -> TaskScore:
    """The score with what a list says about its task; the metric is the first one of that name, whatever its filter."""
    counts = next((key for key in score.metrics if key.partition(",")[0] == item.metric), item.metric)
    return replace(score, shots=item.shots, counts=counts)


def _pooled(name: str, scores: Sequence[TaskScore]) -> TaskScore:
    """The score of a group: means over all documents, as lm-evaluation-harness has them, with their standard errors."""
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
        yield TaskScore(
            task, metrics, errors, int(samples[task]["effective"]), str(found.get("versions", {}).get(task, ""))
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-evaluation-harness logs and warns, and draws progress, which only a terminal is for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
