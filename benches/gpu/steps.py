"""Steps of a stage: the package's own stages and loop train, and their records are read."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from cases import SAVED_AFTER, WARM, Case, config_of
from plan import planned_peaks
from torch.profiler import ProfilerActivity, profile, supported_activities

from drpruning.corpus import Corpus
from drpruning.planning.model_shape import transformers_config
from drpruning.planning.recipe import source_shape
from drpruning.pruning import Target
from drpruning.pruning.model_flops import flops_per_token
from drpruning.records import Record, StepTaken
from drpruning.run_folder import RunFolder
from drpruning.train.base_model import build, corpus_tokenizer
from drpruning.train.loop import run_stage
from drpruning.train.preflight import PreflightResult
from drpruning.train.run import build_context
from drpruning.train.stages import begin_stage, masked_model

LEAST, MOST = 4, 50  # steps that are counted
SECONDS = 40.0  # for them, if they are more than the least
FAR = 20.0  # log-alpha out of the noise's reach (log(1e6) = 13.8): such a gate is exactly 0 or 1 in every sample
PRODUCTS = ("gemm", "cutlass", "nvjet", "xmma", "wgmma", "aten::mm", "aten::addmm", "aten::bmm")
"""Parts of the names of kernels of matrix products; on a CPU of operations."""
ATTENTION = ("flash", "fmha", "flex", "sdpa", "attention", "cudnn_generated")
"""The same of attention; looked for first, since some are made of CUTLASS too."""
OPERATIONS = ("aten::_scaled_dot_product", "aten::_softmax")


class Enough(Exception):  # noqa: N818 - not an error: all is measured
    """Ends a stage that has taken the steps it is measured by."""


class Watch:
    """Reads the loop's records: warm-up steps, counted steps, then a checkpoint, or one step each for two tools.

    The tools are torch's profiler and the debug mode of CUDA that warns where the host waits for the device.

    Args:
        seconds: For counted steps, if at least :data:`LEAST` are taken.
        checkpoint: Folder of the checkpoint that is due after :data:`SAVED_AFTER` of them; None: there is none.
    """

    def __init__(self, seconds: float, checkpoint: Path | None) -> None:
        self.seconds = seconds
        self.checkpoint = checkpoint
        self.counted: list[StepTaken] = []
        self.profiled: dict[str, Any] = {}
        self.synchronisations: Counter[str] | None = None
        self.allocated: int | None = None
        self.after: list[float] = []
        self.saved_after: float | None = None
        self._seen = 0
        self._steps = SAVED_AFTER if checkpoint else LEAST
        self._profiler: Any = None
        self._debugging: ExitStack | None = None
        self._times: list[float] = []

    def write(self, record: Record) -> None:
        """Takes the record of a step, which the loop writes in the course of the next one."""
        if not isinstance(record, StepTaken):
            return
        self._seen += 1
        self._times.append(time.perf_counter())
        if self._debugging is not None:
            self._debugging.close()
            raise Enough
        if self._profiler is not None:
            self.profiled, self._profiler = read_profile(self._profiler), None
            self._debug()
            return
        if self._seen <= WARM:
            if self._seen == WARM and torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            return
        if len(self.counted) < self._steps:
            self.counted.append(record)
            if len(self.counted) == 1 and self.checkpoint is None:
                self._steps = min(MOST, max(LEAST, int(self.seconds / (self._times[-1] - self._times[-2]))))
        if len(self.counted) < self._steps:
            return
        if self.allocated is None and torch.cuda.is_available():
            self.allocated = torch.cuda.max_memory_allocated()
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

    def _debug(self) -> None:
        if not torch.cuda.is_available():
            raise Enough
        self._debugging, found = ExitStack(), Counter[str]()
        self.synchronisations = found
        self._debugging.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")

        def note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                found[f"{Path(filename).name}:{lineno}"] += 1

        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        self._debugging.callback(torch.cuda.set_sync_debug_mode, "default")


def started_profiler() -> Any:
    """Torch's profiler, recording."""
    required = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
    profiler = profile(activities=list(required))
    profiler.start()
    return profiler


def read_profile(profiler: Any) -> dict[str, Any]:
    """Stops a profiler; returns the host's waits, and how the device's time is shared out.

    ``waits`` counts calls in which the host waits for the device, that for the numbers of the step before included; on
    a CPU, reads of a tensor's value. Shares are of the time of all kernels; on a CPU of the operations themselves.
    """
    profiler.stop()
    on_gpu = torch.cuda.is_available()
    waiting = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
    if not on_gpu:
        waiting = {"aten::_local_scalar_dense"}
    waits, times = 0, Counter[str]()
    for event in profiler.profiler.kineto_results.events():
        name = event.name()
        waits += name in waiting
        kernel = event.device_type() == torch.autograd.DeviceType.CUDA
        if kernel or (not on_gpu and name.startswith((*PRODUCTS, *OPERATIONS))):
            times[name] += event.duration_ns()
    total = sum(times.values()) or 1
    attention = {name for name in times if any(part in name.lower() for part in (*ATTENTION, *OPERATIONS))}
    products = {name for name in times if any(part in name.lower() for part in PRODUCTS)} - attention
    return {
        "waits_per_step": waits,
        "product_share": sum(times[name] for name in products) / total,
        "attention_share": sum(times[name] for name in attention) / total,
        "attention_kernels": sorted(name[:120] for name in attention),
        "longest_kernels": [[name[:120], time / total] for name, time in times.most_common(12)],
    }


def measure_steps(case: Case, corpus: Path, work: Path, *, tiny: bool = False) -> dict[str, Any]:
    """Trains until there are enough steps.

    Args:
        case: What to train.
        corpus: Of random tokens.
        work: An empty folder, for the run.
        tiny: Whether on a CPU in a moment.

    Returns:
        The figures, JSON-able.
    """
    config = config_of(case, corpus, tiny=tiny)
    shape = source_shape(config)
    planned = None
    if case.masks != "target" and not case.checkpoint:  # others take no more than these
        planned = planned_peaks(config, case.stage, shape, device="cpu" if tiny else "cuda")["step"]
    whole = Target.of(shape).sizes()  # type: ignore[arg-type] # has what is read
    target = Target(**config.prune.target.model_dump()).resolve(shape).sizes()  # type: ignore[arg-type]
    source = transformers_config(shape, whole if case.stage == "prune" else target)
    saved = work / "checkpoints" / f"{case.stage}-{WARM + SAVED_AFTER:09d}" if case.checkpoint else None
    watch = Watch(0.0 if tiny else SECONDS, saved)
    opened = Corpus.open(corpus)
    checked = PreflightResult(config, opened, source, corpus_tokenizer(opened), task_eval=None)
    with build_context(checked, RunFolder(work), watchers=[watch]) as context, suppress(Enough):
        with context.device:  # on a GPU in a moment
            model = build(source, 0)
        if case.stage == "prune":
            model = masked_model(config.prune, model)
            place_gates(model, case.masks)
        stage = begin_stage(context, case.stage, context.place_model(model))
        run_stage(stage, context)
    tokens = config.stage(case.stage).batch_size * config.data.seq_len
    took = [tokens / record.tokens_per_second for record in watch.counted]
    waited = [record.loader_wait or 0.0 for record in watch.counted]
    computed = target if case.masks == "target" and config.prune.skip_pruned_units else Target.of(source).sizes()
    utilisation = median(record.utilisation for record in watch.counted if record.utilisation is not None)
    result: dict[str, Any] = {
        "tokens_per_step": tokens,
        "steps": len(took),
        "step_seconds": median(took),
        "step_seconds_quartiles": [quartile for place, quartile in enumerate(quantiles(took, n=4)) if place != 1],
        "tokens_per_second": median(record.tokens_per_second for record in watch.counted),
        "utilisation": utilisation,
        "flops_per_token": flops_per_token(source, computed, config.data.seq_len),
        "loader_wait_share": sum(waited) / sum(took),
        "memory_bytes": watch.counted[-1].memory,
        "allocated_bytes": watch.allocated,
        "reserved_bytes": None if tiny else torch.cuda.max_memory_reserved(),
        "planned_bytes": planned,
        **watch.profiled,
    }
    if planned is not None and watch.allocated is not None:
        result |= {"peak_over_plan": watch.allocated / planned, "plan_over_peak": planned / watch.allocated}
    if watch.synchronisations is not None:
        result["synchronisations_per_step"] = watch.synchronisations.total()
        result["synchronisations"] = watch.synchronisations.most_common(8)
    if saved is not None:
        usual = median(took)
        share = (sum(watch.after) - usual * len(watch.after)) / (500 * usual)
        result["checkpoint_share"] = share
        result["checkpoint"] = {
            "bytes": sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()),
            "first_step_longer_by": watch.after[0] - usual,
            "all_steps_longer_by": sum(watch.after) - usual * len(watch.after),
            "complete_after": watch.saved_after,
        }
    return result


def place_gates(masked: Any, masks: str) -> None:
    """Puts every gate where its mask is one, or where it is that of the target, without a doubt."""
    with torch.no_grad():
        for kind, mask in masked.deterministic_masks().items():
            kept = torch.ones_like(mask) if masks == "open" else mask
            masked.gates[kind].copy_(torch.where(kept > 0, FAR, -FAR))
    masked.clamp_gates = lambda: None  # type: ignore[method-assign]  # it would bring the gates back within the noise's reach
