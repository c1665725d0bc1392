"""What a recipe will make and cost, from its numbers alone: nothing is loaded, downloaded or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drpruning.config import RunConfig
from drpruning.errors import ConfigError
from drpruning.flops import flops_per_token
from drpruning.planning.model_shape import KNOWN, ModelShape, OtherShape, read_any_shape, read_shape
from drpruning.pruning.target import Target, parameter_count
from drpruning.recipes import load_recipe, parse_recipe, shipped_recipes

STATE_BYTES = 16  # float32 weight, gradient and the two moments of AdamW, per parameter
LOGIT_BYTES = 12  # float32 logits, their log-softmax and its gradient, per token and vocabulary entry


@dataclass(frozen=True)
class StagePlan:
    """One stage in numbers.

    ``flops`` is of training steps, counted by :func:`drpruning.flops.flops_per_token`: causal attention, masks
    and recomputation free. ``evaluation_flops`` is of the forward passes of the stage's evaluations, where every domain
    holds out the tokens that ``training.eval_tokens`` allows.
    """

    name: str
    steps: int
    tokens: int
    parameters: int
    evaluations: int
    flops: float
    evaluation_flops: float
    state_bytes: int
    logit_bytes: int


@dataclass(frozen=True)
class Plan:
    """A recipe in numbers; ``target`` is None where nothing is pruned."""

    source: dict[str, int]
    source_parameters: int
    target: dict[str, int] | None
    target_parameters: int | None
    stages: list[StagePlan]


def plan(config: RunConfig, model: Any | None = None) -> Plan:
    """Plans a recipe.

    Args:
        config: The recipe.
        model: Configuration of the large model, of transformers or a :class:`drpruning.planning.ModelShape`; missing:
            what the recipe says of it.

    Raises:
        ConfigError: The recipe does not describe its model, or the target does not fit it.

    Example:
        >>> from drpruning.recipes import load_recipe
        >>> planned = plan(load_recipe("llama2-7b-to-1.3b"))
        >>> planned.source_parameters, planned.target_parameters
        (6738415616, 1345423360)
        >>> [(stage.name, stage.tokens) for stage in planned.stages]
        [('prune', 419430400), ('continue', 50331648000)]
    """
    source: Any = source_of(config) if model is None else model
    if config.prune is None:
        return _same_shape(config, source)
    target = Target(**config.prune.target.model_dump()).resolve(source)
    large, small = parameter_count(source), parameter_count(source, target)
    whole = Target.of(source)
    names = [("prune", large, whole), ("continue", small, target)]
    if config.model.source == "pretrain":
        names.insert(0, ("pretrain", large, whole))
    elif config.model.source == "scratch":
        del names[0]
    length = config.data.seq_len
    return Plan(
        source=whole.sizes(),
        source_parameters=large,
        target=target.sizes(),
        target_parameters=small,
        stages=[
            _stage(config, name, count, flops_per_token(source, shape.sizes(), length), source.vocab_size)
            for name, count, shape in names
        ],
    )


def _same_shape(config: RunConfig, source: ModelShape | OtherShape) -> Plan:
    """The plan of a recipe whose stages all train the same shape."""
    if isinstance(source, OtherShape):
        sizes, count, flops = source.sizes, source.parameters, source.flops_per_token(config.data.seq_len)
    else:
        sizes = Target.of(source).sizes()  # type: ignore[arg-type] # has what is read
        count = parameter_count(source)  # type: ignore[arg-type]
        flops = flops_per_token(source, sizes, config.data.seq_len)
    stages = [_stage(config, name, count, flops, source.vocab_size) for name in config.stages]
    return Plan(source=sizes, source_parameters=count, target=None, target_parameters=None, stages=stages)


def find(what: str, overrides: Sequence[str] = ()) -> tuple[RunConfig | None, ModelShape | OtherShape]:
    """A recipe with the shape of its model, or a model alone.

    Args:
        what: A recipe's file or shipped name; else a model's folder, ``config.json`` or name.
        overrides: Settings ``a.b=c`` of the recipe.

    Raises:
        ConfigError: There is no such recipe or model, or it is wrong.
    """
    path = Path(what).expanduser()
    names = {name.casefold() for name in KNOWN}
    is_model = path.is_dir() or path.suffix == ".json" or "/" in what or what.casefold() in names
    if path.suffix in (".yaml", ".yml") or what in shipped_recipes() or not is_model:
        config = load_recipe(what, overrides)
        return config, source_of(config)
    if overrides:
        raise ConfigError(
            f"--set {overrides[0]} changes a recipe, and {what!r} is a model",
            "Give a recipe, or a shape with --target layers=24,hidden=2048.",
        )
    return None, read_shape(what)


def source_of(config: RunConfig) -> ModelShape | OtherShape:
    """The shape of a recipe's large model: as the recipe describes it, else as the model itself says.

    Raises:
        ConfigError: Neither can be had, or the recipe prunes a model that cannot be pruned.
    """
    architecture = config.model.architecture
    if architecture is None:
        return (read_any_shape if config.prune is None else read_shape)(config.model.source)
    from drpruning.prepare.demo.corpus import VOCAB_SIZE  # noqa: PLC0415 - takes a while to load, and few recipes need it

    return ModelShape.from_architecture(architecture, VOCAB_SIZE)


def with_target(config: RunConfig, sizes: Mapping[str, int]) -> RunConfig:
    """The recipe with another target; sizes left out are kept from the source.

    Raises:
        ConfigError: The recipe prunes nothing, or the target is wrong.
    """
    body, prune = config.to_dict(), config.pruning.model_dump(mode="json")
    return parse_recipe({**body, "prune": {**prune, "target": dict(sizes)}})


def _stage(config: RunConfig, name: str, parameters: int, flops: float, vocabulary: int) -> StagePlan:
    """A stage from the operations of a token."""
    settings = config.stage(name)
    length = config.data.seq_len
    tokens = settings.steps * settings.batch_size * length
    rows = config.training.micro_batch_size or settings.batch_size
    evaluations = 1 + -(-settings.steps // settings.eval_every)
    evaluated = evaluations * len(config.domains) * (config.training.eval_tokens // length * length)
    return StagePlan(
        name=name,
        steps=settings.steps,
        tokens=tokens,
        parameters=parameters,
        evaluations=evaluations,
        flops=tokens * flops,
        evaluation_flops=evaluated * flops / 3,  # forward only: a third of a training step
        state_bytes=parameters * STATE_BYTES,
        logit_bytes=rows * length * vocabulary * LOGIT_BYTES,
    )
