"""Memory of the phases of a stage: the real code on tensors without storage, at two depths, and a line through both.

Models are shallow here, since memory grows by the same with every block: each part of the memory at the peak of each
phase is extrapolated to the real depth, and the largest peak counts. Nothing is modelled by hand, so the plan has what
the code does: copies in bfloat16, masked weights, checkpoints, chunks of the loss, states that are loaded or widened.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from drpruning.config import RunConfig, TrainingConfig
from drpruning.planning.live_bytes import LiveBytes, Peak
from drpruning.planning.model_shape import ModelShape, OtherShape, transformers_config
from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.closed import every_unit
from drpruning.pruning.export import KeptUnits, extract
from drpruning.pruning.importance import importance
from drpruning.train.distill import Distiller
from drpruning.train.distributed.fsdp import device_mesh, shard_model
from drpruning.train.fused_cross_entropy import CHUNK_BYTES
from drpruning.train.losses import token_losses
from drpruning.train.model_runtime import prepare
from drpruning.train.optimizers import to_float32
from drpruning.train.optimizers.build import make_optimizer
from drpruning.train.optimizers.quantized_moments import dynamic_map
from drpruning.train.state import load_tensors, tensors_of

DEPTHS = (2, 3)
SHARDED_DEPTHS = (4, 5)
"""From which on FSDP holds as many blocks whole as it ever does: the one at work, and those that come and go."""
PARTS = ("weights", "gradients", "moments", "activations", "working")
"""What bytes are for. ``moments``: all that the optimizer keeps, also low halves of weights. ``activations``: what a
forward pass made. ``working``: made in the backward pass, the optimizer or another phase, and freed there."""
PHASES = {
    "load": "weights and optimizer are made",
    "measure": "losses of the model before",
    "importance": "scores of the units",
    "step": "all units open",
    "closing": "a step once a unit has closed",
    "evaluation": "held-out losses between steps",
    "save": "a checkpoint, copied to the host",
    "resume": "a checkpoint read, or gone back to",
    "widen": "the end: float32 weights again",
    "export": "the small model is cut out",
}
"""The phases of a stage in the order of a run, and what each is. A stage has some of them: ``importance`` where
``prune.gate_init`` needs scores; ``closing`` and ``export`` under masks; ``measure`` and ``export`` on one rank, as
several measure in shards and export in the memory of the host."""


@dataclass(frozen=True)
class Memory:
    """The peak of one phase of a stage on one rank.

    Attributes:
        parts: Bytes by :data:`PARTS`; ``weights`` includes those of a teacher.
        phase: One of :data:`PHASES`.
        when: Of a step ``forward``, ``backward`` or ``optimizer``; of others the phase itself.
    """

    parts: dict[str, int]
    phase: str
    when: str

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


def stage_memory(
    config: RunConfig,
    name: str,
    source: ModelShape | OtherShape,
    *,
    device: str = "cuda",
    ranks: int = 1,
    shards: int | None = None,
) -> Memory:
    """The peak of a stage on one rank: the largest of :func:`phases_of`, which has the arguments."""
    return largest(phases_of(config, name, source, device=device, ranks=ranks, shards=shards))


def largest(phases: Sequence[Memory]) -> Memory:
    """The phase with the highest peak."""
    return max(phases, key=lambda memory: memory.total)


def phases_of(
    config: RunConfig,
    name: str,
    source: ModelShape | OtherShape,
    *,
    device: str = "cuda",
    ranks: int = 1,
    shards: int | None = None,
) -> tuple[Memory, ...]:
    """The peak of each phase of a stage on one rank, in the order of a run.

    Args:
        config: The recipe.
        name: ``pretrain``, ``prune`` or ``continue``.
        source: Shape of the large model.
        device: ``cuda`` or ``cpu``: decides the chunks of the loss, where the recipe does not.
        ranks: Processes, each with a micro-batch of its own.
        shards: How many of them share weights, gradients and moments (FSDP2); missing: all.
    """
    sizes = _sizes(source)
    if name == "continue" and config.prune is not None:
        target = Target(**config.prune.target.model_dump())
        sizes = target.resolve(source).sizes()  # type: ignore[arg-type]
    depths = DEPTHS if ranks == 1 else SHARDED_DEPTHS
    with _ranks(ranks, shards or ranks) as mesh:
        played = Played(config, name, source, device, ranks, mesh)
        shallow, deep = (played.peaks({**sizes, "layers": depth}) for depth in depths)
    peaks = []
    for key in deep:
        phase, _, when = key.removesuffix(", late").partition(": ")
        parts = _at_depth(shallow[key], deep[key], depths, sizes["layers"])
        peaks.append(Memory(parts=parts, phase=phase, when=when or phase))
    by_phase = {phase: [peak for peak in peaks if peak.phase == phase] for phase in PHASES}
    return tuple(largest(of_phase) for of_phase in by_phase.values() if of_phase)


def _sizes(source: ModelShape | OtherShape) -> dict[str, int]:
    if isinstance(source, OtherShape):
        return source.sizes
    return Target.of(source).sizes()  # type: ignore[arg-type] # has what is read


@contextmanager
def _ranks(number: int, shards: int) -> Iterator[Any]:
    """A mesh of ranks of which the others do nothing; None for one."""
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
def _playing() -> Iterator[FakeTensorMode]:
    """Within the context tensors have no storage."""
    dynamic_map.cache_clear()  # what it keeps between calls must not be taken for a real tensor, nor the reverse
    try:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
            yield mode
    finally:
        dynamic_map.cache_clear()


class _Forgetting(TorchDispatchMode):
    """Within the context the fake mode remembers no tensors: one it remembers cannot get another type in place."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._remembered = mode.fake_tensor_converter.meta_converter.tensor_memo
        self._remembered.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._remembered.clear()
        return made


def _at_depth(shallow: Peak, deep: Peak, depths: tuple[int, int], layers: int) -> dict[str, int]:
    """The parts of a peak on the line through two depths."""
    first, second = depths

    def extrapolated(low: int, high: int) -> int:
        return low + (high - low) * (layers - first) // (second - first)

    parts = {part: extrapolated(shallow.parts.get(part, 0), deep.parts.get(part, 0)) for part in PARTS}
    if min(parts.values()) >= 0:
        return parts
    # Two instants have the same peak, and each depth took another: the sum is right, its parts are those of one of them
    total = max(0, extrapolated(shallow.total, deep.total))
    return {part: total * deep.parts.get(part, 0) // deep.total for part in PARTS}


@dataclass(frozen=True)
class Played:
    """One stage of a recipe, to be played on models of any depth."""

    config: RunConfig
    name: str
    source: ModelShape | OtherShape
    device: str
    ranks: int = 1
    mesh: Any = None

    @property
    def training(self) -> TrainingConfig:
        """The recipe's section, with what a CPU can play in place of what only a GPU can."""
        training, masked = self.config.training, self.config.data.document_mask
        all_logits = isinstance(self.source, OtherShape) and not self.source.has_plain_head
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
        """The peaks of the phases of the stage: by name, those of a step as ``step: backward``."""
        settings, training = self.config.stage(self.name), self.training
        with _playing() as mode, LiveBytes(resized=self.mesh is not None) as live:
            if self.mesh is None:
                with live.phase("load", "weights"):
                    model = self.model(sizes)
            else:  # in the memory of the host until it is sharded
                with live.phase("", "weights"):
                    model = self.model(sizes)
                    shard_model(model, self.mesh, training.dtype)
            with live.phase("load", "weights"):
                prepare(model, training, self.config.data, end_token=0)
            if self.mesh is None:  # sharded weights cannot be made narrow after a forward pass, so here they would stay
                with live.phase("measure", "working"):
                    self._measure(model)
            parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
            with live.phase("load: narrow", "moments"), _Forgetting(mode):
                optimizer = make_optimizer(model, settings, training)
            for parameter in parameters:
                live.assign(parameter, "weights")  # narrow ones are new tensors
            if not optimizer.state:  # torch's makes its moments in the first step, or when it resumes
                with live.phase("resume", "moments"), _Forgetting(mode):
                    for parameter in parameters:
                        parameter.grad = torch.zeros_like(parameter)
                        live.assign(parameter.grad, "gradients")
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            if isinstance(model, MaskedModel):
                self._importance(live, model)
            with live.phase("load", "weights"):
                distiller = self._distiller(sizes)
            live.watch_gradients(parameters)
            model.train()
            self._steps(live, model, distiller, optimizer)
            with live.phase("evaluation", "working"):
                self._measure(model)
            with live.phase("save", "working"):
                tensors = tensors_of(model, optimizer)
            with live.phase("resume", "working"), _Forgetting(mode):
                load_tensors(model, optimizer, tensors)
            del tensors
            inner = model.model if isinstance(model, MaskedModel) else model
            with live.phase("widen", "weights"):
                pass  # the moments, which go first
            with live.phase("widen: cast", "weights", entry=False), _Forgetting(mode):
                to_float32(inner, optimizer)
            if isinstance(model, MaskedModel) and self.mesh is None:  # of several ranks the first exports on the host
                with live.phase("export", "working"):
                    self._extract(model)
        return {name: peak for name, peak in live.peaks.items() if name}

    def _steps(
        self, live: LiveBytes, model: nn.Module, distiller: Distiller | None, optimizer: torch.optim.Optimizer
    ) -> None:
        """A step with all units open, and another in which they are gathered."""
        settings = self.config.stage(self.name)
        rows = self.training.micro_batch_size or settings.batch_size
        rows = min(rows, max(1, settings.batch_size // self.ranks))
        alone = rows * self.ranks >= settings.batch_size
        tokens = torch.zeros(rows, self.config.data.seq_len, dtype=torch.long)

        def micro_batch(phase: str) -> None:
            with live.phase(f"{phase}: forward", "activations"):
                if isinstance(model, MaskedModel):
                    model.sample_masks()
                    if phase == "closing":
                        model.assume_open(every_unit(model.masks(), **model.applied.widths))
                objective = self._objective(model, distiller, tokens)
            with live.phase(f"{phase}: backward", "working"):
                objective.backward()

        for _ in range(1 if alone else 2):  # the second finds gradients of the first
            micro_batch("step")
        if isinstance(model, MaskedModel) and model.gates and self.config.pruning.skip_pruned_units:
            if alone:
                optimizer.zero_grad(set_to_none=True)
            model.skip_pruned_units = True
            micro_batch("closing")
            model.skip_pruned_units = False
        with live.phase("step: optimizer", "working"):
            if isinstance(model, MaskedModel):
                model.constraint(1).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _measure(self, model: nn.Module) -> None:
        """An evaluation; before the stage no mask applies."""
        model.eval()
        with torch.no_grad(), self._autocast():
            rows = self.training.eval_batch_size
            token_losses(model, torch.zeros(rows, self.config.data.seq_len, dtype=torch.long))

    def _importance(self, live: LiveBytes, masked: MaskedModel) -> None:
        """Scores of the units from one batch, where the recipe starts from them."""
        settings = self.config.pruning
        if settings.gate_init == "uniform":
            return
        rows = -(-(self.training.micro_batch_size or settings.batch_size) // self.ranks)

        def loss(masked: MaskedModel, tokens: Tensor) -> Tensor:
            with self._autocast():
                return token_losses(masked, tokens).mean()

        with live.phase("importance", "working"):
            batch = torch.zeros(rows, self.config.data.seq_len, dtype=torch.long)
            importance(masked, [batch], settings.gate_init, loss=loss)

    def _extract(self, masked: MaskedModel) -> None:
        """The first units of every row cut out: as many as the target keeps."""
        sizes = masked.target.sizes()
        layers = list(range(sizes["layers"]))
        kept = KeptUnits(
            layers=layers,
            hidden=list(range(sizes["hidden"])),
            heads=[list(range(sizes["kv_heads"]))] * len(layers),
            intermediate=[list(range(sizes["intermediate"]))] * len(layers),
        )
        extract(masked.model, kept, masked.target)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.training.dtype == "bfloat16")

    def _objective(self, model: nn.Module, distiller: Distiller | None, tokens: Tensor) -> Tensor:
        """The sum that a micro-batch descends on."""
        with self._autocast():
            if distiller is None:
                return token_losses(model, tokens).sum()
            return distiller.losses(model, tokens).objective.sum()

    def model(self, sizes: Mapping[str, int]) -> Any:
        """The model that the stage trains."""
        model = self._built(sizes, torch.float32)
        if self.name != "prune":
            return model
        assert isinstance(self.source, ModelShape)
        asked = self.config.pruning.target.model_dump()
        whole = asked["layers"] in (None, self.source.num_hidden_layers)
        # Nothing is closed when the stage begins; leaving out what is takes less memory afterwards
        return MaskedModel(model, Target(**{**asked, "layers": None if whole else 1}), skip_pruned_units=False)

    def _built(self, sizes: Mapping[str, int], dtype: torch.dtype) -> Any:
        if isinstance(self.source, OtherShape):
            config = self.source.at_depth(sizes["layers"])
        else:
            config = transformers_config(self.source, sizes)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)

    def _distiller(self, sizes: Mapping[str, int]) -> Distiller | None:
        """What teaches in this stage, if anything does."""
        settings = getattr(self.config.stage(self.name), "distill", None)
        if settings is None:
            return None
        teacher = kept = None
        if settings.teacher == "source":
            dtype = torch.bfloat16 if self.config.training.dtype == "bfloat16" else torch.float32
            whole = sizes
            if isinstance(self.source, ModelShape):
                whole = {**Target.of(self.source).sizes(), "layers": sizes["layers"]}  # type: ignore[arg-type]
            teacher = self._built(whole, dtype).eval().requires_grad_(False)
            if self.mesh is not None:
                shard_model(teacher, self.mesh, self.config.training.dtype)
        if self.name == "continue" and self.config.prune is not None:
            layers, hidden = list(range(sizes["layers"])), list(range(sizes["hidden"]))
            kept = KeptUnits(layers=layers, hidden=hidden, heads=[], intermediate=[])
        return Distiller(settings, teacher, kept)
