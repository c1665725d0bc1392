"""A first recipe for a model, a corpus and a number of parameters: commented YAML that runs unchanged.

Every number follows from a rule of this file. The rules are starting points from published runs and from this package's
measurements, not optima; each comment in the recipe names its rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from drpruning.config import RunConfig
from drpruning.config.stages import CalibrationConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.formatting import count
from drpruning.mixture.bounds import MAX_EPOCHS
from drpruning.mixture.static import static_mixture
from drpruning.planning.cost import Cluster, find_fitting_settings, recipe_costs
from drpruning.planning.model_shape import ModelShape, OtherShape
from drpruning.pruning.target import Target, parameter_count, widest_input
from drpruning.recipes import parse_recipe

TOKENS_PER_PARAMETER = 20
"""Training tokens for a parameter of the small model: the compute-optimal number from new weights (Hoffmann et al.
2022). A pruned model needs fewer for the same loss, and gains from more."""
CPU_TOKENS = 2_000_000
"""Default of the training tokens on a CPU: a trial of the whole way, not a good model."""
DEFAULT_EPOCHS = 2
"""Most passes over the corpus by default, so that the mixture has room to repeat some domains more than others."""
UPDATES = 4000
"""Optimizer steps that the batch is chosen for."""
BATCH_TOKENS = 2**12, 2**20
"""Smallest and largest batch, in tokens; the largest is Sheared LLaMA's."""
MASK_SHARE, MASK_STEPS = 0.05, (1280, 3200)
"""Largest share of the tokens that are trained under masks; the fewest steps, after which masks were level with a cut
by importance (docs/benchmarks/masks.md), and the most, Sheared LLaMA's."""
PRUNE_BATCH = 4
"""Batch of the continue stage relative to that of the prune stage (8 in Sheared LLaMA)."""
LEARNING_RATE, AT_PARAMETERS = 1e-4, 1.3e9
"""Sheared LLaMA's learning rate, and the model it is for. Others: divided by the root of the relative size, within
:data:`LEARNING_RATES`."""
LEARNING_RATES = 5e-5, 1e-3
EVALUATIONS = 60
"""Evaluations in the continue stage, and updates of the mixture; the paper has 120 in much longer runs."""
RATIO_TRAVEL, MOST_DELTA = 1.5, 0.2
"""``mixture.delta`` times the evaluations: the centre of the ball ends about 70% of the way from the tempered ratio to
the weights (docs/benchmarks/equal_compute.md). And the largest delta, where evaluations are few."""
EVALUATION_SHARE = 0.1
"""Most arithmetic of evaluations, relative to that of training steps."""
EVALUATION_ROWS = 8, 500
"""Fewest and most rows of a domain in an evaluation; the most is LLM-Shearing's."""
SEQ_LENS = {"cuda": 2048, "cpu": 512}
"""Longest row by device."""
MICRO_TOKENS = {"cuda": 2**13, "cpu": 2**11}
"""Tokens of a forward pass by device, before the memory is checked."""
RECOMPUTED_FROM = 1_000_000_000
"""Parameters of the large model from which activations are recomputed on a GPU."""
MASK_DISTILL_WEIGHT = 0.9
"""Weight of the teacher under masks; the next-token loss has the rest."""
DISTILL_WEIGHTS = 1.0, 0.5
"""Weight of the teacher in the first and the last step after the cut: docs/benchmarks/equal_compute.md."""
TEMPERATURE = 0.5
"""Power of the domains' tokens in the reference ratio: docs/planning.md has the measurements."""
RIDGE = 0.01
"""Ridge of the repair of a one-shot cut."""
CALIBRATION_PER_INPUT = 8
"""Calibration tokens for each input of the widest projection, for the repair."""
NOT_REPAIRED = {
    "exaone4", "gemma2", "gemma3_text", "glm", "glm4", "gpt_neox", "gpt_oss", "granite", "mixtral", "olmo2", "olmo3",
    "olmoe", "phi3", "qwen2_moe", "qwen3_moe",
}  # fmt: skip
"""Model types that the repair refuses: fused projections, experts, norms or factors before the residual stream."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine a recipe is for.

    Attributes:
        device: ``cuda`` or ``cpu``.
        ranks: Processes of the run.
        cluster: The GPUs, where their memory is known; None: the memory is not checked.
    """

    device: str
    ranks: int = 1
    cluster: Cluster | None = None


@dataclass(frozen=True)
class StarterRecipe:
    """A recipe that :func:`write_recipe` wrote.

    Attributes:
        text: Commented YAML.
        config: The same, read.
        fits: Whether every stage fits into the GPUs' memory; None where that was not computed.
    """

    text: str
    config: RunConfig
    fits: bool | None


def write_recipe(
    model: str,
    source: ModelShape | OtherShape,
    target: Target | None,
    corpus: Corpus,
    machine: Machine,
    *,
    name: str,
    tokens: float | None = None,
) -> StarterRecipe:
    """Return a recipe that prunes a model to a shape and trains it on a corpus, or trains it further in its shape.

    Args:
        model: Folder or hub name of the large model.
        source: Its shape.
        target: Shape to prune to; None: the model keeps its shape.
        corpus: Text in the model's token ids, with held-out text in every domain.
        machine: Device, processes and memory.
        name: Name of the recipe.
        tokens: Training tokens of all stages. Default: :data:`TOKENS_PER_PARAMETER` for each parameter of the result on
            a GPU, :data:`CPU_TOKENS` on a CPU; at most :data:`DEFAULT_EPOCHS` passes over the corpus.

    Raises:
        ConfigError: The corpus holds out less than a row of some domain, or the tokens are fewer than one batch.
    """
    parameters = _parameters(source, target)
    text_tokens = sum(corpus.tokens().values())
    usual = CPU_TOKENS if machine.device == "cpu" else TOKENS_PER_PARAMETER * parameters
    budget = tokens or min(usual, DEFAULT_EPOCHS * text_tokens)
    seq_len = _seq_len(corpus, source, machine.device)
    batch = _batch_rows(budget, seq_len, machine.ranks)
    if budget < batch * seq_len:
        raise ConfigError(
            f"{count(budget)} tokens are less than one batch of {batch} rows of {seq_len} tokens",
            "Give more tokens with --tokens.",
        )
    rate = min(max(LEARNING_RATE * math.sqrt(AT_PARAMETERS / parameters), LEARNING_RATES[0]), LEARNING_RATES[1])
    values: dict[str, Any] = {
        "name": name,
        "model": model,
        "corpus": corpus.folder,
        "seq_len": seq_len,
        "ratio": tempered_ratio(corpus.tokens()),
        "rate": f"{rate:.1e}",
        "budget": budget,
        "epochs": budget / text_tokens,
        "batch": batch,
        "machine": machine,
        "source": source,
        "target": target,
        "parameters": parameters,
    }
    values |= _stage_lengths(budget, batch, seq_len, machine.ranks, prune=target is not None)
    values |= _evaluations(values, len(corpus.domains))
    training = _training(values, machine)
    text = _render({**values, "training": training})
    config = parse_recipe(yaml.safe_load(text))
    fits: bool | None = None
    if machine.cluster is not None:
        found = _memory_settings(config, source, machine.cluster)
        fits = found is not None
        if found:
            text = _render({**values, "training": training | found})
            config = parse_recipe(yaml.safe_load(text))
    return StarterRecipe(text, config, fits)


def check_passes(tokens: float, corpus: Corpus) -> None:
    """Raise ConfigError if a recipe could not train on so many tokens within :data:`MAX_EPOCHS` passes of each domain.

    Args:
        tokens: Training tokens of the recipe.
        corpus: Its text.
    """
    text_tokens = sum(corpus.tokens().values())
    if tokens > MAX_EPOCHS * text_tokens:
        raise ConfigError(
            f"{count(tokens)} tokens are more than {MAX_EPOCHS} passes over the corpus, which has {count(text_tokens)}",
            f"Add text, or give at most --tokens {MAX_EPOCHS * text_tokens}.",
        )


def tempered_ratio(tokens: Mapping[str, int]) -> dict[str, float]:
    """Return the shares of ``temperature:0.5``, to four digits, at least 0.0001, with a sum of 1.

    >>> tempered_ratio({"web": 9_000, "code": 1_000})
    {'web': 0.75, 'code': 0.25}
    """
    shares = static_mixture(f"temperature:{TEMPERATURE}", tokens)
    parts = {domain: max(1, round(10_000 * share)) for domain, share in shares.items()}
    largest = max(parts, key=lambda domain: parts[domain])
    parts[largest] += 10_000 - sum(parts.values())
    return {domain: part / 10_000 for domain, part in parts.items()}


def _parameters(source: ModelShape | OtherShape, target: Target | None) -> int:
    if target is None and isinstance(source, OtherShape):
        return source.parameters
    return parameter_count(source, target)  # type: ignore[arg-type] # has the fields that are read


def _seq_len(corpus: Corpus, source: ModelShape | OtherShape, device: str) -> int:
    """Return the largest power of two that device, model and every domain's held-out text allow."""
    positions = source.max_position_embeddings if isinstance(source, ModelShape) else SEQ_LENS[device]
    held_out = {
        domain: corpus.tokens(corpus.held_out_source(domain, "validation"))[domain] for domain in corpus.domains
    }
    shortest = min(held_out, key=lambda domain: held_out[domain])
    length: int = 2 ** (min(SEQ_LENS[device], positions).bit_length() - 1)
    while length > 16 and held_out[shortest] < EVALUATION_ROWS[0] * length:
        length //= 2
    if held_out[shortest] < EVALUATION_ROWS[0] * length:
        raise ConfigError(
            f"domain {shortest!r} holds out {held_out[shortest]:,} tokens; expected at least "
            f"{EVALUATION_ROWS[0] * length}",
            "Prepare the corpus with more held-out text (`drpruning prepare --holdout`), or without this domain.",
        )
    return length


def _batch_rows(budget: float, seq_len: int, ranks: int) -> int:
    """Return the rows of a step: a power of two times the ranks, for about :data:`UPDATES` steps."""
    rows = min(max(budget / UPDATES, BATCH_TOKENS[0]), BATCH_TOKENS[1]) / seq_len
    doublings: int = round(math.log2(max(1.0, rows / ranks)))
    return ranks << doublings


def _stage_lengths(budget: float, batch: int, seq_len: int, ranks: int, *, prune: bool) -> dict[str, Any]:
    """Return steps and batch of the stages: masks on a share of the tokens, or a cut by importance in short runs."""
    steps = int(budget // (batch * seq_len))
    if not prune:
        return {"steps": steps}
    rows = max(ranks, batch // PRUNE_BATCH)
    masked = min(round(MASK_SHARE * budget / (rows * seq_len)), MASK_STEPS[1])
    if masked < MASK_STEPS[0]:
        return {"steps": max(1, steps - 1), "prune_steps": 1, "prune_batch": batch}
    return {"steps": steps - round(masked * rows / batch), "prune_steps": masked, "prune_batch": rows}


def _evaluations(values: Mapping[str, Any], domains: int) -> dict[str, int]:
    """Return the interval of evaluations, and the tokens of a domain in one, within the share of arithmetic."""
    every = max(1, values["steps"] // EVALUATIONS)
    number = values["steps"] // every + 1
    allowed = 3 * EVALUATION_SHARE * values["budget"] / (number * domains)  # forward only: a third of a step's work
    fewest, most = EVALUATION_ROWS
    rows = min(max(int(allowed // values["seq_len"]), fewest), most)
    return {"eval_every": every, "eval_tokens": rows * values["seq_len"]}


def _training(values: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
    """Return the section ``training``, before the memory is checked."""
    batches = [values["batch"], values.get("prune_batch", values["batch"])]
    recomputes = machine.device == "cuda" and _parameters(values["source"], None) >= RECOMPUTED_FROM
    rows = min(*batches, max(1, MICRO_TOKENS[machine.device] // values["seq_len"]) * machine.ranks) // machine.ranks
    while any(batch // machine.ranks % rows for batch in batches):
        rows -= 1
    return {
        **({"dtype": "bfloat16"} if machine.device == "cuda" else {}),
        **({"activation_checkpointing": "full"} if recomputes else {}),
        "micro_batch_size": rows,
        "eval_batch_size": rows,
        "eval_tokens": values["eval_tokens"],
        "final_eval_tokens": max(65536, values["eval_tokens"]),
        "checkpoint_every": max(10, min(500, values["steps"] // 10)),
    }


def _memory_settings(config: RunConfig, source: ModelShape | OtherShape, cluster: Cluster) -> dict[str, Any] | None:
    """Return the settings with which the recipe fits, empty if it fits unchanged; None if none of those tried fits."""
    if all(stage.fits for stage in recipe_costs(config, source, cluster)):
        return {}
    fitting = find_fitting_settings(config, source, cluster)
    if fitting is None:
        return None
    return {key.removeprefix("training."): value for key, value in fitting.settings.items()}


def _render(values: Mapping[str, Any]) -> str:
    """Return the recipe as commented YAML."""
    parts = [_head(values), _model(values), _data(values)]
    if values["target"] is not None:
        parts.append(_prune(values))
    parts += [_continue(values), _mixture(values), _section("training", values["training"], TRAINING_NOTES)]
    return "\n\n".join(parts) + "\n"


TRAINING_NOTES = {
    "micro_batch_size": "rows per forward pass of a process",
    "eval_tokens": "of each domain, in an evaluation during training",
    "final_eval_tokens": "of each domain, for the tables",
}


def _section(name: str, settings: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Return a section of plain settings, with comments."""
    lines = [_line(f"  {key}: {value}", notes.get(key)) for key, value in settings.items()]
    return "\n".join([f"{name}:", *lines])


def _line(setting: str, note: str | None) -> str:
    return f"{setting:<36} # {note}" if note else setting


def _head(values: Mapping[str, Any]) -> str:
    size = count(values["parameters"])
    what = "trained further in its shape" if values["target"] is None else f"pruned to {size} parameters"
    return "\n".join(
        [
            f"# {_yaml_scalar(values['model'])} {what}, on {count(values['budget'])} tokens"
            + (f", {values['epochs']:.1f} passes over the corpus" if values["epochs"] > 1 else ""),
            "#",
            "# Written by `drpruning init`: a first recipe, to run and to change. docs/choosing.md explains",
            "# the settings, docs/recipe.md lists all.",
            "",
            f"name: {values['name']}",
            "seed: 17",
        ]
    )


def _yaml_scalar(text: object) -> str:
    """Return a scalar that YAML reads back as this text, on one line."""
    return yaml.safe_dump(str(text), default_style=None, width=10**9, allow_unicode=True).splitlines()[0]


def _model(values: Mapping[str, Any]) -> str:
    lines = ["model:", f"  source: {_yaml_scalar(values['model'])}"]
    source = values["source"]
    if isinstance(source, ModelShape):
        sizes = {
            "family": source.model_type,
            "layers": source.num_hidden_layers,
            "hidden": source.hidden_size,
            "heads": source.num_attention_heads,
            "kv_heads": source.num_key_value_heads,
            "head_dim": source.head_dim,
            "intermediate": source.intermediate_size,
            "vocabulary": source.vocab_size,
            "positions": source.max_position_embeddings,
            "tied_embeddings": str(source.tie_word_embeddings).lower(),
        }
        lines.append(_line("  architecture:", "its shape, so that `plan` and `--miniature` need no weights"))
        lines += [f"    {key}: {value}" for key, value in sizes.items()]
    return "\n".join(lines)


def _data(values: Mapping[str, Any]) -> str:
    lines = [
        "data:",
        f"  corpus: {_yaml_scalar(values['corpus'])}",
        f"  seq_len: {values['seq_len']}",
        _line(
            "  reference_ratio:", f"the corpus's tokens to the power {TEMPERATURE}; change it to what the model is for"
        ),
    ]
    lines += [f"    {_yaml_scalar(domain)}: {share}" for domain, share in values["ratio"].items()]
    return "\n".join(lines)


def _prune(values: Mapping[str, Any]) -> str:
    steps, rows = values["prune_steps"], values["prune_batch"]
    one_shot = steps == 1
    why = (
        "a cut by importance: the run is too short for learned masks"
        if one_shot
        else f"masks are learned on {steps * rows * values['seq_len'] / values['budget']:.1%} of the tokens"
    )
    lines = [
        _line("prune:", why),
        f"  steps: {steps}",
        f"  batch_size: {rows}",
        f"  learning_rate: {values['rate']}",
        f"  eval_every: {max(1, steps // 20)}",
        _line("  gate_init: taylor", "gates start from the importance of their units"),
        _line(f"  calibration: {{rows: even{_calibration_tokens(values)}}}", "measured on as much text of each domain"),
    ]
    if not one_shot:
        lines.append(_line(f"  distill: {{weight: {MASK_DISTILL_WEIGHT}}}", "the unpruned model is the teacher"))
    elif values["source"].model_type not in NOT_REPAIRED:
        lines.append(_line(f"  repair: {RIDGE}", "folds what is cut into what stays"))
    lines.append(_line("  target:", f"{values['parameters']:,} parameters; `drpruning plan shape` has others"))
    lines += [f"    {name}: {size}" for name, size in values["target"].sizes().items()]
    return "\n".join(lines)


def _calibration_tokens(values: Mapping[str, Any]) -> str:
    """Return the setting of the calibration tokens where the default is too little text for the repair."""
    needed = CALIBRATION_PER_INPUT * widest_input(values["source"], values["target"])
    default = CalibrationConfig.model_fields["tokens"].default
    return f", tokens: {needed}" if values["prune_steps"] == 1 and needed > default else ""


def _continue(values: Mapping[str, Any]) -> str:
    tokens = values["steps"] * values["batch"] * values["seq_len"]
    lines = [
        _line(
            "continue:", f"{values['steps']:,} steps of {values['batch'] * values['seq_len']:,} tokens: {count(tokens)}"
        ),
        f"  steps: {values['steps']}",
        f"  batch_size: {values['batch']}",
        _line(f"  learning_rate: {values['rate']}", "Sheared LLaMA's 1e-4 for 1.3B, times the root of 1.3B / size"),
        "  warmup_fraction: 0.03",
        _line(f"  eval_every: {values['eval_every']}", "the mixture moves after each evaluation"),
    ]
    if values["target"] is not None:
        first, last = DISTILL_WEIGHTS
        lines.append(
            _line(f"  distill: {{weight: {first}, final_weight: {last}}}", "the unpruned model is the teacher")
        )
    return "\n".join(lines)


def _mixture(values: Mapping[str, Any]) -> str:
    measured = "the model before training" if values["target"] is None else "the unpruned model"
    evaluations = values["steps"] // values["eval_every"]
    delta = min(RATIO_TRAVEL / evaluations, MOST_DELTA)
    return "\n".join(
        [
            "mixture:",
            _line("  strategy: drpruning", "static ones can be as good: drpruning compare RECIPE --methods static"),
            _line("  reference_loss: base", f"excess loss is measured against {measured}"),
            _line(
                f"  delta: {delta:.2g}",
                f"{RATIO_TRAVEL} / evaluations, at most {MOST_DELTA}: the centre of the ball leaves the ratio slowly",
            ),
            _line(f"  max_epochs: {MAX_EPOCHS}", "no domain is repeated more often in a stage"),
        ]
    )
