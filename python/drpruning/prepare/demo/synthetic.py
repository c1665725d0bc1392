"""A small corpus of made-up text with any domain names: to try a recipe without its corpus.

Each domain is a first-order Markov chain over words of its own. The number of likely successors of a word differs
between domains, and with it their entropy: domains are learned at different speeds and end at different losses.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from drpruning.prepare.demo import DemoDocuments
from drpruning.prepare.manifest import Manifest
from drpruning.prepare.publish import finished, on_disk, published
from drpruning.prepare.split import HeldOut
from drpruning.prepare.tokenise import train_tokenizer
from drpruning.prepare.write import write_corpus

CONTENT = 1
"""Raised when the same domain names yield another corpus than before."""

DOCUMENTS, WORDS = 160, 120
"""Of each domain, and of each document."""

LEXICON = 96
"""Words of a domain."""

SUCCESSORS = (2, 3, 4, 6, 8, 12, 16, 24)
"""Likely successors of a word, by the domain's place among the domains."""

SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]

VOCAB_SIZE = 384

HELD_OUT = HeldOut(fraction=0.1, tokens=4096, most=0.2)


def prepare_synthetic(out: Path | str, domains: Sequence[str]) -> Manifest:
    """Write a synthetic corpus into ``out``, unless it is complete there.

    The result is a function of the names and their order: two calls write the same bytes.

    Args:
        out: The corpus folder: absent, empty, or this corpus.
        domains: Their names.

    Raises:
        ConfigError: A name cannot be a file name.
        CorpusError: ``out`` is taken.
        DiskError: ``out`` cannot be written.
    """
    out, sources = Path(out), synthetic_fingerprint(domains)
    if (manifest := finished(out, sources)) is not None:
        return manifest
    with on_disk(out), published(out) as folder:
        texts = {name: domain_text(name, SUCCESSORS[at % len(SUCCESSORS)]) for at, name in enumerate(domains)}
        tokenizer = train_tokenizer(
            (text for of_domain in texts.values() for text in of_domain), VOCAB_SIZE, name=f"synthetic-bpe-{VOCAB_SIZE}"
        )
        documents = {name: DemoDocuments(of_domain) for name, of_domain in texts.items()}
        prepared = {"from": "synthetic", "sources": sources}
        write_corpus(folder, documents, tokenizer, held_out=HELD_OUT, prepared=prepared)
    return Manifest.read(out)


def synthetic_fingerprint(domains: Sequence[str]) -> str:
    """SHA-256 of all that decides a synthetic corpus."""
    sizes = [CONTENT, DOCUMENTS, WORDS, LEXICON, VOCAB_SIZE, *SUCCESSORS]
    return hashlib.sha256(json.dumps([sizes, list(domains)]).encode()).hexdigest()


def domain_text(name: str, successors: int) -> list[str]:
    """Documents of one domain.

    Args:
        name: Seeds the words and their order.
        successors: How many words are likely after a word.

    Example:
        >>> domain_text("web", 2) == domain_text("web", 2)
        True
    """
    generator = random.Random(f"{CONTENT}/{name}")  # noqa: S311 - text, not a secret
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
