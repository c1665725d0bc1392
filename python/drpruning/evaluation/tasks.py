"""The bridge to lm-evaluation-harness: tasks by name or by folder, a model in memory, scores as records."""

from __future__ import annotations

import io
import logging
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from drpruning.errors import ConfigError, MissingExtraError, StateError
from drpruning.evaluation.models import RECORDS
from drpruning.files import locked
from drpruning.records import JsonlSink, TaskMeasured

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
    """

    task: str
    metrics: dict[str, float]
    errors: dict[str, float]
    samples: int
    version: str

    def record(self, model: str, stage: str | None = None, step: int | None = None) -> TaskMeasured:
        """The score as a run's record."""
        return TaskMeasured(
            model=model,
            task=self.task,
            metrics=dict(self.metrics),
            errors=dict(self.errors),
            samples=self.samples,
            stage=stage,
            step=step,
        )


@dataclass(frozen=True)
class Tasks:
    """Tasks to score models on, found once.

    Args:
        names: As asked for.
        loaded: What lm-evaluation-harness made of them.
    """

    names: tuple[str, ...]
    loaded: Mapping[str, Any]

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
            num_fewshot: Examples before each question; None: what the task says.

        Raises:
            ConfigError: The model brings no tokenizer.
        """
        import torch  # noqa: PLC0415 -- with lm_eval, seconds
        from lm_eval.evaluator import evaluate  # noqa: PLC0415
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

        if tokenizer is None:
            raise ConfigError("the model brings no tokenizer, so it cannot read tasks", "Put one into its folder.")
        training, state = model.training, torch.random.get_rng_state()
        model.eval()
        try:
            with _quiet():
                device = str(next(model.parameters()).device)
                harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device=device)
                _set_examples(self.loaded.values(), num_fewshot)
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
        return list(_scores(found))


def find_tasks(names: Sequence[str]) -> Tasks:
    """Looks up tasks.

    Args:
        names: Names that lm-evaluation-harness knows, or folders of tasks, of which all are taken.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        ConfigError: There is no such task, or its data cannot be had.
    """
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "tasks need lm-evaluation-harness, which is not installed", 'pip install "drpruning[eval]"'
        ) from error
    folders = [Path(name) for name in names if Path(name).is_dir()]
    known = [name for name in names if not Path(name).is_dir()]
    wanted = [*known, *(task for folder in folders for task in tasks_in(folder))]
    with _quiet():
        manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=bool(known))
        if missing := [name for name in known if name not in manager.all_tasks]:
            raise ConfigError(
                f"there is no task {missing[0]!r}",
                "Give a name that `lm-eval ls tasks` lists, or a folder with tasks, for instance of "
                "`drpruning benchmark build`.",
            )
        try:
            loaded = manager.load(wanted)["tasks"]
        except Exception as error:  # whatever the data's own loader raises: no network, a moved file, a bad line
            reason = str(error).strip().splitlines()
            raise ConfigError(
                f"the tasks {', '.join(wanted)} cannot be loaded: {reason[0] if reason else type(error).__name__}"
            ) from error
    return Tasks(tuple(wanted), loaded)


def record_scores(run: Path, role: str, scores: Sequence[TaskScore]) -> None:
    """Adds the scores of a run's finished model to the run's records, where its report finds them.

    Raises:
        StateError: Another process is at work in the run folder.
    """
    try:
        with locked(run), closing(JsonlSink(run / RECORDS)) as sink:
            for score in scores:
                sink.write(score.record(role))
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
