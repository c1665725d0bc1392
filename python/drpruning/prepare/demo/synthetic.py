"""Synthetic corpus: generated text for any domain names, to try a recipe without its corpus.

Each domain is a first-order Markov chain over a separate vocabulary. Domains differ in the number of likely
successors of a word, and so in entropy: models learn them at different speeds and reach different losses.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from drpruning.corpus.manifest import Manifest
from drpruning.prepare.output.corpus_folder import find_corpus, new_corpus_folder, raise_disk_errors
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.pipeline.write import write_corpus
from drpruning.prepare.tokenize.tokenizer import train_tokenizer

CONTENT_VERSION = 1
"""Increased when the same domain names yield another corpus than before."""

DOCUMENTS, WORDS = 160, 120
"""Documents of each domain, and words of each document."""

LEXICON = 96
"""Vocabulary of a domain, in words."""

SUCCESSORS = (2, 3, 4, 6, 8, 12, 16, 24)
"""Likely successors of a word, by the position of the domain."""

SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]

VOCAB_SIZE = 384

HOLDOUT = Holdout(fraction=0.2, min_tokens=4096, min_groups=20)


def prepare_synthetic(out: Path | str, domains: Sequence[str]) -> Manifest:
    """Write a synthetic corpus into ``out``, unless it is complete there.

    The corpus is a function of the names and their order: two calls write the same bytes.

    Args:
        out: The corpus folder: absent, empty, or this corpus.
        domains: Names of the domains.

    Raises:
        ConfigError: A name cannot be a file name.
        CorpusError: ``out`` is not free.
        DiskError: ``out`` cannot be written.
    """
    out, sources = Path(out), synthetic_fingerprint(domains)
    if (manifest := find_corpus(out, sources)) is not None:
        return manifest
    with raise_disk_errors(out), new_corpus_folder(out) as folder:
        texts = {name: domain_text(name, SUCCESSORS[at % len(SUCCESSORS)]) for at, name in enumerate(domains)}
        all_texts = (text for documents in texts.values() for text in documents)
        tokenizer = train_tokenizer(all_texts, VOCAB_SIZE, name=f"synthetic-bpe-{VOCAB_SIZE}")
        prepared = {"from": "synthetic", "sources": sources}
        write_corpus(folder, texts, tokenizer, holdout=HOLDOUT, prepared=prepared)
    return Manifest.read(out)


def synthetic_fingerprint(domains: Sequence[str]) -> str:
    """Return the SHA-256 of everything that decides a synthetic corpus."""
    sizes = [CONTENT_VERSION, DOCUMENTS, WORDS, LEXICON, VOCAB_SIZE, *SUCCESSORS]
    return hashlib.sha256(json.dumps([sizes, HOLDOUT.to_notes(), list(domains)]).encode()).hexdigest()


def domain_text(name: str, successors: int) -> list[str]:
    """Generate the documents of one domain.

    Args:
        name: Seed of the words and their order.
        successors: Number of likely successors of a word.

    Example:
        >>> domain_text("web", 2) == domain_text("web", 2)
        True
    """
    generator = random.Random(f"{CONTENT_VERSION}/{name}")  # noqa: S311 - text, not a secret
    words = ["".join(generator.choices(SYLLABLES, k=generator.randint(1, 3))) for _ in range(LEXICON)]
    likely = {word: generator.choices(words, k=successors) for word in words}
    documents = []
    for _ in range(DOCUMENTS):
        word, text = generator.choice(words), []
        for _ in range(WORDS):
            text.append(word)
            word = generator.choice(likely[word])
        documents.append(" ".join(text) + ".\n")
    return documents
