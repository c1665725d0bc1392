"""A recipe in miniature: the same optimisation on a model, batch and corpus so small that two cores take minutes.

Steps, learning rates, warm-ups, schedules, evaluation cadence, bounds and strategy are the recipe's. Width, depth,
batch and row length are not, nor is the text. So a mistake in the first group (a target that is missed, a run that
diverges, a model that breaks when it is cut) shows before any GPU time is spent.
"""

from __future__ import annotations

from typing import Any

from drpruning.config import Architecture, RunConfig
from drpruning.errors import ConfigError
from drpruning.recipes import parse_recipe

CONTINUE_STEPS = 480
"""Steps of the stage continue, at most, unless the caller says otherwise."""
LAYERS, HIDDEN, HEADS, INTERMEDIATE = 4, 64, 8, 96
"""Largest sizes of the source."""
BATCH, SEQ_LEN = 4, 32
"""Rows of a step, and tokens of a row."""
HELD_OUT_TOKENS = 1024
"""Of each domain: the same rows for evaluations and for the table of finished models, so that losses compare."""
PRETRAIN = {"steps": 400, "batch_size": 8, "learning_rate": 3.0e-3, "evaluate_every": 200, "seed": 17}
"""Of the base, for recipes that name a model. Its seed is fixed, so that runs of several seeds share a base."""
KEPT = ("betas", "weight_decay", "clip", "checkpoint_every", "skip_limit")
"""Settings of ``training`` that are the recipe's; the others are about large models, and have their defaults."""


def miniature(config: RunConfig, *, continue_steps: int = CONTINUE_STEPS) -> RunConfig:
    """The recipe in miniature.

    A recipe that names a model gets a base that is trained on the spot: its weights are not needed. What belongs to the
    real model or text is left out: protected units, ``mixture.max_epochs``, tasks, and strategies to compare with.
    Reference losses in nats are those of real text, so the base's own take their place.

    Args:
        config: A recipe with a section ``model.architecture`` or without a stage ``prune``.
        continue_steps: Steps of the stage ``continue``, at most. Its number of evaluations stays, up to the rounding of
            ``evaluate_every``.

    Raises:
        ConfigError: The recipe prunes and does not describe its source.

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
    source = _source(large or Architecture(layers=LAYERS, hidden=1, heads=HEADS, intermediate=1).model_dump())
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
        after["evaluate_every"] = max(1, round(after["evaluate_every"] * continue_steps / after["steps"]))
        after["steps"] = continue_steps
    if isinstance(body["mixture"]["reference_loss"], dict):
        body["mixture"]["reference_loss"] = "base"
    body["mixture"]["max_epochs"] = None
    body["evaluate"], body["compare"] = {}, []
    body["training"] = {key: body["training"][key] for key in KEPT} | {
        "device": "cpu",
        "threads": 1,
        "loss": "plain",
        "evaluation_batch_size": 64,
        "evaluation_tokens": HELD_OUT_TOKENS,
        "measurement_tokens": HELD_OUT_TOKENS,
    }
    return parse_recipe(body)


def _source(large: dict[str, Any]) -> dict[str, Any]:
    """A small source of the large one's kind: its family, its grouping of heads, whether its embeddings are tied."""
    kv_heads = min(large["kv_heads"] or large["heads"], HEADS)
    group = min(large["heads"] // (large["kv_heads"] or large["heads"]), HEADS // kv_heads)
    return {
        "family": large["family"],
        "layers": min(large["layers"], LAYERS),
        "hidden": HIDDEN,
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "intermediate": INTERMEDIATE,
        "positions": SEQ_LEN,
        "tied_embeddings": large["tied_embeddings"],
    }


def _target(wanted: dict[str, Any], large: dict[str, Any], source: dict[str, Any]) -> dict[str, int]:
    """The target of the small source that keeps the same fractions, as far as whole units allow."""

    def scaled(name: str, step: int = 1) -> int:
        share = (wanted[name] or large[name]) / large[name]
        return max(step, round(float(source[name] * share / step)) * step)

    group = source["heads"] // source["kv_heads"]
    heads = scaled("heads", group)
    return {
        "layers": scaled("layers"),
        "hidden": scaled("hidden", heads),
        "heads": heads,
        "intermediate": scaled("intermediate"),
    }
