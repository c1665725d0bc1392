"""Inspection of a corpus: document lengths, epochs under a recipe, and warnings about properties that hurt training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from drpruning.corpus.manifest import Domain, Manifest, Shard
from drpruning.errors import CorpusError
from drpruning.mixture.bounds import MAX_EPOCHS
from drpruning.mixture.static import static_mixture

MAX_UNKNOWN_SHARE = 0.001
"""Share of unknown tokens above which the tokenizer does not fit the text; byte-level tokenizers have none."""

MAX_BYTE_SHARE = 0.1
"""Share of tokens that are parts of characters above which the tokenizer does not fit the script."""

MAX_DOCUMENT_SHARE = 0.2
"""Share of a domain's training tokens in one document above which it dominates the domain."""


SHOWN_MIXTURES = ("natural", "uniform", "temperature:0.5", f"unimax:{MAX_EPOCHS}")
"""Static mixtures whose shares are shown for a corpus."""


@dataclass(frozen=True)
class RecipeMixture:
    """The training tokens that a recipe reads.

    Args:
        ratio: Share of each domain.
        tokens: Tokens of all domains.
    """

    ratio: Mapping[str, float]
    tokens: int


@dataclass(frozen=True)
class StaticMixtures:
    """Shares and epochs of each domain in the mixtures that a recipe can name.

    Args:
        tokens: Tokens of the run.
        shares: By mixture and domain.
        epochs: Epochs over the training tokens, by mixture and domain.
    """

    tokens: float
    shares: dict[str, dict[str, float]]
    epochs: dict[str, dict[str, float]]


@dataclass(frozen=True)
class DomainInspection:
    """Statistics of a domain.

    Args:
        lengths: Number of training documents of 1 token, of 2 to 3, of 4 to 7 and so on.
        median: Tokens of the median document, the end token included.
        longest: Tokens of the longest document.
        epochs: Epochs over the training tokens; None without a recipe.
    """

    lengths: list[int]
    median: int
    longest: int
    epochs: float | None


@dataclass(frozen=True)
class Inspection:
    """Statistics of a corpus.

    Args:
        domains: By name.
        warnings: Sentences.
    """

    domains: dict[str, DomainInspection]
    warnings: list[str]


def inspect_corpus(manifest: Manifest, mixture: RecipeMixture | None = None) -> Inspection:
    """Compute statistics from the indexes of a corpus, without reading tokens.

    Args:
        manifest: Manifest of the corpus.
        mixture: Training tokens that a recipe reads.

    Raises:
        CorpusError: An index is damaged.
    """
    domains, warnings = {}, []
    total = sum((mixture.ratio if mixture else {}).values()) or 1.0
    for name, domain in manifest.domains.items():
        lengths = np.concatenate([document_lengths(shard) for shard in domain.train])
        epochs = None
        if mixture is not None and domain.tokens:
            epochs = mixture.tokens * mixture.ratio.get(name, 0.0) / total / domain.tokens
        longest = int(lengths.max(initial=0))
        domains[name] = DomainInspection(
            lengths=np.bincount(np.log2(np.maximum(lengths, 1)).astype(np.int64)).tolist() if lengths.size else [],
            median=int(np.median(lengths)) if lengths.size else 0,
            longest=longest,
            epochs=epochs,
        )
        warnings += _warnings(name, domain, longest, epochs)
    if mixture is not None:
        missing = [name for name, share in mixture.ratio.items() if share > 0 and name not in manifest.domains]
        if missing:
            warnings.append(f"the recipe has domains that the corpus lacks: {', '.join(missing)}")
    return Inspection(domains, warnings)


def static_mixtures(manifest: Manifest, tokens: float | None = None) -> StaticMixtures:
    """Return what static mixtures give for the domains that have text.

    Args:
        manifest: Manifest of the corpus.
        tokens: Tokens of the run; None: those of the corpus, one epoch of the natural mixture.
    """
    sizes = {name: domain.tokens for name, domain in manifest.domains.items() if domain.tokens}
    budget = tokens or float(sum(sizes.values()))
    shares = {name: static_mixture(name, sizes, budget) for name in SHOWN_MIXTURES} if sizes else {}
    return StaticMixtures(
        tokens=budget,
        shares=shares,
        epochs={
            name: {domain: share * budget / sizes[domain] for domain, share in mixture.items()}
            for name, mixture in shares.items()
        },
    )


def document_lengths(shard: Shard) -> npt.NDArray[np.int64]:
    """Read the number of tokens of each document of a shard from its index; ``docs/corpus.md`` has the layout."""
    index = shard.path.with_suffix(".idx")
    sequences, documents = np.fromfile(index, "<u8", 2, offset=18).tolist()
    sizes = np.fromfile(index, "<i4", sequences, offset=34).astype(np.int64)
    starts = np.fromfile(index, "<i8", documents, offset=34 + 12 * sequences)
    if len(starts) != documents or len(sizes) != sequences or (sequences and starts[-1] != sequences):
        raise CorpusError(f"{index}: expected {documents} starts of documents, found {len(starts)}")
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    lengths: npt.NDArray[np.int64] = np.diff(ends[starts])
    return lengths


def check_digests(folder: Path) -> None:
    """Compare the files of document digests with their checksums in ``corpus.json``.

    Raises:
        CorpusError: A file is missing or altered.
    """
    for domain in Manifest.read(folder).domains.values():
        for name, expected in domain.digests.items():
            try:
                with (folder / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                raise CorpusError(f"{folder / name}: expected a file, found none") from None
            if found != expected:
                raise CorpusError(f"{folder / name}: expected content with SHA-256 {expected}, found {found}")


def _warnings(name: str, domain: Domain, longest: int, epochs: float | None) -> list[str]:
    warnings = []
    if epochs is not None and epochs > MAX_EPOCHS:
        warnings.append(
            f"{name} would be read for {epochs:.1f} epochs; more than {MAX_EPOCHS} help little: add text or lower its "
            "share"
        )
    if domain.unknown_share is not None and domain.unknown_share > MAX_UNKNOWN_SHARE:
        warnings.append(f"{domain.unknown_share:.1%} of the tokens of {name} are unknown to the tokenizer")
    if domain.byte_share is not None and domain.byte_share > MAX_BYTE_SHARE:
        warnings.append(
            f"{domain.byte_share:.0%} of the tokens of {name} are parts of characters: the tokenizer does not fit this "
            "script"
        )
    if domain.documents > 1 and longest > MAX_DOCUMENT_SHARE * domain.tokens:
        warnings.append(f"one document of {longest:,} tokens is {longest / domain.tokens:.0%} of {name}")
    elif domain.documents == 1:
        warnings.append(f"{name} is a single document")
    return warnings
