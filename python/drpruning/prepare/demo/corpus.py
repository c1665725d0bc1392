"""Demo corpus: seven domains of text from the installed packages, a quickstart without a download.

The domains differ in size and difficulty, so the mixture is skewed and small domains repeat, as in the corpora that a
robust mixture is for.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from drpruning.corpus.manifest import Manifest
from drpruning.prepare.demo import VOCAB_SIZE, installed_text
from drpruning.prepare.demo.installed_text import InstalledFile
from drpruning.prepare.output.corpus_folder import find_corpus, new_corpus_folder, raise_disk_errors
from drpruning.prepare.output.holdout import Holdout, group_digest, hash_positions
from drpruning.prepare.pipeline.tokenize_all import ProgressCallback
from drpruning.prepare.pipeline.write import write_corpus
from drpruning.prepare.tokenize.tokenizer import DocumentTokenizer, train_tokenizer

CONTENT_VERSION = 2
"""Increased when the same installed packages yield another corpus than before."""

DOCUMENT_SIZE = 4096
"""Longest document, in characters: many small documents make a representative holdout."""

DOCUMENTS_PER_FILE = 3
"""Documents taken from a file of source code or docstrings, so that a domain takes text from many files."""

DOCUMENTS_PER_TEXT = 16
"""Documents taken from a readme or a licence file: a changelog in one readme would be a fifth of its domain."""

LARGEST_SOURCE = 300_000
"""Longer Python files are tables; parsing them takes seconds."""

TOKENIZER_SAMPLE = 200_000
"""Characters of each domain for the training of the tokenizer: equal shares, so that small domains count."""

LARGEST_DOMAIN = 2_000_000
"""Most characters of a domain: more text would slow the quickstart and not improve its model."""

DEMO_HOLDOUT = Holdout(fraction=0.2, max_fraction=0.6)
"""The domains are small: most need 20 or 40% of their text for 50 test groups, the smallest cannot reach them."""

MAX_OVERLAP = 0.5
"""Held-out documents with a larger share of token 13-grams in training text are near duplicates, and dropped."""

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*?(?=\S|[ \t])")
_NOT_LETTERS = re.compile(r"[^a-z]+")


class DemoDocument(NamedTuple):
    """One text and its group: documents of one group are in one split."""

    text: str
    group: str


def prepare_demo(
    out: Path | str,
    *,
    vocab_size: int = VOCAB_SIZE,
    domain_characters: int = LARGEST_DOMAIN,
    holdout: Holdout = DEMO_HOLDOUT,
    max_overlap: float = MAX_OVERLAP,
    tokenizer: DocumentTokenizer | None = None,
    on_progress: ProgressCallback | None = None,
) -> Manifest:
    """Write the demo corpus into ``out``, unless ``out`` has it already.

    ===========  ================================================================================
    domain       text
    ===========  ================================================================================
    ``python``   the standard library's source
    ``cpp``      C++ headers in torch's include folder
    ``math``     docstrings of numpy, scipy and sympy
    ``ml``       docstrings of torch and transformers
    ``stubs``    ``.pyi`` type stubs of the installed packages
    ``readme``   the packages' long descriptions, and Markdown and reStructuredText files in them
    ``licence``  their licence texts
    ===========  ================================================================================

    The documents of a file are a group, which is in one split. Held-out documents that overlap training text
    (``max_overlap``) are dropped. The corpus is a function of the installed versions and the arguments: two calls
    write the same bytes.

    Args:
        out: The corpus folder: absent, empty, or this corpus.
        vocab_size: Vocabulary of the byte-level BPE trained on the text, if ``tokenizer`` is None.
        domain_characters: Most characters of a domain.
        holdout: Size of the holdout of each domain.
        max_overlap: Largest share of a held-out document's token 13-grams that may occur in training text.
        tokenizer: Tokenizer of the corpus; None: a byte-level BPE of ``vocab_size`` ids, trained on the text.
        on_progress: Called after each block.

    Raises:
        MissingExtraError: torch, transformers, numpy, scipy or sympy is not installed.
        CorpusError: ``out`` is not free, or contains another corpus.
        DiskError: ``out`` cannot be written.
        ConfigError: ``vocab_size`` is too small.
    """
    out = Path(out)
    sources = demo_fingerprint(
        vocab_size=vocab_size, domain_characters=domain_characters, holdout=holdout, max_overlap=max_overlap
    )
    if tokenizer is not None:
        sources = hashlib.sha256(f"{sources} {tokenizer.sha256}".encode()).hexdigest()
    if (manifest := find_corpus(out, sources)) is not None:
        return manifest
    with raise_disk_errors(out), new_corpus_folder(out) as folder:
        domains = {name: collect_documents(texts(), domain_characters) for name, texts in DOMAINS.items()}
        if tokenizer is None:
            samples = (text for documents in domains.values() for text in _tokenizer_sample(documents, holdout))
            tokenizer = train_tokenizer(samples, vocab_size, name=f"demo-bpe-{vocab_size}")
        prepared: dict[str, object] = {
            "from": "demo",
            "sources": sources,
            "packages": installed_text.package_versions(),
        }
        prepared["max_overlap"] = max_overlap
        write_corpus(
            folder,
            {name: [document.text for document in documents] for name, documents in domains.items()},
            tokenizer,
            holdout=holdout,
            prepared=prepared,
            groups={name: [document.group for document in documents] for name, documents in domains.items()},
            max_overlap=max_overlap,
            on_progress=on_progress,
        )
    return Manifest.read(out)


def demo_fingerprint(
    *,
    vocab_size: int = VOCAB_SIZE,
    domain_characters: int = LARGEST_DOMAIN,
    holdout: Holdout = DEMO_HOLDOUT,
    max_overlap: float = MAX_OVERLAP,
) -> str:
    """Return the SHA-256 of the inputs of the demo corpus: arguments and installed versions. Reads no text."""
    inputs = {
        "content": CONTENT_VERSION,
        "vocab_size": vocab_size,
        "cap": domain_characters,
        "held_out": holdout.to_notes(),
        "max_overlap": max_overlap,
        "python": list(sys.version_info[:3]),
        "packages": installed_text.package_versions(),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def collect_documents(candidates: Iterable[DemoDocument], max_characters: int) -> list[DemoDocument]:
    """Collect documents without repeated paragraphs, up to ``max_characters`` characters."""
    documents: list[DemoDocument] = []
    size = 0
    for text, group in drop_repeated_paragraphs(candidates):
        documents.append(DemoDocument(text[: max_characters - size], group))
        size += len(text)
        if size >= max_characters:
            break
    return documents


def drop_repeated_paragraphs(
    documents: Iterable[DemoDocument], *, min_letters: int = 100, min_characters: int = 200
) -> Iterator[DemoDocument]:
    r"""Yield ``documents`` without the paragraphs that occurred earlier, in the same or another document.

    Repeated paragraphs would let a model read held-out text during training: licences and templated docstrings share
    whole paragraphs although no two files are equal. They are compared in lower case, letters only, as in CCNet (Wenzek
    et al. 2020, section 3.1).

    Args:
        documents: Documents; paragraphs are separated by blank lines.
        min_letters: Paragraphs with fewer letters are always kept: headings, ``Returns``, ``}``.
        min_characters: A document that becomes shorter than this is dropped.

    >>> notice = "Redistribution and use in source and binary forms are permitted " * 2
    >>> documents = [DemoDocument(f"One\n\n{notice}", "a"), DemoDocument(f"Two\n\n{notice.upper()}", "b")]
    >>> list(drop_repeated_paragraphs(documents, min_characters=0))[1]
    DemoDocument(text='Two\n', group='b')
    """
    seen: set[bytes] = set()
    for document in documents:
        paragraphs = []
        for paragraph in _BLANK_LINES.split(document.text):
            letters = _NOT_LETTERS.sub(" ", paragraph.lower()).strip()
            if len(letters) >= min_letters:
                digest = hashlib.blake2b(letters.encode(), digest_size=16).digest()
                if digest in seen:
                    continue
                seen.add(digest)
            paragraphs.append(paragraph)
        text = "\n\n".join(paragraphs).strip("\n") + "\n"
        if len(text) >= min_characters:
            yield DemoDocument(text, document.group)


def split_text(text: str, size: int = DOCUMENT_SIZE) -> Iterator[str]:
    r"""Split ``text`` into parts of at most ``size`` characters, at the end of a line if lines are short enough.

    >>> list(split_text("one\ntwo\nthree\n", 9))
    ['one\ntwo\n', 'three\n']
    """
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _code(files: Iterable[InstalledFile]) -> Iterator[DemoDocument]:
    for file in files:
        for text in islice(split_text(_read_text(file.path)), DOCUMENTS_PER_FILE):
            yield DemoDocument(text, file.name)


def _docstrings(packages: Iterable[str]) -> Iterator[DemoDocument]:
    for file in installed_text.package_sources(packages):
        if file.path.stat().st_size <= LARGEST_SOURCE:
            docstrings = installed_text.docstrings(_read_text(file.path))
            for text in islice(split_text(docstrings), DOCUMENTS_PER_FILE):
                yield DemoDocument(text, file.name)


def _texts(files: Iterable[InstalledFile]) -> Iterator[tuple[str, str]]:
    for file in files:
        yield file.name, _read_text(file.path)


def _prose(texts: Iterable[tuple[str, str]]) -> Iterator[DemoDocument]:
    for name, text in texts:
        for part in islice(split_text(text), DOCUMENTS_PER_TEXT):
            yield DemoDocument(part, name)


DOMAINS: dict[str, Callable[[], Iterator[DemoDocument]]] = {
    "python": lambda: _code(installed_text.standard_library()),
    "cpp": lambda: _code(installed_text.torch_headers()),
    "math": lambda: _docstrings(["numpy", "scipy", "sympy"]),
    "ml": lambda: _docstrings(["torch", "transformers"]),
    "stubs": lambda: _code(installed_text.stubs()),
    "readme": lambda: _prose(chain(installed_text.long_descriptions(), _texts(installed_text.markup()))),
    "licence": lambda: _prose(_texts(installed_text.licences())),
}


def _read_text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")


def _tokenizer_sample(documents: list[DemoDocument], holdout: Holdout) -> list[str]:
    """Return the first documents of a domain, without any document that may be held out."""
    positions = hash_positions([group_digest(document.group) for document in documents])
    is_training = positions >= max(holdout.candidates())
    sample, size = [], 0
    for document, training in zip(documents, is_training.tolist(), strict=True):
        if training and size < TOKENIZER_SAMPLE:
            sample.append(document.text)
            size += len(document.text)
    return sample
