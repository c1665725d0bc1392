"""Preflight: all checks of a recipe against corpus, model and machine, before any time is spent."""

from __future__ import annotations

import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from drpruning.config import DataConfig, RunConfig, TaskEvalConfig, TrainingConfig
from drpruning.corpus import Corpus
from drpruning.corpus.manifest import SPLITS
from drpruning.errors import ConfigError, DiskError, MissingExtraError, install_command
from drpruning.evaluation.tasks import find_tasks
from drpruning.export.repair import check_calibration, check_repairable
from drpruning.formatting import size_in_words
from drpruning.hf.models import text_config
from drpruning.hf.tokenizers import corpus_tokenizer
from drpruning.mixture import Aioli, Observation, build
from drpruning.prepare.recipe_corpus import check_domains
from drpruning.pruning import Target, parameter_count
from drpruning.pruning.architectures import experts_per_token
from drpruning.pruning.target import Protected
from drpruning.run_folder import RunFolder
from drpruning.train.base_model import check_tokenizer, source_config
from drpruning.train.deterministic import check_deterministic
from drpruning.train.device import choose_device
from drpruning.train.distributed.fsdp import num_shards
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.flex_attention import unsupported_reason
from drpruning.train.fused_cross_entropy import select_cross_entropy
from drpruning.train.model_runtime import PACKAGES
from drpruning.train.model_structure import check_model, num_parameters
from drpruning.train.optimizers.quantized_moments import BLOCK
from drpruning.train.stored_teacher import check_stored_teachers
from drpruning.train.task_eval import TaskEval
from drpruning.train.threads import choose_threads

WEIGHT_BYTES = {"float32": 4, "bfloat16+low16": 4, "bfloat16": 2}
MOMENT_BYTES = {"float32": 8, "bfloat16": 4, "int8": 2 * (1 + 4 / BLOCK)}  # both of AdamW; with int8 also the scales
EXPORT_BYTES = 4  # float32
CGROUP = Path("/sys/fs/cgroup")  # version 2


@dataclass(frozen=True)
class PreflightResult:
    """A recipe that can run, with the objects found on the way.

    Attributes:
        config: The recipe.
        corpus: Its corpus.
        base_config: transformers configuration of the large model.
        tokenizer: The corpus's; None where the corpus does not hold it.
        task_eval: Tasks to score models on, if the recipe has any.
    """

    config: RunConfig
    corpus: Corpus
    base_config: Any
    tokenizer: Any
    task_eval: TaskEval | None


def check(config: RunConfig, corpus: Corpus, folder: RunFolder, ranks: Ranks) -> PreflightResult:
    """Check a recipe on all ranks; nothing is written.

    Args:
        config: The recipe.
        corpus: The recipe's, see :func:`drpruning.prepare.recipe_corpus.open_corpus`.
        folder: The run folder; it need not exist.
        ranks: The processes of the run.

    Raises:
        ConfigError: The recipe cannot work with this corpus, model, machine or number of processes.
        MissingExtraError: A package is missing.
        DiskError: The run folder cannot be written, or the disk is too small.
    """
    base_config = ranks.agree(lambda: check_recipe(config, corpus))
    ranks.agree(lambda: check_ranks(config, ranks))
    ranks.agree(lambda: check_experts(config, base_config))
    tokenizer = corpus_tokenizer(corpus)
    task_eval = find_task_eval(config.task_eval, tokenizer, ranks)
    ranks.agree(lambda: check_disk(folder.path, config, base_config))
    ranks.agree(lambda: check_memory(config, base_config, ranks))
    return PreflightResult(config, corpus, base_config, tokenizer, task_eval)


# ---- the recipe with corpus and model


def check_recipe(config: RunConfig, corpus: Corpus) -> Any:
    """Check domains, held-out text, tokenizer, strategies, stored teachers, and the target shape or the model.

    Returns:
        The transformers configuration of the large model.

    Raises:
        ConfigError: A setting does not fit the corpus or the model.
    """
    check_domains(config, corpus)
    for domain in config.domains:
        for split in SPLITS[1:]:
            corpus.held_out_rows(domain, config.data.seq_len, config.data.seq_len, split)  # raises if there is no row
    base_config = source_config(config.model, corpus)
    check_tokenizer(config.model, corpus)
    device = choose_device(config.training.device).type
    check_runtime(config.training, config.data, corpus.end_token, base_config, device)
    check_logger(config.training.logger)
    positions = getattr(text_config(base_config), "max_position_embeddings", None)
    if positions is not None and config.data.seq_len > positions:
        raise ConfigError(f"data.seq_len {config.data.seq_len} is longer than the model's {positions} positions")
    if config.prune is None:
        distill = config.continue_.distill
        check_model(base_config, config.training, config.data, hidden=distill is not None and distill.hidden_weight > 0)
    else:
        target = Target(**config.prune.target.model_dump()).resolve(base_config)
        Protected(**config.prune.protect.model_dump()).masks(Target.of(base_config), target)
        check_model(base_config, config.training, config.data)
        if config.prune.repair is not None:
            check_repairable(base_config)
            check_calibration(config.prune.calibration.tokens, base_config, target)
    for name in dict.fromkeys((config.mixture.strategy, *config.also_run)):
        check_strategy(config.with_strategy(name), corpus)
    check_stored_teachers(config, corpus)
    return base_config


def check_strategy(config: RunConfig, corpus: Corpus) -> None:
    """Check that the strategy can start, and that its bounds permit a mixture in each stage with this much text.

    Raises:
        ConfigError: They do not, a schedule cannot be read, or a stage ends before the first probes of the strategy.
        WeightError: A schedule's weights do not fit the domains.
    """
    strategy = build(config.mixture.strategy, config.mixture.settings(), stages=config.mixture.stages)
    strategy.init(config.domains, config.reference_ratio)
    seq_len = config.data.seq_len
    sizes = {domain: rows * seq_len for domain, rows in corpus.num_rows(seq_len).items()}
    for stage in filter(None, (config.prune, config.continue_)):
        start = Observation(
            step=0,
            tokens=0,
            params=1.0,
            losses={},
            final_tokens=stage.steps * stage.batch_size * seq_len,
            domain_tokens=sizes,
            consumed=dict.fromkeys(sizes, 0),
        )
        strategy.bounds.limits(config.domains, start)
    if isinstance(strategy, Aioli):
        needed = strategy.round_steps(len(config.domains))
        for name in config.mixture.stages:
            if name == "prune" and config.prune is not None and config.prune.one_shot:
                continue  # its one step keeps the mixture
            if name in config.stages and config.stage(name).steps <= needed:
                raise ConfigError(
                    f"{name}.steps is {config.stage(name).steps}; a round of probes of aioli takes {needed} steps, "
                    "expected more steps than that",
                    "Lower mixture.probe_steps or mixture.sweeps, or raise the steps of the stage.",
                )


def check_runtime(
    training: TrainingConfig, data: DataConfig, end_token: int | None, config: Any = None, device: str = "cpu"
) -> None:
    """Check that :func:`drpruning.train.model_runtime.prepare` supports the settings, without a model.

    Args:
        training: The recipe's section.
        data: The recipe's section.
        end_token: Id at the end of a document.
        config: transformers configuration of the model; None: its attention is not checked.
        device: Type of the training device.

    Raises:
        ConfigError: The corpus has no end token for ``data.document_mask``, this torch lacks a function, the attention
            function does not support model, device or dtype, or cuBLAS's workspace is not deterministic.
        MissingExtraError: A package is missing.
    """
    check_deterministic(training.deterministic)
    if data.document_mask and end_token is None:
        raise ConfigError(
            "data.document_mask needs the ends of documents; the corpus has no end token",
            "Prepare the corpus with a tokenizer that has one.",
        )
    if training.cross_entropy not in ("auto", "plain"):
        select_cross_entropy(training.cross_entropy)
    package = PACKAGES.get(training.attention)
    if package is not None and find_spec(package) is None:
        raise MissingExtraError(
            f"`training.attention: {training.attention}` needs the package {package}",
            "Install FlashAttention for your GPU, or use --set training.attention=sdpa.",
        )
    if config is None:
        return
    reason = None
    if training.attention == "flex_attention":
        reason = unsupported_reason(config, device=device, dtype=training.dtype, seq_len=data.seq_len)
    elif package is not None and (device != "cuda" or training.dtype != "bfloat16"):
        reason = f"needs a GPU and training.dtype bfloat16, got {device} and {training.dtype}"
    if reason is not None:
        raise ConfigError(f"training.attention {training.attention} {reason}", "Use --set training.attention=sdpa.")


def check_logger(kind: str) -> None:
    """Raise MissingExtraError if the package of ``training.logger`` is not installed."""
    if kind != "none" and find_spec(kind) is None:
        raise MissingExtraError(
            f"`training.logger: {kind}` needs {kind}, which is not installed",
            f"{install_command(kind)}, or use --set training.logger=none; metrics.jsonl has everything.",
        )


def find_task_eval(settings: TaskEvalConfig, tokenizer: Any, ranks: Ranks) -> TaskEval | None:
    """Return the tasks of a recipe; None if it has none.

    Raises:
        ConfigError: There is no such task, the corpus lacks its tokenizer, or there are several processes.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    if not settings.tasks:
        return None
    if not ranks.alone:
        raise ConfigError(
            f"task_eval.tasks supports one process, got {ranks.world_size}",
            "Score the finished models with `drpruning eval tasks RUN --task ...`.",
        )
    if tokenizer is None:
        raise ConfigError("task_eval.tasks needs the tokenizer, which the corpus lacks")
    return TaskEval(settings, find_tasks(settings.tasks), tokenizer)


# ---- the machine


def check_ranks(config: RunConfig, ranks: Ranks) -> None:
    """Check that every stage's batch and the shards divide evenly.

    Raises:
        ConfigError: One does not.
    """
    size = ranks.world_size
    for name in config.stages:
        if config.stage(name).batch_size % size:
            raise ConfigError(
                f"{name}.batch_size {config.stage(name).batch_size} is not a multiple of the {size} processes",
                f"Start another number of processes, or set {name}.batch_size to a multiple of it.",
            )
    shards = num_shards(config.training.fsdp_shard, ranks)
    if size % shards:
        raise ConfigError(
            f"training.fsdp_shard {shards} does not divide the {size} processes",
            "Set training.fsdp_shard to a divisor of the number of processes, or to all.",
        )


def check_experts(config: RunConfig, base_config: Any) -> None:
    """Check that the prune stage of a mixture of experts has no soft mask values of experts.

    Args:
        config: The recipe.
        base_config: The transformers configuration of the large model.

    Raises:
        ConfigError: It has.
    """
    if config.prune is None or experts_per_token(base_config) is None:
        return
    source, target = Target.of(base_config).experts, config.prune.target.experts
    if config.prune.mask_values == "soft" and target not in (None, source):
        raise ConfigError(
            f"pruning a mixture of experts ({base_config.model_type!r}) does not support soft mask values of experts",
            "Use --set prune.mask_values=hard; routers have no bias that could hold the values.",
        )


def check_disk(folder: Path, config: RunConfig, base_config: Any) -> None:
    """Check that the run folder can be written, and that the disk has space for checkpoints and models.

    Args:
        folder: The run folder; it need not exist.
        config: The recipe.
        base_config: transformers configuration of the large model.

    Raises:
        DiskError: There is no permission, or not enough space.
    """
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DiskError(f"cannot create the run folder: no write permission in {parent}", "Give another --out.")
    needed = bytes_of_run(config, base_config) - _bytes_in(folder)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DiskError(
            f"the run needs up to {size_in_words(needed)} in {folder}; {size_in_words(free)} are free",
            "Free disk space, give another --out, or keep fewer checkpoints (training.keep_checkpoints).",
        )


def check_memory(config: RunConfig, base_config: Any, ranks: Ranks) -> None:
    """Check that this node's memory holds the copies of a checkpoint, and on rank 0 the models of a repair.

    Copies are made of checkpoints that are written in the background. With several ranks a repair is computed in the
    memory of rank 0's node.

    Args:
        config: The recipe.
        base_config: transformers configuration of the large model.
        ranks: The processes of the run.

    Raises:
        ConfigError: It is too small.
    """
    training, free = config.training, available_memory()
    if free is None:
        return
    if not ranks.alone and config.prune is not None and config.prune.repair is not None:
        needed = EXPORT_BYTES * sum(_parameters(config, base_config))
        if free < needed:
            raise ConfigError(
                f"the repair of the pruned model needs {size_in_words(needed)} of this node's memory, for the model "
                f"before and after the cut; {size_in_words(free)} are free",
                "Use a node with more memory, or leave the repair out: --set prune.repair=null",
            )
    if not writes_in_background(training, choose_device(training.device, ranks)):
        return
    shards = num_shards(training.fsdp_shard, ranks)
    needed = math.ceil(max(_parameters(config, base_config)) * checkpoint_bytes(training) * ranks.local_size / shards)
    if free < needed:
        raise ConfigError(
            f"copies of a checkpoint need {size_in_words(needed)} of this node's memory; "
            f"{size_in_words(free)} are free",
            "Write checkpoints without copies: --set training.async_checkpoints=false",
        )


def writes_in_background(training: TrainingConfig, device: torch.device) -> bool:
    """Return whether checkpoints are written while training continues: on a GPU, unless the recipe sets it."""
    return device.type == "cuda" if training.async_checkpoints is None else training.async_checkpoints


def available_memory() -> int | None:
    """Return the bytes available to processes, by Linux and by the limit of a container; None where unknown."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):
        most, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        found.append(most - used)
    return min(found, default=None)


def bytes_of_run(config: RunConfig, base_config: Any) -> int:
    """Return the maximal bytes of a run folder: checkpoints, one in progress, and the models of each strategy.

    Checkpoints of the prune stage stay until the end of the continue stage.
    """
    strategies, models = {config.mixture.strategy, *config.also_run}, 2  # pruned/ and export/
    large, small = _parameters(config, base_config)
    if config.prune is None:
        models = 1
    keep = config.training.keep_checkpoints
    kept = max((keep + 1) * large, keep * large + (keep + 1) * small)
    return math.ceil(kept * checkpoint_bytes(config.training)) + len(strategies) * models * small * EXPORT_BYTES


def _parameters(config: RunConfig, base_config: Any) -> tuple[int, int]:
    """Return the parameters of the models in the prune stage and in the continue stage; 0 without the stage."""
    if config.prune is None:
        return 0, num_parameters(base_config)
    large = 0 if config.model.source == "scratch" else parameter_count(base_config)
    return large, parameter_count(base_config, Target(**config.prune.target.model_dump()).resolve(base_config))


def checkpoint_bytes(training: TrainingConfig) -> float:
    """Return the bytes of a parameter in a checkpoint: weight, low half if any, and moments."""
    return WEIGHT_BYTES[training.weight_format] + MOMENT_BYTES[training.optimizer_state_format]


def _bytes_in(folder: Path) -> int:
    """Return the bytes of a folder, which count towards the run's need."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


# ---- numbers of a recipe that are chosen when its run folder is created


def with_chosen_numbers(config: RunConfig, base_config: Any) -> RunConfig:
    """Return the recipe with reference losses in place of a file, and the number of threads in place of ``auto``.

    Args:
        config: The recipe.
        base_config: transformers configuration of the large model.

    Raises:
        ConfigError: There is no such file.
        LossTableError: The file cannot be read, lacks a domain, or does not determine a law.
    """
    config = with_reference_losses(config, base_config)
    if config.training.threads != "auto":
        return config
    rows = (config.prune or config.continue_).batch_size
    return config.with_threads(choose_threads(base_config, rows=rows, seq_len=config.data.seq_len))


def with_reference_losses(config: RunConfig, base_config: Any) -> RunConfig:
    """Return the recipe with reference losses in place of a file of finished models: those at the target's size.

    Args:
        config: The recipe.
        base_config: transformers configuration of the large model.

    Raises:
        ConfigError: There is no such file.
        LossTableError: It cannot be read, lacks a domain, or does not determine a law.
    """
    if config.mixture.sizes_file is None:
        return config
    from drpruning.loss_table import read_size_losses  # noqa: PLC0415 - few recipes have one

    path = Path(config.mixture.sizes_file).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"mixture.reference_loss: there is no file {str(path)!r}",
            "Make it with `drpruning eval loss MODEL MODEL ... --corpus CORPUS --json`, or give losses by domain.",
        )
    table = read_size_losses(path, domains=config.domains)
    if config.prune is None:
        return config.with_reference_loss(table.reference_losses(num_parameters(base_config)))
    target = Target(**config.prune.target.model_dump()).resolve(base_config)
    return config.with_reference_loss(table.reference_losses(parameter_count(base_config, target)))
