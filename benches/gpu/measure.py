"""One case, measured: the package's own stages and loop train, and what they record is read."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from cases import SAVED_AFTER, WARM, Case, config_of
from torch.profiler import ProfilerActivity, profile, supported_activities

from drpruning.corpus import Corpus
from drpruning.planning.memory import stage_memory
from drpruning.planning.model_shape import transformers_config
from drpruning.planning.recipe import source_of
from drpruning.pruning import Target
from drpruning.records import Record, StepTaken
from drpruning.train.flops import flops_per_token
from drpruning.train.loop import run_stage
from drpruning.train.run import open_run
from drpruning.train.source import build
from drpruning.train.stages import begin, masked_model, strategy

LEAST, MOST = 4, 50  # steps that are counted
FAR = 20.0  # log-alpha out of the noise's reach (log(1e6) = 13.8): such a gate is exactly 0 or 1 in every sample


class Enough(Exception):  # noqa: N818 - not an error: everything that was to be measured is
    """Ends a stage that has taken the steps it is measured by."""


class Watch:
    """Takes the loop's records: warm-up steps, counted steps, then one under the profiler, or a checkpoint.

    Args:
        seconds: For counted steps, as far as at least :data:`LEAST` are taken.
        checkpoint: Where a checkpoint is going to appear after :data:`SAVED_AFTER` of them; None: there is none.
    """

    def __init__(self, seconds: float, checkpoint: Path | None) -> None:
        self.seconds = seconds
        self.checkpoint = checkpoint
        self.counted: list[StepTaken] = []
        self.waits: float | None = None
        self.after: list[float] = []
        self.saved_after: float | None = None
        self._seen = 0
        self._steps = SAVED_AFTER if checkpoint else LEAST
        self._profiler: Any = None
        self._times: list[float] = []

    def write(self, record: Record) -> None:
        """Takes note of a step; the loop calls this once the device is done with it, in the course of the next one."""
        if not isinstance(record, StepTaken):
            return
        self._seen += 1
        self._times.append(time.perf_counter())
        if self._profiler is not None:
            self.waits = waits_in(self._profiler)
            raise Enough
        if self._seen <= WARM:
            return
        if len(self.counted) < self._steps:
            self.counted.append(record)
            if len(self.counted) == 1 and self.checkpoint is None:
                self._steps = min(MOST, max(LEAST, int(self.seconds / (self._times[-1] - self._times[-2]))))
        if len(self.counted) < self._steps:
            return
        if self.checkpoint is None:
            self._profiler = started_profiler()
        elif self._seen > WARM + self._steps:
            self._watch_checkpoint(self.checkpoint)

    def _watch_checkpoint(self, checkpoint: Path) -> None:
        self.after.append(self._times[-1] - self._times[-2])
        if checkpoint.is_dir() and self.saved_after is None:
            self.saved_after = self._times[-1] - self._times[WARM + self._steps - 1]
        if self.saved_after is not None and len(self.after) > 2:
            raise Enough


def started_profiler() -> Any:
    """Torch's, already on."""
    wanted = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
    profiler = profile(activities=list(wanted))
    profiler.start()
    return profiler


def waits_in(profiler: Any) -> float:
    """How often the host waited for the device in the step; on a CPU, how often a tensor's value was asked for."""
    profiler.stop()
    waits = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
    if not torch.cuda.is_available():
        waits = {"aten::_local_scalar_dense"}
    return sum(event.name() in waits for event in profiler.profiler.kineto_results.events())


def measure(case: Case, corpus: Path, work: Path, seconds: float, *, tiny: bool = False) -> dict[str, Any]:
    """Trains as a case says until there are enough steps.

    Args:
        case: What to train.
        corpus: Of random tokens.
        work: An empty folder, for the run.
        seconds: For counted steps.
        tiny: Whether on a CPU in a moment.

    Returns:
        What was measured, JSON-able.
    """
    config = config_of(case, corpus, tiny=tiny)
    shape = source_of(config)
    kind = "cpu" if tiny else "cuda"
    planned = None
    if case.masks != "target" and not case.checkpoint:  # others take no more than these
        planned = stage_memory(config, case.stage, shape, device=kind).total
    whole = Target.of(shape).sizes()  # type: ignore[arg-type] # has what is read
    target = Target(**config.prune.target.model_dump()).resolve(shape).sizes()  # type: ignore[arg-type]
    source = transformers_config(shape, whole if case.stage == "prune" else target)
    saved = work / "checkpoints" / f"{case.stage}-{WARM + SAVED_AFTER:09d}" if case.checkpoint else None
    watch = Watch(seconds, saved)
    with open_run(config, work, Corpus.open(corpus), source, watchers=[watch]) as run, suppress(Enough):
        with run.engine.device:  # made where it is used, which takes moments
            model = build(source, 0)
        if case.stage == "prune":
            model = masked_model(config.prune, model)
            place_gates(model, case.masks)
        stage = begin(
            run, case.stage, run.place(model), strategy(config, case.stage), config.data.reference_ratio, None
        )
        run_stage(stage, run.engine)
    tokens = config.stage(case.stage).batch_size * config.data.seq_len
    took = [tokens / record.tokens_per_second for record in watch.counted]
    waited = [record.loader_wait or 0.0 for record in watch.counted]
    computed = target if case.masks == "target" and config.prune.skip_closed else Target.of(source).sizes()
    result: dict[str, Any] = {
        "tokens_per_step": tokens,
        "steps": len(took),
        "step_seconds": median(took),
        "step_seconds_quartiles": [quartile for place, quartile in enumerate(quantiles(took, n=4)) if place != 1],
        "tokens_per_second": median(record.tokens_per_second for record in watch.counted),
        "utilisation": median(record.utilisation for record in watch.counted if record.utilisation is not None),
        "flops_per_token": flops_per_token(source, computed, config.data.seq_len),
        "loader_wait_share": sum(waited) / sum(took),
        "memory_bytes": watch.counted[-1].memory,
        "reserved_bytes": None if tiny else torch.cuda.max_memory_reserved(),
        "planned_bytes": planned,
        "waits_per_step": watch.waits,
    }
    if saved is not None:
        usual = median(took)
        result["checkpoint"] = {
            "bytes": sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
            "first_step_longer_by": watch.after[0] - usual,
            "all_steps_longer_by": sum(watch.after) - usual * len(watch.after),
            "complete_after": watch.saved_after,
            "share_at_one_per_500_steps": (sum(watch.after) - usual * len(watch.after)) / (500 * usual),
        }
    return result


def place_gates(masked: Any, masks: str) -> None:
    """Puts every gate where its mask is one, or where it is that of the target, without a doubt."""
    with torch.no_grad():
        for kind, mask in masked.deterministic_masks().items():
            kept = torch.ones_like(mask) if masks == "open" else mask
            masked.gates[kind].copy_(torch.where(kept > 0, FAR, -FAR))
    masked.clamp_gates = lambda: None  # type: ignore[method-assign]  # it would bring the gates back within the noise's reach
