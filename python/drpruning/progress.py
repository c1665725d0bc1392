"""Progress of a run: sinks that print records as a progress line on a terminal and as lines of ``log.txt``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from drpruning.files import open_to_append
from drpruning.formatting import duration, flops_in_words
from drpruning.records import (
    Evaluated,
    Incident,
    Kept,
    ModelMeasured,
    Record,
    RunStarted,
    StageEnded,
    StageStarted,
    StepTaken,
)
from drpruning.run_folder import RunFolder

TITLES = {"pretrain": "pretrain the base", "prune": "prune", "continue": "continue pretraining"}
STEP_LINE_SECONDS = 60.0
"""Seconds between lines of steps on a console that is not a terminal: a sign of life in the log of a batch job."""
SIZE_OF = {
    "layer": "layers",
    "head": "kv_heads",
    "intermediate": "intermediate",
    "hidden": "hidden",
    "expert": "experts",
}


def target_statement(kept: Kept) -> str:
    """Describe whether the masks met the target, and how far each kind of unit missed it; extraction is always exact.

    After a stage of one step the masks have not moved: importance alone decides.

    Example:
        >>> sizes = {"source": {"layers": 4, "hidden": 32}, "target": {"layers": 3, "hidden": 16}}
        >>> units = {"layers": [0, 1, 3], "hidden": [], "heads": [], "intermediate": []}
        >>> met = {"target_met": {"layer": True, "hidden": False}, "expected": {"layer": 0.252, "hidden": 0.41}}
        >>> print(target_statement(Kept(**sizes, **units, **met)))
        target not met by the masks: hidden 41.0% pruned, expected 50.0%; the extracted model has layers=3, hidden=16
    """
    missed = [kind for kind, met in kept.target_met.items() if not met]
    shape = ", ".join(f"{name}={size}" for name, size in kept.target.items())
    if not kept.target_met:
        return f"cut by importance; the extracted model has {shape}"
    if not missed:
        since = "" if kept.steps_at_target is None else f", in the last {kept.steps_at_target} steps"
        return f"target met by the masks, within 1% for every kind{since}; the extracted model has {shape}"
    parts = []
    for kind in missed:
        name = SIZE_OF[kind]
        parts.append(
            f"{kind} {kept.expected[kind]:.1%} pruned, expected {1 - kept.target[name] / kept.source[name]:.1%}"
        )
    return f"target not met by the masks: {'; '.join(parts)}; the extracted model has {shape}"


@contextmanager
def long_task(message: str) -> Iterator[None]:
    """Show on stderr what a command computes while the block runs: on a terminal a spinner, otherwise a line."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        console.print(f"{message} ...", highlight=False, markup=False, soft_wrap=True)
        yield


class LogFile:
    """Appends the permanent progress lines to ``RUN/log.txt``; a resumed run appends to the same file.

    Args:
        folder: The run folder. It must exist when the first record is written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = RunFolder(folder).log
        self.line: ProgressLine | None = None

    def write(self, record: Record) -> None:
        """Append the line of ``record``, if its kind has one."""
        if self.line is None:
            file = open_to_append(self.path)
            self.line = ProgressLine(Console(file=file, width=120), {})
            self.line.console.print(time.strftime("%Y-%m-%d %H:%M:%S %z"), highlight=False)
        self.line.write(record)

    def close(self) -> None:
        """Close the file."""
        if self.line is not None:
            self.line.console.file.close()


class ProgressLine:
    """A progress line for the current stage; finished stages and incidents stay above it.

    Args:
        console: The terminal. On a console that is not a terminal, the permanent lines are printed, and a line of the
            current step every :data:`STEP_LINE_SECONDS`.
        steps: Number of steps of each stage, for a run that resumes in the middle of a stage.
    """

    def __init__(self, console: Console, steps: Mapping[str, int]) -> None:
        self.console = console
        self.steps = steps
        self.strategy = ""
        self.worst = ""
        self.printed = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),  # a domain may be called [b]
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> ProgressLine:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def write(self, record: Record) -> None:
        """Print or draw ``record``."""
        match record:
            case RunStarted():
                self.strategy = record.strategy
                self.console.print(f"[bold]{record.name}[/], mixture strategy [bold]{record.strategy}[/]")
            case StageStarted():
                self._begin(record.stage, record.steps)
            case StepTaken():
                self._step(record)
            case Evaluated() if record.excess_loss:
                domain, excess = max(record.excess_loss.items(), key=lambda item: item[1])
                self.worst = f"worst {domain} {excess:+.2f}"
            case StageEnded():
                self._end(record)
            case Kept():
                self.console.print(f"  {target_statement(record)}", highlight=False, soft_wrap=True)
            case ModelMeasured():
                mean = sum(record.losses.values()) / len(record.losses)
                self.console.print(
                    f"  {record.model}: {record.parameters:,} parameters, mean loss {mean:.3f} nats per token"
                )
            case Incident():
                line = f"  [yellow]{escape(record.what)}[/]: {escape(record.detail)}"
                self.console.print(line, highlight=False, soft_wrap=True)
            case _:
                pass

    def _begin(self, stage: str, steps: int, done: int = 0) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.worst = ""
        self.task = self.progress.add_task(TITLES.get(stage, stage), total=steps, completed=done, numbers="")

    def _step(self, record: StepTaken) -> None:
        if self.task is None:
            if record.stage not in self.steps:
                return
            self._begin(record.stage, self.steps[record.stage], done=record.step - 1)
        numbers = [f"loss {record.loss:.3f}", f"{record.tokens_per_second:,.0f} tokens/s"]
        if record.utilisation is not None:
            numbers.append(f"MFU {record.utilisation:.0%}")
        if record.expected:
            behind = max(record.expected, key=lambda kind: abs(record.scheduled[kind] - record.expected[kind]))  # type: ignore[index]
            numbers.append(f"{behind} {record.expected[behind]:.0%} pruned")
        if self.worst:
            numbers.append(self.worst)
        elif record.domain_losses:
            domain, loss = max(record.domain_losses.items(), key=lambda item: item[1])
            numbers.append(f"worst {domain} {loss:.2f}")
        assert self.task is not None
        self.progress.update(self.task, completed=record.step, numbers=", ".join(numbers))
        if not self.console.is_terminal and time.monotonic() - self.printed >= STEP_LINE_SECONDS:
            self.printed = time.monotonic()
            task = self.progress.tasks[0]
            tokens = record.tokens / record.step * ((task.total or 0) - record.step)
            left = f", {duration(tokens / record.tokens_per_second)} left" if record.tokens_per_second > 0 else ""
            line = f"  {task.description}: step {record.step:,} of {task.total:,.0f}, {', '.join(numbers)}{left}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _end(self, record: StageEnded) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        self.console.print(
            f"  {TITLES.get(record.stage, record.stage)}: {record.steps} steps, {record.tokens:,} tokens, "
            f"{record.seconds:.0f} s" + (f", {flops_in_words(record.charged_flops)}" if record.charged_flops else ""),
            highlight=False,
        )
