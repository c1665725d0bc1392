"""What a recipe costs on given GPUs: memory of a rank, whether it fits, speed, hours, money; and what to change if not.

Memory is played (:mod:`drpruning.planning.memory`). Speed is an assumption (:mod:`drpruning.planning.speed`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from drpruning.config import RunConfig, TrainingConfig
from drpruning.errors import ConfigError
from drpruning.planning.cards import Card, card_of
from drpruning.planning.memory import Memory, largest, phases_of
from drpruning.planning.model_shape import ModelShape, OtherShape
from drpruning.planning.recipe import Plan, StagePlan, plan
from drpruning.planning.speed import UTILISATION, peak, utilisation

RESERVE = 3 * 2**30
"""Bytes of a card left free: the CUDA context, kernels' work space, what the allocator cannot use. So 76 of 79 GiB."""
MACHINE = 8
"""GPUs of one machine, where nothing else is said: of HGX and DGX systems."""
SCHEMES = {
    ("float32", "float32"): 16,
    ("bfloat16+low16", "float32"): 14,
    ("bfloat16+low16", "bfloat16"): 10,
    ("bfloat16+low16", "int8"): 8,
    ("bfloat16", "int8"): 6,
}
"""``training.weight_format`` and ``training.optimizer_state_format``, from the most exact to the smallest: bytes of
a parameter with its gradient and moments. Where these alone are too many, nothing needs to be played."""


@dataclass(frozen=True)
class Cluster:
    """So many of a card.

    Attributes:
        number: GPUs; each is a rank.
        card: What they are.
        machine: So many are in one machine.
    """

    number: int
    card: Card
    machine: int

    @property
    def room(self) -> int:
        """Bytes that a rank may use."""
        return int(self.card.memory) - RESERVE

    def shards(self, training: TrainingConfig) -> int:
        """How many ranks share one copy of the weights (``training.fsdp_shard``)."""
        if training.fsdp_shard == "all":
            return self.number
        return self.machine if training.fsdp_shard == "node" else training.fsdp_shard


def cluster_of(text: str) -> Cluster:
    """GPUs as people say them: 8xH100, or 4x8xH100 for four machines of eight. Else eight at most are in a machine.

    Raises:
        ConfigError: It is not of that form, or there is no such card in the table.

    Example:
        >>> cluster_of("8xH100").number, cluster_of("L40S").card.name
        (8, 'L40S')
        >>> cluster_of("4x8xH100").number, cluster_of("16xH100").machine
        (32, 8)
    """
    match = re.fullmatch(r"\s*(?:([0-9]+)\s*[xX*]\s*)?(?:([0-9]+)\s*[xX*]\s*)?(\S.*?)\s*", text)
    number = int(match[1] or 1) * int(match[2] or 1) if match else 0
    if match is None or not 1 <= number <= 2**16:
        raise ConfigError(f"--gpus {text!r} is not a number of cards", "For example --gpus 8xH100, or 4x8xH100.")
    return Cluster(number, card_of(match[3]), int(match[2]) if match[2] else min(number, MACHINE))


@dataclass(frozen=True)
class StageCost:
    """One stage on a cluster.

    Attributes:
        name: Of the stage.
        phases: Memory of a rank at the peak of each phase, in the order of a run.
        fits: Whether that is within the room of a card.
        utilisation: Share of the peak that is assumed.
        tokens_per_second: Of all GPUs together.
        hours: Of training steps.
        evaluation_hours: Of evaluations.
    """

    name: str
    phases: tuple[Memory, ...]
    fits: bool
    utilisation: float
    tokens_per_second: float
    hours: float
    evaluation_hours: float

    @property
    def memory(self) -> Memory:
        """Of a rank, in the phase that takes most."""
        return largest(self.phases)

    @property
    def total_hours(self) -> float:
        """Training steps and evaluations."""
        return self.hours + self.evaluation_hours


@dataclass(frozen=True)
class Change:
    """Settings under which every stage fits.

    Attributes:
        settings: As for ``--set``; only what differs from the recipe.
        stages: What the stages then cost.
    """

    settings: dict[str, Any]
    stages: tuple[StageCost, ...]


def costs(config: RunConfig, source: ModelShape | OtherShape, cluster: Cluster) -> tuple[StageCost, ...]:
    """What every stage of a recipe costs on a cluster.

    Args:
        config: The recipe.
        source: Shape of the large model.
        cluster: Where it runs.

    Raises:
        ConfigError: The target does not fit the source, or a batch or the shards do not divide.
    """
    planned: Plan = plan(config, source)
    for stage in planned.stages:
        batch = config.stage(stage.name).batch_size
        if batch % cluster.number:
            raise ConfigError(
                f"{stage.name}.batch_size {batch} is not a multiple of the {cluster.number} GPUs",
                "Take another number of GPUs, or change the batch.",
            )
    if cluster.number % cluster.shards(config.training):
        raise ConfigError(
            f"training.fsdp_shard {config.training.fsdp_shard} does not divide the {cluster.number} GPUs",
            "Each copy of the weights is held by as many of them.",
        )
    return tuple(_stage(config, stage, source, cluster) for stage in planned.stages)


def schemes(
    config: RunConfig, name: str, source: ModelShape | OtherShape, cluster: Cluster
) -> list[tuple[str, str, Memory]]:
    """Memory of one stage for each of :data:`SCHEMES`, all else as in the recipe: weights, moments, memory."""
    return [
        (weights, moments, largest(_phases(_changed(config, scheme), name, source, cluster)))
        for weights, moments in SCHEMES
        for scheme in ({"weight_format": weights, "optimizer_state_format": moments},)
    ]


def what_fits(config: RunConfig, source: ModelShape | OtherShape, cluster: Cluster) -> Change | None:
    """The first change, of those that harm least, under which every stage fits; None if none of them is enough.

    In this order: fewer rows in an evaluation, computing activations again, one row in a micro-batch; then the same
    with one copy of the weights for all GPUs, and with narrower weights and moments.
    """
    stages = sorted(plan(config, source).stages, key=lambda stage: -stage.parameters)  # the likeliest not to fit first
    for changes in filter(None, (_differing(config, changes) for changes in _ladder(config))):
        changed = _changed(config, changes)
        scheme = (changed.training.weight_format, changed.training.optimizer_state_format)
        if stages[0].parameters * SCHEMES.get(scheme, 0) > cluster.room * cluster.shards(changed.training):
            continue
        if all(largest(_phases(changed, stage.name, source, cluster)).total <= cluster.room for stage in stages):
            return Change({f"training.{key}": value for key, value in changes.items()}, costs(changed, source, cluster))
    return None


def _ladder(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Changes of ``training``, from the one that harms least."""
    training = config.training
    rows = training.micro_batch_size or min(
        stage.batch_size for stage in (config.prune, config.continue_) if stage is not None
    )
    evaluation = {"eval_batch_size": min(training.eval_batch_size, rows)}
    scheme = (training.weight_format, training.optimizer_state_format)
    first = list(SCHEMES).index(scheme) if scheme in SCHEMES else 0
    narrower = list(SCHEMES)[first + 1 :] if training.dtype == "bfloat16" else []
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
    """Those of the changes that the recipe does not have already."""
    return {key: value for key, value in changes.items() if getattr(config.training, key) != value}


def _changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def _phases(config: RunConfig, name: str, source: ModelShape | OtherShape, cluster: Cluster) -> tuple[Memory, ...]:
    shards = cluster.shards(config.training)
    key = (config.model_dump_json(), name, source, cluster.number, shards)
    if key not in _PLAYED:
        _PLAYED[key] = phases_of(config, name, source, ranks=cluster.number, shards=shards)
    return _PLAYED[key]


_PLAYED: dict[tuple[str, str, ModelShape | OtherShape, int, int], tuple[Memory, ...]] = {}
"""What was played before: the search for settings, the schemes and the costs ask for some of the same."""


def _stage(config: RunConfig, stage: StagePlan, source: ModelShape | OtherShape, cluster: Cluster) -> StageCost:
    phases = _phases(config, stage.name, source, cluster)
    share, rate = utilisation(config, stage.name), cluster.number * peak(config, cluster.card)
    seconds = stage.flops / (rate * share)
    return StageCost(
        name=stage.name,
        phases=phases,
        fits=largest(phases).total <= cluster.room,
        utilisation=share,
        tokens_per_second=stage.tokens / seconds,
        hours=seconds / 3600,
        evaluation_hours=stage.evaluation_flops / (rate * UTILISATION) / 3600,
    )
