"""What a recipe will make and cost, from its numbers alone: nothing is loaded, downloaded or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from drpruning.config import RunConfig
from drpruning.errors import ConfigError
from drpruning.prepare.demo import VOCAB_SIZE
from drpruning.pruning import Target, parameter_count
from drpruning.train.source import describe

STATE_BYTES = 16  # float32 weight, gradient and the two moments of AdamW, per parameter
LOGIT_BYTES = 12  # float32 logits, their log-softmax and its gradient, per token and vocabulary entry


@dataclass(frozen=True)
class StagePlan:
    """One stage in numbers.

    ``flops`` counts 6 per parameter and token, plus causal attention; masks cost nothing in this count.
    """

    name: str
    steps: int
    tokens: int
    parameters: int
    evaluations: int
    flops: float
    state_bytes: int
    logit_bytes: int


@dataclass(frozen=True)
class Plan:
    """A recipe in numbers."""

    source: dict[str, int]
    source_parameters: int
    target: dict[str, int]
    target_parameters: int
    stages: list[StagePlan]


def plan(config: RunConfig, source: Any | None = None) -> Plan:
    """Plans a recipe.

    Args:
        config: The recipe.
        source: Configuration of the large model; missing: the recipe's ``model.architecture``.

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
    if source is None:
        if config.model.architecture is None:
            raise ConfigError(
                "the recipe has no model.architecture to plan with",
                "Add the shape of the model to the recipe, or give a model.source that is on this machine.",
            )
        source = describe(config.model.architecture, config.model.architecture.vocabulary or VOCAB_SIZE)
    target = Target(**config.prune.target.model_dump()).resolve(source)
    large, small = parameter_count(source), parameter_count(source, target)
    whole = Target.of(source)
    names = [("prune", large, whole), ("continue", small, target)]
    if config.model.source == "pretrain":
        names.insert(0, ("pretrain", large, whole))
    return Plan(
        source=whole.sizes(),
        source_parameters=large,
        target=target.sizes(),
        target_parameters=small,
        stages=[_stage(config, name, count, shape, source) for name, count, shape in names],
    )


def _stage(config: RunConfig, name: str, parameters: int, shape: Target, source: Any) -> StagePlan:
    settings = config.stage(name)
    length = config.data.seq_len
    tokens = settings.steps * settings.batch_size * length
    sizes = shape.sizes()
    # causal attention: 2 products, forward and twice backward, half of the square
    attention = 6 * sizes["layers"] * sizes["heads"] * source.head_dim * length
    rows = config.training.micro_batch_size or settings.batch_size
    return StagePlan(
        name=name,
        steps=settings.steps,
        tokens=tokens,
        parameters=parameters,
        evaluations=1 + -(-settings.steps // settings.evaluate_every),
        flops=tokens * float(6 * parameters + attention),
        state_bytes=parameters * STATE_BYTES,
        logit_bytes=rows * length * source.vocab_size * LOGIT_BYTES,
    )
