"""Phases of a prune stage, each with its seconds and its peak of memory: start to export, and a checkpoint's way.

The package's own functions run; each is wrapped for the time of a case. Peaks are of torch's allocator, from the
allocation on entry to the largest on the way.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from cases import Case, config_of
from plan import planned_peaks
from random_base import with_random_base
from steps import FAR, Enough

from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.hf.tokenizers import corpus_tokenizer
from drpruning.planning.model_shape import transformers_config
from drpruning.planning.recipe import source_shape
from drpruning.pruning import MaskedModel, Target
from drpruning.run_folder import RunFolder
from drpruning.train import calibration, loop, stages
from drpruning.train.base_model import build
from drpruning.train.context import TrainContext
from drpruning.train.preflight import PreflightResult, checkpoint_bytes
from drpruning.train.run import build_context
from drpruning.train.stages import begin_stage, get_base, masked_model, prune

PLANNED = {
    "evaluation of the base model": "measure",
    "importance": "importance",
    "model placed, optimizer made": "load",
    "first step": "step",
    "step": "step",
    "step, units closed": "sparse_step",
    "step after resuming": "step",
    "evaluation": "evaluation",
    "checkpoint staged": "save",
    "resume": "resume",
    "end of the stage": "widen",
    "export": "export",
}
"""Phases here, and what the plan calls them."""
CLOSED_AFTER = 2  # steps: from then on one unit of 32 is closed, so that what is left out is gathered


@dataclass
class Phases:
    """Seconds and peaks of phases; one inside another counts in both.

    Attributes:
        on_gpu: Whether the device has an allocator with statistics.
        found: By name, the longest and the highest of all times.
    """

    on_gpu: bool
    found: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    _peaks: list[int] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the context as a phase."""
        self._note()
        self._peaks.append(0)
        before, started = self._allocated(), time.perf_counter()
        try:
            yield
        finally:
            self._note()
            peak, seconds = self._peaks.pop(), time.perf_counter() - started
            if self._peaks:
                self._peaks[-1] = max(self._peaks[-1], peak)
            known = self.found.setdefault(name, {"seconds": 0.0, "peak_bytes": 0, "times": 0})
            known["times"] += 1  # type: ignore[operator]
            known["seconds"] = max(known["seconds"], seconds)  # type: ignore[type-var]
            if peak >= known["peak_bytes"]:  # type: ignore[operator]
                known |= {"peak_bytes": peak, "before_bytes": before, "after_bytes": self._allocated()}

    def wrap(self, holder: Any, attribute: str, name: str | Callable[..., str]) -> Any:
        """Patch ``holder.attribute`` so that each call is a phase; ``name`` may depend on the arguments."""
        real = getattr(holder, attribute)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name if isinstance(name, str) else name(*args)):
                return real(*args, **kwargs)

        return patch.object(holder, attribute, wrapped)

    def _note(self) -> None:
        if not self.on_gpu:
            return
        torch.cuda.synchronize()
        if self._peaks:
            self._peaks[-1] = max(self._peaks[-1], torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated() if self.on_gpu else 0


def measure_phases(case: Case, corpus: Path, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Measure a prune stage of a few steps: importance, steps, pruned units, the end of the stage, export, evaluation.

    Checkpoints are not written: those of the largest model do not fit on the disk next to each other.
    """
    less_text = {"prune.calibration.tokens": 1024} if tiny else {}
    config = config_of(case, corpus, tiny=tiny, **{"prune.eval_every": 5}, **less_text)
    config = with_random_base(config, corpus, work / "base")
    gc.collect()
    phases = Phases(torch.cuda.is_available())
    with ExitStack() as stack:
        context = stack.enter_context(_opened(config, corpus, work / "run"))
        stack.enter_context(patch.object(loop, "save_checkpoint", lambda stage, context: None))
        for holder, attribute, name in (
            (calibration, "importance", "importance"),
            (stages, "begin_stage", "model placed, optimizer made"),
            (loop, "train_step", _step),
            (loop, "evaluate", "evaluation"),
            (loop, "end_stage", "end of the stage"),
            (stages, "export_pruned", "export"),
            (stages, "evaluate_model", lambda context, name, *_: f"evaluation of the {name} model"),
        ):
            stack.enter_context(phases.wrap(holder, attribute, name))
        stack.enter_context(_closing())
        with phases.phase("whole stage"):
            prune(context, get_base(context))
    return _result(phases, config, tiny=tiny)


def measure_resumed_phases(case: Case, corpus: Path, work: Path, *, tiny: bool) -> dict[str, Any]:
    """Measure two steps, a checkpoint, and the same stage resumed from it in new objects."""
    config = config_of(case, corpus, tiny=tiny)
    needed = checkpoint_bytes(config.training) * _parameters(config)
    folder = _roomy(work, needed)
    phases = Phases(torch.cuda.is_available())
    real_save = loop.save_checkpoint

    def save(stage: Any, context: Any) -> None:
        with phases.phase("checkpoint staged"):
            real_save(stage, context)
        with phases.phase("checkpoint written"):
            context.checkpoints.wait()
        raise Enough

    def after(stage: Any, *rest: Any) -> str:
        if stage.step > 2:
            raise Enough
        return "step after resuming" if stage.step == 2 else _step(stage, *rest)

    try:
        with ExitStack() as stack:
            stack.enter_context(patch.object(loop, "save_checkpoint", save))
            stack.enter_context(phases.wrap(loop, "train_step", after))
            stack.enter_context(phases.wrap(stages, "restore_checkpoint", "resume"))
            for _ in range(2):
                with _opened(config, corpus, folder) as context, suppress(Enough):
                    _stage(context)
                gc.collect()
                if phases.on_gpu:
                    torch.cuda.empty_cache()
            written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder)
    return _result(phases, config, tiny=tiny) | {"checkpoint_bytes": written, "folder": str(folder.parent)}


def _stage(context: TrainContext) -> None:
    with context.device:
        model = masked_model(context.config.prune, build(context.base_config, 0))  # type: ignore[arg-type]
    stage = begin_stage(context, "prune", context.place_model(model))
    del model  # the stage has it
    loop.run_stage(stage, context)


@contextmanager
def _opened(config: RunConfig, corpus: Path, folder: Path) -> Iterator[TrainContext]:
    shape = source_shape(config)
    source = transformers_config(shape, Target.of(shape).sizes())  # type: ignore[arg-type] # has what is read
    folder.mkdir(exist_ok=True)
    opened = Corpus.open(corpus)
    checked = PreflightResult(config, opened, source, corpus_tokenizer(opened), task_eval=None)
    with build_context(checked, RunFolder(folder)) as context:
        yield context


def _step(stage: Any, *_: Any) -> str:
    """Return the name of the next step's phase."""
    if stage.step == 0:
        return "first step"
    return "step" if stage.step < CLOSED_AFTER else "step, units closed"


@contextmanager
def _closing() -> Iterator[None]:
    """Prune one unit in 32 after :data:`CLOSED_AFTER` steps of the context, by its gate."""
    real = MaskedModel.clamp_gates
    calls = 0

    def clamp(masked: Any) -> None:
        nonlocal calls
        calls += 1
        real(masked)
        if calls < CLOSED_AFTER:
            return
        with torch.no_grad():
            for kind, gate in masked.gates.items():
                if kind != "layer":
                    gate[..., : max(1, gate.shape[-1] // 32)] = -FAR

    with patch.object(MaskedModel, "clamp_gates", clamp):
        yield


def _result(phases: Phases, config: RunConfig, *, tiny: bool) -> dict[str, Any]:
    """Return all phases, each with its planned peak where the plan has the phase."""
    planned = planned_peaks(config, "prune", source_shape(config), device="cpu" if tiny else "cuda")
    for name, phase in phases.found.items():
        phase["planned_bytes"] = planned.get(PLANNED.get(name, ""))
        if not phases.on_gpu:
            phase |= {"peak_bytes": None, "before_bytes": None, "after_bytes": None}
    result: dict[str, Any] = {"phases": phases.found, "planned": planned}
    if phases.on_gpu:
        peaks = {name: phase["peak_bytes"] for name, phase in phases.found.items()}
        result["largest_peak_bytes"] = max(peaks.values())  # type: ignore[type-var]
        over = [
            phase["peak_bytes"] / phase["planned_bytes"] for phase in phases.found.values() if phase["planned_bytes"]
        ]  # type: ignore[operator]
        result["peak_over_plan"] = max(over) if over else None
    return result


def _parameters(config: RunConfig) -> int:
    from drpruning.pruning import parameter_count

    shape = source_shape(config)
    return parameter_count(transformers_config(shape, Target.of(shape).sizes()))  # type: ignore[arg-type]


def _roomy(work: Path, needed: float) -> Path:
    """Return a folder with ``needed`` free bytes: ``work``, or one in memory.

    Raises:
        OSError: There is none.
    """
    for parent in (work, Path("/dev/shm")):  # noqa: S108 - memory is what it is for
        free = shutil.disk_usage(parent).free if parent.is_dir() else 0
        if free > 1.05 * needed:
            folder = parent / f"checkpoint-{work.name}"
            folder.mkdir()
            return folder
    raise OSError(f"a checkpoint of {needed / 2**30:.1f} GiB has no room in {work}, nor in /dev/shm")
