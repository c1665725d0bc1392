"""Shapes, tokens and FLOPs of a recipe, from its numbers alone: nothing is loaded, downloaded or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drpruning.config import RunConfig
from drpruning.errors import ConfigError
from drpruning.flops import FORWARD, TRAINING, FlopCounts
from drpruning.mixture import Aioli, build
from drpruning.planning.model_shape import KNOWN, ModelShape, OtherShape, read_any_shape, read_shape
from drpruning.pruning.model_flops import (
    importance_flops_per_token,
    importance_tokens,
    products_per_token,
    repair_flops_per_token,
    repair_tokens,
)
from drpruning.pruning.target import Target, cycle_sizes, parameter_count, parameters_of
from drpruning.recipes import load_recipe, parse_recipe, shipped_recipes

STATE_BYTES = 16  # float32 weight, gradient and the two moments of AdamW, per parameter
LOGIT_BYTES = 12  # float32 logits, their log-softmax and its gradient, per token and vocabulary entry


@dataclass(frozen=True)
class StagePlan:
    """One stage of a recipe.

    ``flops`` are those that the run will record, with two exceptions. Steps under masks count all units, an upper
    bound where pruned units are skipped; those of probes are among the training steps. Evaluations count all units of
    the rows that ``training.eval_tokens`` allows, if every domain holds out as many.
    """

    name: str
    steps: int
    tokens: int
    parameters: int
    evaluations: int
    flops: FlopCounts
    state_bytes: int
    logit_bytes: int


@dataclass(frozen=True)
class CyclePlan:
    """The shape after a cycle of the prune stage, and the fraction of the block parameters left that it prunes."""

    sizes: dict[str, int]
    parameters: int
    pruned: float


@dataclass(frozen=True)
class RecipePlan:
    """A recipe's shapes and stages; ``target`` is None if nothing is pruned, ``cycles`` empty without ``cycles``."""

    source: dict[str, int]
    source_parameters: int
    target: dict[str, int] | None
    target_parameters: int | None
    stages: list[StagePlan]
    cycles: list[CyclePlan] = field(default_factory=list)

    @property
    def charged_flops(self) -> float:
        """FLOPs of all stages but pretrain, without evaluations."""
        return sum(stage.flops.charged for stage in self.stages if stage.name != "pretrain")


def plan_recipe(config: RunConfig, model: Any | None = None) -> RecipePlan:
    """Compute shapes, tokens and FLOPs of a recipe's stages.

    Args:
        config: The recipe.
        model: Configuration of the large model, of transformers or a :class:`drpruning.planning.ModelShape`; by
            default that of the recipe.

    Raises:
        ConfigError: The recipe does not describe its model, the target does not fit it, or the budget of its charged
            FLOPs is spent before the stage continue.

    Example:
        >>> from drpruning.recipes import load_recipe
        >>> planned = plan_recipe(load_recipe("llama2-7b-to-1.3b"))
        >>> planned.source_parameters, planned.target_parameters
        (6738415616, 1345423360)
        >>> [(stage.name, stage.tokens) for stage in planned.stages]
        [('prune', 419430400), ('continue', 50331648000)]
    """
    source: Any = source_shape(config) if model is None else model
    planned = _plan(config, source)
    *before, last = planned.stages
    if config.continue_.charged_flops is None:
        return planned
    spent = sum(stage.flops.charged for stage in before if stage.name != "pretrain")
    fitted = config.continue_.within_budget(spent, last.flops.charged / last.steps)
    return _plan(config.model_copy(update={"continue_": fitted}), source)


def _plan(config: RunConfig, source: Any) -> RecipePlan:
    """Return the plan of a recipe whose stages have the steps of their settings."""
    if config.prune is None:
        return _same_shape(config, source)
    target = Target(**config.prune.target.model_dump()).resolve(source)
    large, small = parameter_count(source), parameter_count(source, target)
    whole = Target.of(source)
    shapes = {"pretrain": (large, whole), "prune": (large, whole), "continue": (small, target)}
    length = config.data.seq_len
    teacher = products_per_token(source, whole.sizes(), length)
    scoring = importance_flops_per_token(source, whole.sizes(), target.sizes(), length, config.prune.gate_init)
    scoring *= config.prune.cycles if config.prune.rescore_cycles else 1
    repairing = 0.0
    if config.prune.repair is not None:
        repairing = repair_flops_per_token(source, whole.sizes(), target.sizes(), length)
    return RecipePlan(
        source=whole.sizes(),
        source_parameters=large,
        target=target.sizes(),
        target_parameters=small,
        stages=[
            _stage(
                config,
                name,
                count,
                _flops(config, name, products_per_token(source, shape.sizes(), length), teacher, scoring, repairing),
                source.vocab_size,
            )
            for name, (count, shape) in shapes.items()
            if name in config.stages
        ],
        cycles=_cycles(config.prune.cycles, source, target.sizes()),
    )


def _cycles(number: int, source: Any, target: dict[str, int]) -> list[CyclePlan]:
    """Return the shapes after each of several cycles."""
    if number == 1:
        return []
    before, cycles = Target.of(source).sizes(), []
    for sizes in cycle_sizes(before, target, number):
        blocks, left = (parameters_of(source, shape, blocks_only=True) for shape in (before, sizes))
        cycles.append(CyclePlan(sizes=sizes, parameters=parameters_of(source, sizes), pruned=1 - left / blocks))
        before = sizes
    return cycles


def _same_shape(config: RunConfig, source: ModelShape | OtherShape) -> RecipePlan:
    """Return the plan of a recipe whose stages all train the same shape."""
    if isinstance(source, OtherShape):
        sizes, count, products = source.sizes, source.parameters, source.products_per_token(config.data.seq_len)
    else:
        sizes = Target.of(source).sizes()  # type: ignore[arg-type] # has the fields that are read
        count = parameter_count(source)  # type: ignore[arg-type]
        products = products_per_token(source, sizes, config.data.seq_len)
    stages = [
        _stage(config, name, count, _flops(config, name, products, products), source.vocab_size)
        for name in config.stages
    ]
    return RecipePlan(source=sizes, source_parameters=count, target=None, target_parameters=None, stages=stages)


def find_recipe_or_model(what: str, overrides: Sequence[str] = ()) -> tuple[RunConfig | None, ModelShape | OtherShape]:
    """Return a recipe with the shape of its model, or None with the shape of a model.

    Args:
        what: A recipe's file or shipped name; else a model's folder, ``config.json`` or name.
        overrides: Settings ``a.b=c`` of the recipe.

    Raises:
        ConfigError: There is no such recipe or model, or it is not valid.
    """
    path = Path(what).expanduser()
    names = {name.casefold() for name in KNOWN}
    is_model = path.is_dir() or path.suffix == ".json" or "/" in what or what.casefold() in names
    if path.suffix in (".yaml", ".yml") or what in shipped_recipes() or not is_model:
        config = load_recipe(what, overrides)
        return config, source_shape(config)
    if overrides:
        raise ConfigError(
            f"--set {overrides[0]} changes a recipe, and {what!r} is a model",
            "Give a recipe, or a shape with --target layers=24,hidden=2048.",
        )
    return None, read_shape(what)


def source_shape(config: RunConfig) -> ModelShape | OtherShape:
    """Return the shape of a recipe's large model: from ``model.architecture``, else from the model's config.

    Raises:
        ConfigError: The model has no readable config, or the recipe prunes a model that cannot be pruned.
    """
    architecture = config.model.architecture
    if architecture is None:
        return (read_any_shape if config.prune is None else read_shape)(config.model.source)
    from drpruning.prepare.demo import VOCAB_SIZE  # noqa: PLC0415 - few recipes need it

    return ModelShape.from_architecture(architecture, VOCAB_SIZE)


def with_target(config: RunConfig, sizes: Mapping[str, int]) -> RunConfig:
    """Return the recipe with another target; missing sizes are those of the source.

    Raises:
        ConfigError: The recipe prunes nothing, or the target is not valid.
    """
    body, prune = config.to_dict(), config.pruning.model_dump(mode="json")
    return parse_recipe({**body, "prune": {**prune, "target": dict(sizes)}})


def _flops(
    config: RunConfig, name: str, products: float, teacher: float, scoring: float = 0.0, repairing: float = 0.0
) -> FlopCounts:
    """Return the FLOPs of a stage.

    Args:
        config: The recipe.
        name: Name of the stage.
        products: Products of a token in the stage's model, as of ``products_per_token``.
        teacher: The same in the large model.
        scoring: FLOPs of a token that scores the units.
        repairing: FLOPs of a token of the repair.
    """
    length, tokens = config.data.seq_len, config.tokens(name)
    settings = getattr(config.stage(name), "distill", None)
    distils = settings is not None and settings.runs_teacher and config.model.source != "scratch"
    evaluated = _evaluations(config, name) * len(config.domains) * (config.training.eval_tokens // length * length)
    return FlopCounts(
        training=tokens * TRAINING * products,
        teacher=tokens * FORWARD * teacher if distils else 0.0,
        importance=importance_tokens(config) * scoring if name == "prune" else 0.0,
        repair=repair_tokens(config) * repairing if name == "prune" else 0.0,
        evaluation=evaluated * FORWARD * products,
    )


def _stage(config: RunConfig, name: str, parameters: int, flops: FlopCounts, vocabulary: int) -> StagePlan:
    """Return a stage."""
    settings = config.stage(name)
    rows, length = config.training.micro_batch_size or settings.batch_size, config.data.seq_len
    return StagePlan(
        name=name,
        steps=settings.steps,
        tokens=config.tokens(name),
        parameters=parameters,
        evaluations=_evaluations(config, name),
        flops=flops,
        state_bytes=parameters * STATE_BYTES,
        logit_bytes=rows * length * vocabulary * LOGIT_BYTES,
    )


def _evaluations(config: RunConfig, name: str) -> int:
    """Return the number of evaluations of a stage, with those at the end of probes."""
    settings = config.stage(name)
    return 1 + -(-settings.steps // settings.eval_every) + _max_probes(config, name)


def _max_probes(config: RunConfig, stage: str) -> int:
    """Return the largest number of probes that the strategy trains in a stage."""
    if config.mixture.strategy != Aioli.name or stage not in config.mixture.stages:
        return 0
    strategy = build(Aioli.name, config.mixture.settings())
    assert isinstance(strategy, Aioli)
    return strategy.max_probes(len(config.domains), config.stage(stage).steps)
