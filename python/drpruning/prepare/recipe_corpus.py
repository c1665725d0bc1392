"""The corpus of a training recipe: its folder, its opening, and the shares that a named mixture has there."""

from __future__ import annotations

from pathlib import Path

from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.corpus.manifest import Manifest
from drpruning.errors import ConfigError, did_you_mean
from drpruning.files import cache_folder
from drpruning.recipes import with_shares


def corpus_folder(config: RunConfig) -> Path:
    """Return the folder of the recipe's corpus; for ``demo`` and ``synthetic`` it is in the cache, and may not exist.

    Raises:
        ConfigError: The corpus is ``synthetic``, and the recipe does not name its domains.
    """
    if config.data.corpus == "demo":
        from drpruning.prepare.demo.corpus import demo_fingerprint  # noqa: PLC0415 - only this corpus needs tokenizers

        return cache_folder() / "corpora" / f"demo-{demo_fingerprint()[:16]}"
    if config.data.corpus == "synthetic":
        from drpruning.prepare.demo.synthetic import synthetic_fingerprint  # noqa: PLC0415 - as above

        return cache_folder() / "corpora" / f"synthetic-{synthetic_fingerprint(config.domains)[:16]}"
    return Path(config.data.corpus).expanduser()


def recorded_tokens(config: RunConfig) -> dict[str, int]:
    """Return the training tokens of each domain of the recipe's corpus, from its ``corpus.json``.

    Raises:
        ConfigError: The corpus does not exist, or its domains are not known.
        CorpusError: ``corpus.json`` is damaged.
    """
    folder = corpus_folder(config)
    if not (folder / "corpus.json").is_file():
        setting, name = next(iter(config.mixture_names.items()), ("the mixture", ""))
        raise ConfigError(
            f"{setting} {name!r} needs the sizes of the domains, and the corpus {config.data.corpus!r} does not exist",
            "Make it with `drpruning prepare`, or give shares: --set 'data.reference_ratio={web: 0.8, code: 0.2}'.",
        )
    return {name: domain.tokens for name, domain in Manifest.read(folder).domains.items()}


def with_recorded_shares(config: RunConfig) -> RunConfig:
    """Return the recipe with shares in place of the names of static mixtures, from its corpus on disk.

    Raises:
        ConfigError: The recipe has names, and the corpus does not exist, or as :func:`drpruning.recipes.with_shares`.
        CorpusError: ``corpus.json`` is damaged.
    """
    return with_shares(config, recorded_tokens(config)) if config.mixture_names else config


def open_corpus(config: RunConfig) -> Corpus:
    """Open the recipe's corpus; build ``demo`` and ``synthetic`` first where the cache lacks them.

    Raises:
        ConfigError: There is no such folder.
        CorpusError: It is damaged.
    """
    folder = corpus_folder(config)
    if config.data.corpus == "demo":
        from drpruning.prepare.demo.corpus import prepare_demo  # noqa: PLC0415 - only this corpus needs tokenizers

        prepare_demo(folder)
    elif config.data.corpus == "synthetic":
        from drpruning.prepare.demo.synthetic import prepare_synthetic  # noqa: PLC0415 - as above

        prepare_synthetic(folder, config.domains)
    return open_folder(folder)


def open_folder(folder: Path) -> Corpus:
    """Open the corpus in a folder.

    Raises:
        ConfigError: There is none.
        CorpusError: It is damaged.
    """
    folder = folder.expanduser()
    if not (folder / "corpus.json").is_file():
        raise ConfigError(
            f"data.corpus {str(folder)!r} holds no corpus.json",
            "Make a corpus with `drpruning prepare`, and give its folder with --set data.corpus=FOLDER.",
        )
    return Corpus.open(folder)


def check_domains(config: RunConfig, corpus: Corpus) -> None:
    """Check that the corpus has the domains of a recipe.

    Raises:
        ConfigError: One is missing.
    """
    for domain in config.domains:
        if domain not in corpus.domains:
            raise ConfigError(
                f"data.reference_ratio names the domain {domain!r}; the corpus has {', '.join(corpus.domains)}",
                did_you_mean(domain, corpus.domains)
                or "Use the names of the corpus's domains in data.reference_ratio.",
            )
