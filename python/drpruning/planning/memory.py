"""Memory of the phases of a stage: the training code runs on fake tensors at two depths, then is extrapolated.

Memory grows by the same amount with every block, so shallow models are enough: each part of the memory at the peak of
each phase is extrapolated to the real depth, and the largest peak counts. No formula describes the training code, so
the plan has what the code allocates: copies in bfloat16, masked weights, checkpoints, chunks of the loss, states that
are loaded or widened.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from drpruning.config import RunConfig, TrainingConfig
from drpruning.hf.models import build_on_meta
from drpruning.planning.memory_tracker import MemoryTracker, Peak
from drpruning.planning.model_shape import ModelShape, OtherShape, transformers_config
from drpruning.pruning import MaskedModel, Target, parameter_count
from drpruning.pruning.extract import Cut, Fold, KeptUnits, extract
from drpruning.pruning.importance import importance
from drpruning.pruning.sparse_forward import all_units
from drpruning.train.calibration import measure_of
from drpruning.train.distill import Distiller, RowNumbers
from drpruning.train.distributed.fsdp import device_mesh, shard_model
from drpruning.train.fused_cross_entropy import CHUNK_BYTES
from drpruning.train.losses import token_losses
from drpruning.train.model_runtime import prepare
from drpruning.train.optimizers import to_float32
from drpruning.train.optimizers.build import make_optimizer
from drpruning.train.optimizers.quantized_moments import dynamic_map
from drpruning.train.state import load_tensors, tensors_of
from drpruning.train.teacher_files import DRAWS, SampledTargets, Targets, TopKTargets

DEPTHS = (2, 3)
SHARDED_DEPTHS = (4, 5)
"""From this depth on FSDP gathers as many blocks at once as in any deeper model."""
PARTS = ("weights", "gradients", "moments", "activations", "working")
"""Uses of memory. ``moments``: all states of the optimizer, with the low halves of weights. ``activations``: tensors of
a forward pass. ``working``: created in the backward pass, the optimizer or another phase, and freed there."""
PHASES = {
    "load": "weights and optimizer are created",
    "measure": "losses of the model before the stage",
    "importance": "scores of the units",
    "step": "all units active",
    "sparse_step": "a step that leaves out pruned units",
    "evaluation": "held-out losses between steps",
    "save": "a checkpoint, copied to the host",
    "resume": "a checkpoint is loaded",
    "widen": "the end: weights in float32 again",
    "export": "the small model is extracted, weight by weight or, to be repaired, whole",
}
"""The phases of a stage in the order of a run, with a description. A stage has some of them: ``importance`` if
``prune.gate_init`` needs scores; ``sparse_step`` and ``export`` under masks; ``measure`` and ``export`` on one rank, as
several ranks measure in shards and export through the memory of the host (:func:`export_host_bytes`)."""


@dataclass(frozen=True)
class PhaseMemory:
    """The peak of one phase of a stage on one rank.

    Attributes:
        parts: Bytes by :data:`PARTS`; ``weights`` includes those of a teacher.
        phase: One of :data:`PHASES`.
        when: ``forward``, ``backward`` or ``optimizer`` for a step; else the phase itself.
    """

    parts: dict[str, int]
    phase: str
    when: str

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


def stage_memory(
    config: RunConfig,
    name: str,
    source: ModelShape | OtherShape,
    *,
    device: str = "cuda",
    ranks: int = 1,
    shards: int | None = None,
) -> PhaseMemory:
    """Return the highest peak of a stage on one rank; see :func:`phases_of` for the arguments."""
    return largest_phase(phases_of(config, name, source, device=device, ranks=ranks, shards=shards))


def largest_phase(phases: Sequence[PhaseMemory]) -> PhaseMemory:
    """Return the phase with the highest peak."""
    return max(phases, key=lambda memory: memory.total)


def phases_of(
    config: RunConfig,
    name: str,
    source: ModelShape | OtherShape,
    *,
    device: str = "cuda",
    ranks: int = 1,
    shards: int | None = None,
) -> tuple[PhaseMemory, ...]:
    """Return the peak of each phase of a stage on one rank, in the order of a run.

    Args:
        config: The recipe.
        name: ``pretrain``, ``prune`` or ``continue``.
        source: Shape of the large model.
        device: ``cuda`` or ``cpu``: sets the chunks of the loss, unless the recipe does.
        ranks: Processes, each with a separate micro-batch.
        shards: Ranks that share weights, gradients and moments (FSDP2); all by default.
    """
    sizes = _sizes(source)
    if name == "continue" and config.prune is not None:
        target = Target(**config.prune.target.model_dump())
        sizes = target.resolve(source).sizes()  # type: ignore[arg-type]
    depths = DEPTHS if ranks == 1 else SHARDED_DEPTHS
    with fake_ranks(ranks, shards or ranks) as mesh:
        simulated = SimulatedStage(config, name, source, device, ranks, mesh)
        shallow, deep = (simulated.peaks({**sizes, "layers": depth}) for depth in depths)
    peaks = []
    for key in deep:
        phase, _, when = key.removesuffix(", late").partition(": ")
        parts = _at_depth(shallow[key], deep[key], depths, sizes["layers"])
        peaks.append(PhaseMemory(parts=parts, phase=phase, when=when or phase))
    by_phase = {phase: [peak for peak in peaks if peak.phase == phase] for phase in PHASES}
    return tuple(largest_phase(of_phase) for of_phase in by_phase.values() if of_phase)


def export_host_bytes(config: RunConfig, source: ModelShape | OtherShape) -> int:
    """Return the bytes that rank 0 of several needs in the memory of its node to export a model, in float32.

    They are two copies of the largest weight, before and after the cut. A repair needs the large model and the pruned
    one whole.
    """
    if config.prune is not None and config.prune.repair is not None:
        target = Target(**config.prune.target.model_dump()).resolve(source)  # type: ignore[arg-type]
        return 4 * (parameter_count(source) + parameter_count(source, target))  # type: ignore[arg-type]
    if isinstance(source, OtherShape):
        shallow = source.at_depth(1)
    else:
        shallow = transformers_config(source, {**_sizes(source), "layers": 1})
    largest: int = max(parameter.numel() for parameter in build_on_meta(shallow).parameters())
    return 8 * largest


def _sizes(source: ModelShape | OtherShape) -> dict[str, int]:
    if isinstance(source, OtherShape):
        return source.sizes
    return Target.of(source).sizes()  # type: ignore[arg-type] # has the fields that are read


@contextmanager
def fake_ranks(number: int, shards: int) -> Iterator[Any]:
    """Yield a device mesh whose other ranks do nothing; None for one rank."""
    if number == 1:
        yield None
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: PLC0415 - registers the backend "fake"

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    try:
        yield device_mesh("cpu", number, shards)
    finally:
        distributed.destroy_process_group()


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Create tensors without storage within the context."""
    dynamic_map.cache_clear()  # it caches a tensor, which must be fake inside of the context and real outside
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            yield mode
    finally:
        dynamic_map.cache_clear()


class _NoTensorMemo(TorchDispatchMode):
    """A context without the memo of the fake mode: a tensor in the memo cannot change its dtype in place."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memo = mode.fake_tensor_converter.meta_converter.tensor_memo
        self._memo.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self._memo.clear()
        return results


def _at_depth(shallow: Peak, deep: Peak, depths: tuple[int, int], layers: int) -> dict[str, int]:
    """Extrapolate the parts of a peak linearly from two depths."""
    first, second = depths

    def extrapolated(low: int, high: int) -> int:
        return low + (high - low) * (layers - first) // (second - first)

    parts = {part: extrapolated(shallow.parts.get(part, 0), deep.parts.get(part, 0)) for part in PARTS}
    if min(parts.values()) >= 0:
        return parts
    # Two instants have the same peak, and each depth has another one: the sum is right, its parts are those of one
    total = max(0, extrapolated(shallow.total, deep.total))
    return {part: total * deep.parts.get(part, 0) // deep.total for part in PARTS}


@dataclass(frozen=True)
class SimulatedStage:
    """One stage of a recipe, to run on fake models of any depth."""

    config: RunConfig
    name: str
    source: ModelShape | OtherShape
    device: str
    ranks: int = 1
    mesh: Any = None

    @property
    def training(self) -> TrainingConfig:
        """The recipe's section, with settings that a CPU can run instead of those that need a GPU."""
        training, masked = self.config.training, self.config.data.document_mask
        all_logits = not self.source.has_plain_head
        chunk = training.cross_entropy_chunk or max(
            64, CHUNK_BYTES[self.device] // (4 * self.source.vocab_size) // 64 * 64
        )
        return training.model_copy(
            update={
                "compile": False,
                "attention": "eager" if training.attention == "eager" else "sdpa" if masked else "auto",
                "cross_entropy": "plain" if training.cross_entropy == "plain" or all_logits else "chunked",
                "cross_entropy_chunk": chunk,
            }
        )

    def peaks(self, sizes: Mapping[str, int]) -> dict[str, Peak]:
        """Return the peaks of the stage's phases by name, those of a step as ``step: backward``."""
        settings, training = self.config.stage(self.name), self.training
        with fake_tensors() as mode, MemoryTracker(resized=self.mesh is not None) as tracker:
            if self.mesh is None:
                with tracker.phase("load", "weights"):
                    model = self.model(sizes)
            else:  # in the memory of the host until it is sharded
                with tracker.phase("", "weights"):
                    model = self.model(sizes)
                    shard_model(model, self.mesh, training.dtype)
            with tracker.phase("load", "weights"):
                prepare(model, training, self.config.data, end_token=0)
            if self.mesh is None:  # after a forward pass sharded weights cannot change their dtype
                with tracker.phase("measure", "working"):
                    self._measure(model)
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            with tracker.phase("load: narrow", "moments"), _NoTensorMemo(mode):
                optimizer = make_optimizer(model, settings, training)
            for parameter in parameters:
                tracker.assign(parameter, "weights")  # narrow weights are new tensors
            if not optimizer.state:  # torch's creates its moments in the first step, or on resume
                with tracker.phase("resume", "moments"), _NoTensorMemo(mode):
                    for parameter in parameters:
                        parameter.grad = torch.zeros_like(parameter)
                        tracker.assign(parameter.grad, "gradients")
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            if isinstance(model, MaskedModel):
                self._importance(tracker, model)
            with tracker.phase("load", "weights"):
                distiller = self._distiller(sizes)
            tracker.watch_gradients(parameters)
            model.train()
            self._steps(tracker, model, distiller, optimizer)
            with tracker.phase("evaluation", "working"):
                self._measure(model)
            with tracker.phase("save", "working"):
                tensors = tensors_of(model, optimizer)
            with tracker.phase("resume", "working"), _NoTensorMemo(mode):
                load_tensors(model, optimizer, tensors)
            del tensors
            inner = model.model if isinstance(model, MaskedModel) else model
            with tracker.phase("widen", "weights"):
                pass  # the moments, which are freed first
            with tracker.phase("widen: cast", "weights", entry=False), _NoTensorMemo(mode):
                to_float32(inner, optimizer)
            if isinstance(model, MaskedModel) and self.mesh is None:  # several ranks export through the host's memory
                with tracker.phase("export", "working"):
                    self._export(model)
        return {name: peak for name, peak in tracker.peaks.items() if name}

    def _steps(
        self, tracker: MemoryTracker, model: nn.Module, distiller: Distiller | None, optimizer: torch.optim.Optimizer
    ) -> None:
        """Run a step with all units active, and one that gathers the active units."""
        settings = self.config.stage(self.name)
        rows = self.training.micro_batch_size or settings.batch_size
        rows = min(rows, max(1, settings.batch_size // self.ranks))
        one_micro_batch = rows * self.ranks >= settings.batch_size
        tokens = torch.zeros(rows, self.config.data.seq_len, dtype=torch.long)

        def micro_batch(phase: str) -> None:
            with tracker.phase(f"{phase}: forward", "activations"):
                if isinstance(model, MaskedModel):
                    model.sample_masks()
                    if phase == "sparse_step":
                        model.assume_active(all_units(model.masks(), **model.applied.widths))
                objective = self._objective(model, distiller, tokens)
            with tracker.phase(f"{phase}: backward", "working"):
                objective.backward()

        for _ in range(1 if one_micro_batch else 2):  # the second adds to the gradients of the first
            micro_batch("step")
        if isinstance(model, MaskedModel) and model.gates and self.config.pruning.skips_pruned_units:
            if one_micro_batch:
                optimizer.zero_grad(set_to_none=True)
            model.skip_pruned_units = True
            micro_batch("sparse_step")
            model.skip_pruned_units = False
        with tracker.phase("step: optimizer", "working"):
            if isinstance(model, MaskedModel):
                model.constraint(1).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _measure(self, model: nn.Module) -> None:
        """Run an evaluation; before the stage no mask applies."""
        model.eval()
        with torch.no_grad(), self._autocast():
            rows = self.training.eval_batch_size
            token_losses(model, torch.zeros(rows, self.config.data.seq_len, dtype=torch.long))

    def _importance(self, tracker: MemoryTracker, masked: MaskedModel) -> None:
        """Score the units on one batch, if the recipe initialises its gates by importance."""
        settings, measure = self.config.pruning, measure_of(self.config.pruning)
        if measure is None:
            return
        rows = -(-(self.training.micro_batch_size or settings.batch_size) // self.ranks)

        def loss(masked: MaskedModel, tokens: Tensor) -> Tensor:
            with self._autocast():
                return token_losses(masked, tokens).mean()

        with tracker.phase("importance", "working"):
            batch = torch.zeros(rows, self.config.data.seq_len, dtype=torch.long)
            importance(masked, [batch], measure, loss=loss)

    def _export(self, masked: MaskedModel) -> None:
        """Cut the first units of every row, as many as the target keeps: weight by weight, or whole for a repair."""
        sizes = masked.target.sizes()
        layers = list(range(sizes["layers"]))
        kept = KeptUnits(
            layers=layers,
            hidden=list(range(sizes["hidden"])),
            heads=[list(range(sizes["kv_heads"]))] * len(layers),
            intermediate=[_first_units(masked.source.sizes(), sizes)] * len(layers),
            experts=[list(range(sizes["experts"]))] * len(layers) if "experts" in sizes else [],
        )
        if self.config.pruning.repair is not None:
            extract(masked.model, kept, masked.target)
            return
        weights = dict(masked.model.named_parameters())
        cut = Cut.of(masked.model, kept, masked.target, Fold(), lambda name: weights[name].detach())
        for weight in cut.weights().values():
            cut.weight(weight)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.training.dtype == "bfloat16")

    def _objective(self, model: nn.Module, distiller: Distiller | None, tokens: Tensor) -> Tensor:
        """Return the objective of a micro-batch, a sum over its tokens."""
        with self._autocast():
            if distiller is None:
                return token_losses(model, tokens).sum()
            rows = RowNumbers(np.zeros((1, len(tokens)), np.int32), np.zeros((1, len(tokens)), np.int64))
            return distiller.losses(model, tokens, rows=rows).objective.sum()

    def model(self, sizes: Mapping[str, int]) -> Any:
        """Return the model that the stage trains."""
        model = self._build(sizes, torch.float32)
        if self.name != "prune":
            return model
        assert isinstance(self.source, ModelShape)
        target = self.config.pruning.target.model_dump()
        whole = target["layers"] in (None, self.source.num_hidden_layers)
        # All units are active at the start; a later step that leaves out pruned units takes less memory
        return MaskedModel(model, Target(**{**target, "layers": None if whole else 1}), skip_pruned_units=False)

    def _build(self, sizes: Mapping[str, int], dtype: torch.dtype) -> Any:
        if isinstance(self.source, OtherShape):
            config = self.source.at_depth(sizes["layers"])
        else:
            config = transformers_config(self.source, sizes)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)

    def _distiller(self, sizes: Mapping[str, int]) -> Distiller | None:
        """Return the distiller of the stage, if it has one."""
        settings = getattr(self.config.stage(self.name), "distill", None)
        if settings is None:
            return None
        teacher = kept = stored = None
        if not settings.runs_teacher:
            stored = _StoredTeacher(self.config.data.seq_len, settings.top_k)
        elif settings.teacher == "source":
            dtype = torch.bfloat16 if self.config.training.dtype == "bfloat16" else torch.float32
            whole = sizes
            if isinstance(self.source, ModelShape):
                whole = {**Target.of(self.source).sizes(), "layers": sizes["layers"]}  # type: ignore[arg-type]
            teacher = self._build(whole, dtype).eval().requires_grad_(False)
            if self.mesh is not None:
                shard_model(teacher, self.mesh, self.config.training.dtype)
        if self.name == "continue" and self.config.prune is not None:
            layers, hidden = list(range(sizes["layers"])), list(range(sizes["hidden"]))
            kept = KeptUnits(layers=layers, hidden=hidden, heads=[], intermediate=[])
        return Distiller(settings, teacher, kept, stored)  # type: ignore[arg-type]


def _first_units(source: Mapping[str, int], target: Mapping[str, int]) -> list[int]:
    """Return the first FFN units of a block, or of each of its first experts, as in :class:`KeptUnits`."""
    first = range(target.get("experts", 1))
    return [expert * source["intermediate"] + unit for expert in first for unit in range(target["intermediate"])]


class _StoredTeacher:
    """A stored teacher without files: the largest sample of each token, or the likeliest tokens, all zero."""

    def __init__(self, seq_len: int, top_k: int | None) -> None:
        self.tokens, self.top_k = seq_len - 1, top_k
        self.identity = SimpleNamespace(method="sample" if top_k is None else "top_k")

    def read(self, domains: Sequence[int], rows: Sequence[int]) -> Targets:
        """Return targets of these rows."""
        count = len(rows) * self.tokens
        if self.top_k is None:
            return SampledTargets(np.zeros((count, DRAWS), np.int32), np.zeros((count, DRAWS), np.float32))
        values = np.zeros((count, self.top_k + 1), np.float32)
        return TopKTargets(np.zeros((count, self.top_k), np.int64), values)
