"""The cost of a recipe on given GPUs: memory of a rank, speed and hours; if it does not fit, settings that do.

Memory is simulated (:mod:`drpruning.planning.memory`). Speed is an assumption (:mod:`drpruning.planning.accelerators`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from drpruning.config import RunConfig, TrainingConfig
from drpruning.errors import ConfigError
from drpruning.planning.accelerators import UTILISATION, Accelerator, accelerator_peak, find_accelerator, step_seconds
from drpruning.planning.memory import PhaseMemory, largest_phase, phases_of
from drpruning.planning.model_shape import ModelShape, OtherShape
from drpruning.planning.recipe import StagePlan, plan_recipe

RESERVE = 3 * 2**30
"""Bytes of an accelerator that are not planned for: the CUDA context, kernels' workspaces, fragmentation. An H100 has
76 of 79 GiB."""
GPUS_PER_NODE = 8
"""GPUs of one node by default, as in HGX and DGX systems."""
STATE_FORMATS = {
    ("float32", "float32"): 16,
    ("bfloat16+low16", "float32"): 14,
    ("bfloat16+low16", "bfloat16"): 10,
    ("bfloat16+low16", "int8"): 8,
    ("bfloat16", "int8"): 6,
}
"""``training.weight_format`` and ``training.optimizer_state_format``, from the most exact to the smallest: bytes of a
parameter with its gradient and moments. If these alone do not fit, nothing needs to be simulated."""


@dataclass(frozen=True)
class Cluster:
    """A number of equal accelerators.

    Attributes:
        number: GPUs; each is a rank.
        accelerator: Their type.
        node: GPUs of one node.
    """

    number: int
    accelerator: Accelerator
    node: int

    @property
    def usable_memory(self) -> int:
        """Bytes that a rank may use."""
        return int(self.accelerator.memory) - RESERVE

    def shards(self, training: TrainingConfig) -> int:
        """Return the number of ranks that share one copy of the weights (``training.fsdp_shard``)."""
        if training.fsdp_shard == "all":
            return self.number
        return self.node if training.fsdp_shard == "node" else training.fsdp_shard


def parse_cluster(text: str) -> Cluster:
    """Parse GPUs: 8xH100, or 4x8xH100 for four nodes of eight. By default a node has at most eight.

    Raises:
        ConfigError: The text has another form, or an accelerator that is not in the table.

    Example:
        >>> parse_cluster("8xH100").number, parse_cluster("L40S").accelerator.name
        (8, 'L40S')
        >>> parse_cluster("4x8xH100").number, parse_cluster("16xH100").node
        (32, 8)
    """
    match = re.fullmatch(r"\s*(?:([0-9]+)\s*[xX*]\s*)?(?:([0-9]+)\s*[xX*]\s*)?(\S.*?)\s*", text)
    number = int(match[1] or 1) * int(match[2] or 1) if match else 0
    if match is None or not 1 <= number <= 2**16:
        raise ConfigError(f"--gpus {text!r} is not a number of accelerators", "For example --gpus 8xH100, or 4x8xH100.")
    return Cluster(number, find_accelerator(match[3]), int(match[2]) if match[2] else min(number, GPUS_PER_NODE))


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage on a cluster.

    Attributes:
        name: Name of the stage.
        phases: Memory of a rank at the peak of each phase, in the order of a run.
        fits: Whether the largest peak is within the usable memory.
        utilisation: Assumed fraction of the peak FLOP/s that trains the student.
        tokens_per_second: Tokens/s of all GPUs together.
        hours: Hours of training steps.
        evaluation_hours: Hours of evaluations.
    """

    name: str
    phases: tuple[PhaseMemory, ...]
    fits: bool
    utilisation: float
    tokens_per_second: float
    hours: float
    evaluation_hours: float

    @property
    def memory(self) -> PhaseMemory:
        """Memory of a rank in the phase with the highest peak."""
        return largest_phase(self.phases)

    @property
    def total_hours(self) -> float:
        """Hours of training steps and evaluations."""
        return self.hours + self.evaluation_hours


@dataclass(frozen=True)
class FittingSettings:
    """Settings with which every stage fits.

    Attributes:
        settings: Arguments of ``--set``; only those that differ from the recipe.
        stages: Cost of the stages with these settings.
    """

    settings: dict[str, Any]
    stages: tuple[StageCost, ...]


def recipe_costs(config: RunConfig, source: ModelShape | OtherShape, cluster: Cluster) -> tuple[StageCost, ...]:
    """Return the cost of every stage of a recipe on a cluster.

    Args:
        config: The recipe.
        source: Shape of the large model.
        cluster: The GPUs.

    Raises:
        ConfigError: The target does not fit the source, or a batch or the shards do not divide.
    """
    planned = plan_recipe(config, source)
    for stage in planned.stages:
        batch = config.stage(stage.name).batch_size
        if batch % cluster.number:
            raise ConfigError(
                f"{stage.name}.batch_size {batch} is not a multiple of the {cluster.number} GPUs",
                "Choose another number of GPUs, or change the batch size.",
            )
    if cluster.number % cluster.shards(config.training):
        raise ConfigError(
            f"training.fsdp_shard {config.training.fsdp_shard} does not divide the {cluster.number} GPUs",
            "Choose a divisor of the number of GPUs: this number of ranks shares one copy of the weights.",
        )
    return tuple(_stage(config, stage, source, cluster) for stage in planned.stages)


def memory_by_format(
    config: RunConfig, name: str, source: ModelShape | OtherShape, cluster: Cluster
) -> list[tuple[str, str, PhaseMemory]]:
    """Return the memory of one stage with each of :data:`STATE_FORMATS`: weights, moments, memory."""
    return [
        (weights, moments, largest_phase(_phases(_changed(config, scheme), name, source, cluster)))
        for weights, moments in STATE_FORMATS
        for scheme in ({"weight_format": weights, "optimizer_state_format": moments},)
    ]


def find_fitting_settings(
    config: RunConfig, source: ModelShape | OtherShape, cluster: Cluster
) -> FittingSettings | None:
    """Find the least harmful settings with which every stage fits; None if no settings that are tried are enough.

    They are tried in this order: fewer rows in an evaluation, activation checkpointing, one row in a micro-batch; then
    the same with one copy of the weights for all GPUs, and with narrower weights and moments.
    """
    # the stage with the most parameters first: it is the least likely to fit
    stages = sorted(plan_recipe(config, source).stages, key=lambda stage: -stage.parameters)
    for changes in filter(None, (_differing(config, changes) for changes in _ladder(config))):
        changed = _changed(config, changes)
        scheme = (changed.training.weight_format, changed.training.optimizer_state_format)
        states = stages[0].parameters * STATE_FORMATS.get(scheme, 0)
        if states > cluster.usable_memory * cluster.shards(changed.training):
            continue
        peaks = (largest_phase(_phases(changed, stage.name, source, cluster)) for stage in stages)
        if all(peak.total <= cluster.usable_memory for peak in peaks):
            settings = {f"training.{key}": value for key, value in changes.items()}
            return FittingSettings(settings, recipe_costs(changed, source, cluster))
    return None


def _ladder(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Yield changes of ``training``, the least harmful first."""
    training = config.training
    rows = training.micro_batch_size or min(
        stage.batch_size for stage in (config.prune, config.continue_) if stage is not None
    )
    evaluation = {"eval_batch_size": min(training.eval_batch_size, rows)}
    scheme = (training.weight_format, training.optimizer_state_format)
    first = list(STATE_FORMATS).index(scheme) if scheme in STATE_FORMATS else 0
    narrower = list(STATE_FORMATS)[first + 1 :] if training.dtype == "bfloat16" else []
    kept: list[dict[str, Any]] = [{}] if training.fsdp_shard == "all" else [{}, {"fsdp_shard": "all"}]
    kept += [{**kept[-1], "weight_format": weights, "optimizer_state_format": moments} for weights, moments in narrower]
    for narrow in kept:
        for more in (
            {},
            {"activation_checkpointing": "full"},
            {"activation_checkpointing": "full", "micro_batch_size": 1},
        ):
            yield {**evaluation, **narrow, **more}


def _differing(config: RunConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that the recipe does not have already."""
    return {key: value for key, value in changes.items() if getattr(config.training, key) != value}


def _changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _phases(config: RunConfig, name: str, source: ModelShape | OtherShape, cluster: Cluster) -> tuple[PhaseMemory, ...]:
    shards = cluster.shards(config.training)
    key = (config.model_dump_json(), name, source, cluster.number, shards)
    if key not in _SIMULATED:
        _SIMULATED[key] = phases_of(config, name, source, ranks=cluster.number, shards=shards)
    return _SIMULATED[key]


_SIMULATED: dict[tuple[str, str, ModelShape | OtherShape, int, int], tuple[PhaseMemory, ...]] = {}
"""Cache of simulations: costs, formats and the search for settings share some."""


def _stage(config: RunConfig, stage: StagePlan, source: ModelShape | OtherShape, cluster: Cluster) -> StageCost:
    phases = _phases(config, stage.name, source, cluster)
    rate = cluster.number * accelerator_peak(config, cluster.accelerator)
    seconds = step_seconds(config, stage.flops, rate)
    return StageCost(
        name=stage.name,
        phases=phases,
        fits=largest_phase(phases).total <= cluster.usable_memory,
        utilisation=stage.flops.training / (rate * seconds),
        tokens_per_second=stage.tokens / seconds,
        hours=seconds / 3600,
        evaluation_hours=stage.flops.evaluation / (rate * UTILISATION) / 3600,
    )
