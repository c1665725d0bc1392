"""Scale a recipe down: the same optimisation on a model, batch and corpus that two cores train in minutes.

Steps, learning rates, warm-ups, schedules, intervals of evaluations, bounds and strategy are those of the recipe.
Width, depth, batch, row length and text are not. So a mistake in the first group (a target that is missed, a run that
diverges, a broken model after extraction) is found before any GPU time is spent.
"""

from __future__ import annotations

import math
from typing import Any

from drpruning.config import ArchitectureConfig, RunConfig
from drpruning.errors import ConfigError
from drpruning.recipes import parse_recipe

CONTINUE_STEPS = 480
"""Default of the maximum number of steps of the stage continue."""
LAYERS, HIDDEN, HEADS, INTERMEDIATE = 4, 64, 8, 96
"""Maximum sizes of the large model."""
BATCH, SEQ_LEN = 4, 32
"""Rows of a step, and tokens of a row."""
HELD_OUT_TOKENS = 1024
"""Tokens per domain of an evaluation, and of the measurement of a finished model."""
PRETRAIN = {"steps": 400, "batch_size": 8, "learning_rate": 3.0e-3, "eval_every": 200, "seed": 17}
"""Stage pretrain for recipes that name a model. The seed is fixed, so that runs of several seeds share a base."""
KEPT = ("betas", "weight_decay", "max_grad_norm", "checkpoint_every", "max_skipped_steps")
"""Settings of ``training`` that are kept; the others are for large models, and get their defaults."""


def miniature(config: RunConfig, *, continue_steps: int = CONTINUE_STEPS) -> RunConfig:
    """Return the recipe in miniature.

    A recipe that names a model gets a base that is trained in the run, so its weights are not needed. Settings of the
    real model or text are removed: protected units, ``mixture.max_epochs``, tasks, and ``also_run``. Reference losses
    in nats belong to real text; those of the base replace them.

    Args:
        config: A recipe with a section ``model.architecture`` or without a stage ``prune``.
        continue_steps: Maximum steps of the stage ``continue``. Its number of evaluations stays, up to the rounding of
            ``eval_every``.

    Raises:
        ConfigError: The recipe prunes and has no ``model.architecture``.

    Example:
        >>> from drpruning.recipes import load_recipe
        >>> small = miniature(load_recipe("llama2-7b-to-1.3b"))
        >>> small.pruning.steps, small.pruning.target.layers, small.pruning.target.hidden
        (3200, 3, 32)
    """
    body, large = config.to_dict(), config.to_dict()["model"]["architecture"]
    if large is None and config.prune is not None:
        raise ConfigError(
            f"the recipe {config.name!r} has no model.architecture; a miniature scales its sizes down",
            "Add layers, hidden, heads, kv_heads and intermediate of its source (`drpruning plan shape MODEL`).",
        )
    source = _source(large or ArchitectureConfig(layers=LAYERS, hidden=1, heads=HEADS, intermediate=1).model_dump())
    body["name"] = f"{config.name}-miniature"
    if config.model.source not in ("pretrain", "scratch"):
        body["model"]["source"] = "pretrain"
        body["pretrain"] = PRETRAIN
    body["model"]["architecture"] = source
    body["data"] |= {"corpus": "synthetic", "seq_len": SEQ_LEN}
    if config.prune is not None:
        body["prune"]["target"] = _target(body["prune"]["target"], large, source)
        body["prune"]["protect"] = {}
    for name in ("pretrain", "prune", "continue"):
        if body[name] is not None:
            body[name]["batch_size"] = min(body[name]["batch_size"], BATCH)
    after = body["continue"]
    if after["steps"] > continue_steps:
        after["eval_every"] = max(1, round(after["eval_every"] * continue_steps / after["steps"]))
        after["steps"] = continue_steps
    if isinstance(body["mixture"]["reference_loss"], dict):
        body["mixture"]["reference_loss"] = "base"
    body["mixture"]["max_epochs"] = None
    body["task_eval"], body["also_run"] = {}, []
    body["training"] = {key: body["training"][key] for key in KEPT} | {
        "device": "cpu",
        "threads": 1,
        "cross_entropy": "plain",
        "eval_batch_size": 64,
        "eval_tokens": HELD_OUT_TOKENS,
        "final_eval_tokens": HELD_OUT_TOKENS,
    }
    return parse_recipe(body)


def _source(large: dict[str, Any]) -> dict[str, Any]:
    """Return the small source: family, grouping of heads and tying of embeddings are those of the large one."""
    kv_heads = min(large["kv_heads"] or large["heads"], HEADS)
    group = min(large["heads"] // (large["kv_heads"] or large["heads"]), HEADS // kv_heads)
    heads = kv_heads * group
    return {
        "family": large["family"],
        "layers": min(large["layers"], LAYERS),
        "hidden": HIDDEN // (2 * heads) * 2 * heads,  # rotary embeddings need heads of an even width
        "heads": heads,
        "kv_heads": kv_heads,
        "intermediate": INTERMEDIATE,
        "positions": SEQ_LEN,
        "tied_embeddings": large["tied_embeddings"],
    }


def _target(sizes: dict[str, Any], large: dict[str, Any], source: dict[str, Any]) -> dict[str, int]:
    """Return the target of the small source with the same fractions, rounded to whole units, halves downwards."""

    def scaled(name: str, step: int = 1) -> int:
        share = (sizes[name] or large[name]) / large[name]
        return max(step, math.ceil(float(source[name] * share / step) - 0.5) * step)

    group = source["heads"] // source["kv_heads"]
    heads = scaled("heads", group)
    return {
        "layers": scaled("layers"),
        "hidden": scaled("hidden", heads),
        "heads": heads,
        "intermediate": scaled("intermediate"),
    }
