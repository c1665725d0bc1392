"""A seven-domain corpus from text that every machine with this package has: a quickstart without a download.

The domains differ in size and in how hard they are, so the mixture is skewed and small domains repeat, which is what
a robust mixture is for.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from drpruning.prepare import installed
from drpruning.prepare.deduplicate import without_repeated_paragraphs
from drpruning.prepare.gather import Watch
from drpruning.prepare.manifest import Manifest
from drpruning.prepare.publish import finished, on_disk, published
from drpruning.prepare.split import HeldOut, digest, positions
from drpruning.prepare.tokenise import train_tokenizer
from drpruning.prepare.write import write_corpus

CONTENT = 1
"""Raised when the same installed packages yield another corpus than before."""

DOCUMENT_SIZE = 4096
"""Longer texts are cut, in characters: many small documents make a held-out set that stands for its domain."""

DOCUMENTS_PER_FILE = 4
"""Of source code and docstrings: a cap then spans many files."""

LARGEST_SOURCE = 300_000
"""Longer Python files are tables; parsing them takes seconds."""

TOKENIZER_SAMPLE = 200_000
"""Characters of each domain the tokenizer learns from: equal shares, so that small domains are heard."""


LARGEST_DOMAIN = 2_000_000
"""Characters taken of a domain at most: more would make the quickstart wait without teaching its model more."""

VOCAB_SIZE = 1536

DEMO_HELD_OUT = HeldOut(fraction=0.1, tokens=16384, most=0.2)


@dataclass(frozen=True)
class DemoDocuments:
    """The documents of one domain, in memory."""

    texts: list[str]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


def prepare_demo(
    out: Path | str,
    *,
    vocab_size: int = VOCAB_SIZE,
    cap: int = LARGEST_DOMAIN,
    held_out: HeldOut = DEMO_HELD_OUT,
    watch: Watch | None = None,
) -> Manifest:
    """Writes the demo corpus into ``out``, unless it is there already.

    | domain | text |
    |---|---|
    | ``python`` | the standard library's source |
    | ``cpp`` | C++ headers in torch's include folder |
    | ``math`` | docstrings of numpy, scipy and sympy |
    | ``ml`` | docstrings of torch and transformers |
    | ``stubs`` | ``.pyi`` type stubs of the installed packages |
    | ``readme`` | the packages' long descriptions |
    | ``licence`` | their licence texts |

    The result is a function of the installed versions and the arguments: two runs are byte-identical.

    Args:
        out: The corpus folder; absent or empty, or this very corpus.
        vocab_size: Of the byte-level BPE trained on the text.
        cap: Most characters taken for a domain.
        held_out: How much of each domain is held out.
        watch: Called as the work goes on.

    Raises:
        MissingExtraError: torch, transformers, numpy, scipy or sympy is not installed.
        CorpusError: ``out`` is taken, or holds a corpus made from something else.
        DiskError: ``out`` cannot be written.
        ConfigError: ``vocab_size`` is too small.
    """
    out = Path(out)
    sources = demo_fingerprint(vocab_size=vocab_size, cap=cap, held_out=held_out)
    if (manifest := finished(out, sources)) is not None:
        return manifest
    with on_disk(out), published(out) as folder:
        domains = {name: DemoDocuments(collect(texts(), cap)) for name, texts in DOMAINS.items()}
        samples = (text for domain in domains.values() for text in _sample(domain.texts, held_out))
        tokenizer = train_tokenizer(samples, vocab_size, name=f"demo-bpe-{vocab_size}")
        prepared = {"from": "demo", "sources": sources, "packages": installed.versions()}
        write_corpus(folder, domains, tokenizer, held_out=held_out, prepared=prepared, watch=watch)
    return Manifest.read(out)


def demo_fingerprint(
    *, vocab_size: int = VOCAB_SIZE, cap: int = LARGEST_DOMAIN, held_out: HeldOut = DEMO_HELD_OUT
) -> str:
    """SHA-256 of all that decides the demo corpus: arguments and installed versions. Reads no text."""
    decides = {
        "content": CONTENT,
        "vocab_size": vocab_size,
        "cap": cap,
        "held_out": asdict(held_out),
        "python": list(sys.version_info[:3]),
        "packages": installed.versions(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def collect(texts: Iterable[str], cap: int) -> list[str]:
    """Documents without repeated paragraphs, until ``cap`` characters are reached."""
    taken: list[str] = []
    size = 0
    for text in without_repeated_paragraphs(texts):
        taken.append(text[: cap - size])
        size += len(text)
        if size >= cap:
            break
    return taken


def cut(text: str, size: int = DOCUMENT_SIZE) -> Iterator[str]:
    r"""``text`` in pieces of at most ``size`` characters that end where a line ends, if lines are short enough.

    >>> list(cut("one\ntwo\nthree\n", 9))
    ['one\ntwo\n', 'three\n']
    """
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _code(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        yield from islice(cut(_read(path)), DOCUMENTS_PER_FILE)


def _docstrings(packages: Iterable[str]) -> Iterator[str]:
    for path in installed.package_sources(packages):
        if path.stat().st_size <= LARGEST_SOURCE:
            yield from islice(cut(installed.docstrings(_read(path))), DOCUMENTS_PER_FILE)


def _prose(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from cut(text)


DOMAINS: dict[str, Callable[[], Iterator[str]]] = {
    "python": lambda: _code(installed.standard_library()),
    "cpp": lambda: _code(installed.torch_headers()),
    "math": lambda: _docstrings(["numpy", "scipy", "sympy"]),
    "ml": lambda: _docstrings(["torch", "transformers"]),
    "stubs": lambda: _code(installed.stubs()),
    "readme": lambda: _prose(installed.readmes()),
    "licence": lambda: _prose(_read(path) for path in installed.licences()),
}


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")


def _sample(texts: list[str], held_out: HeldOut) -> list[str]:
    """The start of a domain, without any document that could be held out."""
    trained = positions([digest(text) for text in texts]) >= max(held_out.fraction, held_out.most)
    sample, size = [], 0
    for text, is_trained in zip(texts, trained.tolist(), strict=True):
        if is_trained and size < TOKENIZER_SAMPLE:
            sample.append(text)
            size += len(text)
    return sample
