"""The recipe against the corpus and the model: everything that can be wrong is found before any time is spent."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.files import cache_folder
from drpruning.mixture import Observation, build
from drpruning.pruning import Target, parameter_count
from drpruning.pruning.protected import Protected
from drpruning.train.any_model import check_any_model, count_of, text_config
from drpruning.train.device import choose_device
from drpruning.train.execution import check_execution
from drpruning.train.source import check_tokenizer, source_config
from drpruning.train.trackers import check_tracker


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
    """Checks domains, held-out text, tokenizer, and the target shape or, where nothing is pruned, the model.

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
    check_execution(config.training, config.data, corpus.end_token, source, device)
    check_tracker(config.training.tracker)
    positions = getattr(text_config(source), "max_position_embeddings", None)
    if positions is not None and config.data.seq_len > positions:
        raise ConfigError(f"data.seq_len {config.data.seq_len} is longer than the model's {positions} positions")
    if config.prune is None:
        distill = config.continue_.distill
        check_any_model(source, config.training, config.data, hidden=distill is not None and distill.hidden > 0)
    else:
        target = Target(**config.prune.target.model_dump()).resolve(source)
        Protected(**config.prune.protect.model_dump()).masks(Target.of(source), target)
    for name in dict.fromkeys((config.mixture.strategy, *config.compare)):
        check_strategy(config.with_strategy(name), corpus)
    return source


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
            "Make it with `drpruning eval loss MODEL MODEL ... --corpus CORPUS --json`, or give losses by domain.",
        )
    table = read_size_losses(path, domains=config.domains)
    if config.prune is None:
        return config.with_reference_loss(table.reference_losses(count_of(source)))
    target = Target(**config.prune.target.model_dump()).resolve(source)
    return config.with_reference_loss(table.reference_losses(parameter_count(source, target)))


def check_strategy(config: RunConfig, corpus: Corpus) -> None:
    """Checks that the strategy can start, and that its bounds leave a mixture in each stage with this much text.

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
