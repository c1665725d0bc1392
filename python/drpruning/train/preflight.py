"""Preflight: all checks of a recipe against corpus, model and machine, before any time is spent."""

from __future__ import annotations

import difflib
import math
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from drpruning.config import DataConfig, EvaluateConfig, RunConfig, TrainingConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError, DiskError, MissingExtraError
from drpruning.evaluation.tasks import find_tasks
from drpruning.files import cache_folder
from drpruning.formatting import size_in_words
from drpruning.mixture import Observation, build
from drpruning.pruning import Target, parameter_count
from drpruning.pruning.protected import Protected
from drpruning.run_folder import RunFolder
from drpruning.train.base_model import check_tokenizer, corpus_tokenizer, source_config
from drpruning.train.deterministic import check_deterministic
from drpruning.train.device import choose_device
from drpruning.train.distributed.fsdp import num_shards
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.flex_attention import obstacle
from drpruning.train.fused_cross_entropy import select_cross_entropy
from drpruning.train.model_runtime import PACKAGES
from drpruning.train.model_structure import check_model, num_parameters, text_config
from drpruning.train.optimizers.quantized_moments import BLOCK
from drpruning.train.task_eval import TaskEval
from drpruning.train.threads import choose_threads

WEIGHT_BYTES = {"float32": 4, "bfloat16+low16": 4, "bfloat16": 2}
MOMENT_BYTES = {"float32": 8, "bfloat16": 4, "int8": 2 * (1 + 4 / BLOCK)}  # both of AdamW; with int8 also the scales
EXPORT_BYTES = 4  # float32
CGROUP = Path("/sys/fs/cgroup")  # version 2


@dataclass(frozen=True)
class Checked:
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


def check(config: RunConfig, corpus: Corpus, folder: RunFolder, ranks: Ranks) -> Checked:
    """Check a recipe on all ranks; nothing is written.

    Args:
        config: The recipe.
        corpus: The recipe's, see :func:`open_corpus`.
        folder: The run folder; it need not exist.
        ranks: The processes of the run.

    Raises:
        ConfigError: The recipe cannot work with this corpus, model, machine or number of processes.
        MissingExtraError: A package is missing.
        DiskError: The run folder cannot be written, or the disk is too small.
    """
    base_config = ranks.agree(lambda: check_recipe(config, corpus))
    ranks.agree(lambda: check_ranks(config, ranks))
    tokenizer = corpus_tokenizer(corpus)
    task_eval = find_task_eval(config.evaluate, tokenizer, ranks)
    ranks.agree(lambda: check_disk(folder.path, config, base_config))
    ranks.agree(lambda: check_memory(config, base_config, ranks))
    return Checked(config, corpus, base_config, tokenizer, task_eval)


# ---- the recipe with corpus and model


def open_corpus(config: RunConfig) -> Corpus:
    """The recipe's corpus; ``demo`` and ``synthetic`` are built first where they are not in the cache.

    Raises:
        ConfigError: There is no such folder.
        CorpusError: It is damaged.
    """
    if config.data.corpus == "demo":
        from drpruning.prepare.demo.corpus import demo_fingerprint, prepare_demo  # noqa: PLC0415 - only this corpus needs tokenizers

        folder = cache_folder() / "corpora" / f"demo-{demo_fingerprint()[:16]}"
        prepare_demo(folder)
        return Corpus.open(folder)
    if config.data.corpus == "synthetic":
        from drpruning.prepare.demo.synthetic import prepare_synthetic, synthetic_fingerprint  # noqa: PLC0415 - as above

        folder = cache_folder() / "corpora" / f"synthetic-{synthetic_fingerprint(config.domains)[:16]}"
        prepare_synthetic(folder, config.domains)
        return Corpus.open(folder)
    folder = Path(config.data.corpus).expanduser()
    if not (folder / "corpus.json").is_file():
        raise ConfigError(
            f"data.corpus {str(folder)!r} holds no corpus.json",
            "Make a corpus with `drpruning prepare`, and give its folder with --set data.corpus=FOLDER.",
        )
    return Corpus.open(folder)


def check_recipe(config: RunConfig, corpus: Corpus) -> Any:
    """Check domains, held-out text, tokenizer, and the target shape or, where nothing is pruned, the model.

    Returns:
        The transformers configuration of the large model.

    Raises:
        ConfigError: Names what does not fit, and what would.
    """
    for domain in config.domains:
        if domain not in corpus.domains:
            near = difflib.get_close_matches(domain, corpus.domains, n=1)
            raise ConfigError(
                f"data.reference_ratio names the domain {domain!r}; the corpus has {', '.join(corpus.domains)}",
                f"Did you mean {near[0]}?"
                if near
                else "Domains of the recipe and of the corpus must have the same names.",
            )
        if not corpus.eval_rows(domain, seq_len=config.data.seq_len, max_tokens=config.data.seq_len).shape[0]:
            raise ConfigError(
                f"domain {domain!r} holds out fewer tokens than one row of data.seq_len {config.data.seq_len}",
                "Hold out more of it when preparing the corpus, or use a smaller seq_len.",
            )
    source = source_config(config.model, corpus)
    check_tokenizer(config.model, corpus)
    device = choose_device(config.training.device).type
    check_runtime(config.training, config.data, corpus.end_token, source, device)
    check_logger(config.training.tracker)
    positions = getattr(text_config(source), "max_position_embeddings", None)
    if positions is not None and config.data.seq_len > positions:
        raise ConfigError(f"data.seq_len {config.data.seq_len} is longer than the model's {positions} positions")
    if config.prune is None:
        distill = config.continue_.distill
        check_model(source, config.training, config.data, hidden=distill is not None and distill.hidden > 0)
    else:
        target = Target(**config.prune.target.model_dump()).resolve(source)
        Protected(**config.prune.protect.model_dump()).masks(Target.of(source), target)
    for name in dict.fromkeys((config.mixture.strategy, *config.compare)):
        check_strategy(config.with_strategy(name), corpus)
    return source


def check_strategy(config: RunConfig, corpus: Corpus) -> None:
    """Check that the strategy can start, and that its bounds leave a mixture in each stage with this much text.

    Raises:
        ConfigError: They do not, or a schedule cannot be read.
        WeightError: A schedule's weights do not fit the domains.
    """
    strategy = build(config.mixture.strategy, config.mixture.settings(), stages=config.mixture.stages)
    strategy.init(config.domains, config.data.reference_ratio)
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


def check_runtime(
    training: TrainingConfig, data: DataConfig, end_token: int | None, config: Any = None, device: str = "cpu"
) -> None:
    """Find out whether :func:`prepare` can do what is asked for, without a model.

    Args:
        training: The recipe's section.
        data: The recipe's section.
        end_token: Id at the end of a document.
        config: Of the model, to check its attention.
        device: Type of the device that trains.

    Raises:
        ConfigError: The corpus names no end token for ``data.document_mask``, this torch lacks something, the
            attention function does not go with model, device or type, or cuBLAS is set to give other bits each time.
        MissingExtraError: A package is missing.
    """
    check_deterministic(training.deterministic)
    if data.document_mask and end_token is None:
        raise ConfigError(
            "data.document_mask needs to know where documents end, and the corpus names no end token",
            "Prepare the corpus with a tokenizer that has one.",
        )
    if training.loss not in ("auto", "plain"):
        select_cross_entropy(training.loss)
    package = PACKAGES.get(training.attention)
    if package is not None and find_spec(package) is None:
        raise MissingExtraError(
            f"`training.attention: {training.attention}` needs the package {package}",
            "Install FlashAttention for your GPU, or use --set training.attention=sdpa.",
        )
    if config is None:
        return
    hindered = None
    if training.attention == "flex_attention":
        hindered = obstacle(config, device=device, dtype=training.dtype, seq_len=data.seq_len)
    elif package is not None and (device != "cuda" or training.dtype != "bfloat16"):
        hindered = f"needs a GPU and training.dtype bfloat16, got {device} and {training.dtype}"
    if hindered is not None:
        raise ConfigError(f"training.attention {training.attention} {hindered}", "Use --set training.attention=sdpa.")


def check_logger(kind: str) -> None:
    """Raise MissingExtraError if the package of ``training.tracker`` is not installed."""
    if kind != "none" and find_spec(kind) is None:
        raise MissingExtraError(
            f'`training.tracker: {kind}` needs {kind}: pip install "drpruning[{kind}]"',
            "Or use --set training.tracker=none; metrics.jsonl has everything.",
        )


def find_task_eval(settings: EvaluateConfig, tokenizer: Any, ranks: Ranks) -> TaskEval | None:
    """What the recipe asks for; None if that is nothing.

    Raises:
        ConfigError: There is no such task, the corpus does not hold its tokenizer, or there are several processes.
        MissingExtraError: lm-evaluation-harness is not installed.
    """
    if not settings.tasks:
        return None
    if not ranks.alone:
        raise ConfigError(
            f"evaluate.tasks needs one process, and there are {ranks.world_size}",
            "Score the finished models with `drpruning eval RUN --tasks ...`.",
        )
    if tokenizer is None:
        raise ConfigError("evaluate.tasks needs the tokenizer, which the corpus does not hold")
    return TaskEval(settings, find_tasks(settings.tasks), tokenizer)


# ---- the machine


def check_ranks(config: RunConfig, ranks: Ranks) -> None:
    """Make sure that every stage's batch and the shards divide evenly.

    Raises:
        ConfigError: Names the setting that does not.
    """
    size = ranks.world_size
    for name in config.stages:
        if config.stage(name).batch_size % size:
            raise ConfigError(
                f"{name}.batch_size {config.stage(name).batch_size} is not a multiple of the {size} processes",
                "Start another number of processes, or change the batch.",
            )
    shards = num_shards(config.training.shards, ranks)
    if size % shards:
        raise ConfigError(
            f"training.shards {shards} does not divide the {size} processes", "Each copy is held by as many of them."
        )


def check_disk(folder: Path, config: RunConfig, source: Any) -> None:
    """Make sure that the run folder can be written and that checkpoints and models have room.

    Args:
        folder: The run folder; it need not exist.
        config: The recipe.
        source: transformers configuration of the large model.

    Raises:
        DiskError: Says what is missing.
    """
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DiskError(f"no permission to write in {parent}, where the run folder is to be", "Give another --out.")
    needed = bytes_of_run(config, source) - _bytes_in(folder)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise DiskError(
            f"the run needs up to {size_in_words(needed)} in {folder}, and {size_in_words(free)} are free there",
            "Make room, give another --out, or keep fewer checkpoints (training.keep_checkpoints).",
        )


def check_memory(config: RunConfig, source: Any, ranks: Ranks) -> None:
    """Check that this machine's memory holds the copies of a checkpoint that its processes write in the background.

    Args:
        config: The recipe.
        source: transformers configuration of the large model.
        ranks: The processes of the run.

    Raises:
        ConfigError: It does not.
    """
    training, free = config.training, available_memory()
    if free is None or not writes_in_background(training, choose_device(training.device, ranks)):
        return
    shards = num_shards(training.shards, ranks)
    needed = math.ceil(max(_parameters(config, source)) * checkpoint_bytes(training) * ranks.local_size / shards)
    if free < needed:
        raise ConfigError(
            f"copies of a checkpoint need {size_in_words(needed)} of this machine's memory; "
            f"{size_in_words(free)} are free",
            "Write checkpoints while training waits: --set training.async_checkpoints=false",
        )


def writes_in_background(training: TrainingConfig, device: torch.device) -> bool:
    """Whether checkpoints are written while training runs: where there is a GPU, unless the recipe decides."""
    return device.type == "cuda" if training.async_checkpoints is None else training.async_checkpoints


def available_memory() -> int | None:
    """Return the bytes that processes can still take, by Linux and by the limit of a container; None: unknown."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):
        most, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        found.append(most - used)
    return min(found, default=None)


def bytes_of_run(config: RunConfig, source: Any) -> int:
    """The most that a run folder holds: checkpoints, one of them under way, and the models of each strategy.

    Those of the prune stage stay until the small model is trained.
    """
    strategies, models = {config.mixture.strategy, *config.compare}, 2  # pruned/ and export/
    large, small = _parameters(config, source)
    if config.prune is None:
        models = 1
    keep = config.training.keep_checkpoints
    kept = max((keep + 1) * large, keep * large + (keep + 1) * small)
    return math.ceil(kept * checkpoint_bytes(config.training)) + len(strategies) * models * small * EXPORT_BYTES


def _parameters(config: RunConfig, source: Any) -> tuple[int, int]:
    """Parameters of the models that the prune stage and the continue stage train; 0: there is no such stage."""
    if config.prune is None:
        return 0, num_parameters(source)
    large = 0 if config.model.source == "scratch" else parameter_count(source)
    return large, parameter_count(source, Target(**config.prune.target.model_dump()).resolve(source))


def checkpoint_bytes(training: TrainingConfig) -> float:
    """Bytes of a parameter in a checkpoint: of its weight, the low half where there is one, and the moments."""
    return WEIGHT_BYTES[training.weights] + MOMENT_BYTES[training.moments]


def _bytes_in(folder: Path) -> int:
    """What is in the folder already: it makes room for what follows."""
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


def with_reference_losses(config: RunConfig, source: Any) -> RunConfig:
    """The recipe with numbers in the place of a file of losses of finished models: those at the target's size.

    Args:
        config: The recipe.
        source: transformers configuration of the large model.

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
            "Make it with `drpruning eval MODEL MODEL ... --corpus CORPUS --json`, or give losses by domain.",
        )
    table = read_size_losses(path, domains=config.domains)
    if config.prune is None:
        return config.with_reference_loss(table.reference_losses(num_parameters(source)))
    target = Target(**config.prune.target.model_dump()).resolve(source)
    return config.with_reference_loss(table.reference_losses(parameter_count(source, target)))
