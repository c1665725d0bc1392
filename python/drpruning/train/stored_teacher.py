"""The rows of a corpus that a stage can read, and the check that a recipe's stored teachers fit it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drpruning.config import SHAPES_ONLY, ContinueConfig, DistillConfig, RunConfig, StageConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.flops import TRAINING
from drpruning.hf.fingerprint import model_fingerprint
from drpruning.hf.models import build_on_meta
from drpruning.mixture import Constant, Strategy
from drpruning.mixture import build as build_strategy
from drpruning.pruning import Target
from drpruning.pruning.model_flops import products_per_token
from drpruning.sampler import DomainSampler
from drpruning.train.base_model import base_cache, source_config
from drpruning.train.model_structure import products_of_model
from drpruning.train.state import step_seed
from drpruning.train.teacher_files import StoredTeacher


def distilled_stages(config: RunConfig) -> dict[str, DistillConfig]:
    """Return the settings of each stage of a recipe that distils."""
    if config.model.source == "scratch":
        return {}
    found = {name: getattr(config.stage(name), "distill", None) for name in config.stages}
    return {name: settings for name, settings in found.items() if settings is not None}


def longest_stage(config: RunConfig, name: str, corpus: Corpus) -> StageConfig:
    """Return the settings of a stage with the largest number of steps that it can have.

    With ``charged_flops`` the steps follow from the FLOPs of the prune stage. The bound leaves out those of teachers,
    importance and repair. Where pruned units are skipped, a step has the FLOPs of the target, the final size of the
    schedule.

    Raises:
        ConfigError: The budget is spent before the stage.
    """
    settings = config.stage(name)
    if not isinstance(settings, ContinueConfig) or settings.charged_flops is None:
        return settings
    length, base_config = config.data.seq_len, source_config(config.model, corpus)
    whole = student = TRAINING * products_of_model(build_on_meta(base_config), length)
    spent = 0.0
    if config.prune is not None:
        target = Target(**config.prune.target.model_dump()).resolve(base_config)
        student = TRAINING * products_per_token(base_config, target.sizes(), length)
        tokens = config.prune.steps * config.prune.batch_size * length
        spent = tokens * (student if config.prune.skips_pruned_units else whole)
    return settings.within_budget(spent, settings.batch_size * length * student)


def rows_of_stage(
    config: RunConfig, name: str, corpus: Corpus, settings: StageConfig | None = None
) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each domain that a stage can read, ascending.

    Where the mixture does not move, they are the rows that it reads. Where it moves, all rows of the stage could be of
    any domain: the order of rows within a domain depends on the seed alone. A stage that skips batches after a rollback
    may read a few more.

    Args:
        config: The recipe, with shares.
        name: The stage.
        corpus: The recipe's corpus.
        settings: The settings of the stage, once its steps are known; None: those of :func:`longest_stage`.
    """
    settings = longest_stage(config, name, corpus) if settings is None else settings
    fixed = name not in config.mixture.stages or all(
        isinstance(_strategy(config.with_strategy(strategy)), Constant)
        for strategy in dict.fromkeys((config.mixture.strategy, *config.also_run))
    )
    mixtures = [config.reference_ratio] if fixed else [{domain: 1.0} for domain in config.domains]
    rows: dict[str, list[NDArray[np.int64]]] = {domain: [] for domain in config.domains}
    sizes = corpus.num_rows(config.data.seq_len)
    for mixture in mixtures:
        if not fixed and settings.steps * settings.batch_size >= sizes[next(iter(mixture))]:
            rows[next(iter(mixture))].append(np.arange(sizes[next(iter(mixture))]))
            continue
        sampler = DomainSampler(
            corpus,
            weights={domain: mixture.get(domain, 0.0) for domain in corpus.domains},
            seq_len=config.data.seq_len,
            batch_size=settings.batch_size,
            seed=step_seed(config.seed, name, 0),
            draw=config.data.draw,
            prefetch=0,
        )
        plans = [sampler.peek(step) for step in range(settings.steps)]
        domains, numbers = (np.concatenate([getattr(plan, key) for plan in plans]) for key in ("domains", "rows"))
        for domain in mixture:
            rows[domain].append(numbers[domains == corpus.domains.index(domain)])
    return {domain: np.unique(np.concatenate(parts)) for domain, parts in rows.items()}


def _strategy(config: RunConfig) -> Strategy:
    return build_strategy(config.mixture.strategy, config.mixture.settings(), stages=config.mixture.stages)


def teacher_source(config: RunConfig, corpus: Corpus) -> str:
    """Return the folder or name of a recipe's teacher.

    Raises:
        ConfigError: The recipe trains it, and has not yet, or with a number of threads that is not fixed.
    """
    if config.model.source not in SHAPES_ONLY:
        return config.model.source
    if config.training.threads == "auto":
        raise ConfigError(
            "training.threads is auto, and the last bits of a model that the recipe trains depend on the number; "
            "a stored teacher needs a number",
            "Set it, for example --set training.threads=1, or use the recipe of a run: RUN/recipe.yaml.",
        )
    folder = base_cache(config, corpus)
    if not folder.is_dir():
        raise ConfigError(
            f"the model of the recipe {config.name!r} is not trained yet: there is no {folder}",
            "Run the recipe once without distill.stored; its base model stays in the cache.",
        )
    return str(folder)


def check_stored_teachers(config: RunConfig, corpus: Corpus) -> None:
    """Check that each ``distill.stored`` of a recipe is of its corpus, model and rows.

    Args:
        config: The recipe, with shares.
        corpus: Its corpus.

    Raises:
        ConfigError: There is no stored teacher, it is of something else, or lacks rows that the stage can read.
        CorpusError: A file is damaged.
    """
    for name, settings in distilled_stages(config).items():
        if settings.stored is not None:
            stored = StoredTeacher(Path(settings.stored).expanduser())
            _check_identity(config, name, settings, stored, corpus)
            stored.close()
            check_rows(config, name, corpus)


def _check_identity(
    config: RunConfig, name: str, settings: DistillConfig, stored: StoredTeacher, corpus: Corpus
) -> None:
    found, source = stored.identity, teacher_source(config, corpus)
    top_k = None if found.method == "sample" else found.size
    for what, got, expected in (
        ("corpus", found.corpus[:16], corpus.fingerprint[:16]),
        ("model", found.model[:16], model_fingerprint(source)[:16]),
        ("data.seq_len", found.seq_len, config.data.seq_len),
        ("data.document_mask", found.document_mask, config.data.document_mask),
        ("temperature", found.temperature, settings.temperature),
        ("top_k", top_k, settings.top_k),
    ):
        if got != expected:
            names = f" ({found.source}, not {source})" if what == "model" else ""
            own = what if "." in what else f"{name}.distill.{what}" if what in ("temperature", "top_k") else what
            raise ConfigError(
                f"{name}.distill.stored {stored.folder}: expected {own} {expected}, found {got}{names}",
                "Change the setting, or store the teacher for this recipe: `drpruning teach --recipe RECIPE --out ...`",
            )


def check_rows(config: RunConfig, name: str, corpus: Corpus, settings: StageConfig | None = None) -> None:
    """Check that the stored teacher of a stage, if it has one, has all rows that the stage can read.

    Args:
        config: The recipe, with shares.
        name: The stage.
        corpus: The recipe's corpus.
        settings: The settings of the stage, once its steps are known; None: those of :func:`longest_stage`.

    Raises:
        ConfigError: A row is not stored, and ``distill.missing`` is ``error``.
        CorpusError: A file is damaged.
    """
    distill = distilled_stages(config).get(name)
    if distill is None or distill.stored is None or distill.missing != "error":
        return
    stored = StoredTeacher(Path(distill.stored).expanduser())
    for domain, needed in rows_of_stage(config, name, corpus, settings).items():
        absent = np.setdiff1d(needed, stored.rows(corpus.domains.index(domain)), assume_unique=True)
        if len(absent):
            raise ConfigError(
                f"{name}.distill.stored {stored.folder} lacks {len(absent)} of the {len(needed)} rows of domain "
                f"{domain!r} that the stage can read",
                "Store them with `drpruning teach --recipe RECIPE --out FOLDER --resume`, or set "
                f"{name}.distill.missing=compute.",
            )
