"""Your own text to a corpus: domains given as files, a tokenizer given by path or name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from drpruning.errors import ConfigError
from drpruning.prepare.documents import FileDocuments
from drpruning.prepare.manifest import Manifest
from drpruning.prepare.publish import finished, published
from drpruning.prepare.split import HeldOut
from drpruning.prepare.tokenise import load_tokenizer
from drpruning.prepare.write import Watch, check_domain_names, write_corpus

CONTENT = 1
"""Raised when the same text and options yield another corpus than before."""


def prepare(
    out: Path | str,
    domains: Mapping[str, Path | str | Sequence[Path | str]],
    tokenizer: str,
    *,
    held_out: HeldOut = HeldOut(),  # noqa: B008 -- frozen
    text_field: str = "text",
    watch: Watch | None = None,
) -> Manifest:
    """Writes a corpus into ``out``, unless the same one is there already.

    Args:
        out: The corpus folder; absent or empty, or this very corpus.
        domains: For each domain files, folders or patterns of ``.txt`` and ``.jsonl``, plain or ``.gz``.
        tokenizer: A folder or ``tokenizer.json``, or a name on the Hugging Face hub.
        held_out: How much of each domain is held out.
        text_field: The key of a ``.jsonl`` object that holds the text.
        watch: Called as the work goes on.

    Raises:
        ConfigError: An argument cannot work: a missing file, no domain, a tokenizer without end token.
        CorpusError: ``out`` is taken or holds another corpus, text cannot be read, or a domain is empty or too small.
    """
    out = Path(out)
    if not domains:
        raise ConfigError("a corpus needs at least one domain")
    check_domain_names(domains)
    text = {
        name: FileDocuments([paths] if isinstance(paths, Path | str) else paths, text_field)
        for name, paths in domains.items()
    }
    with_end = load_tokenizer(tokenizer)
    decides = {
        "content": CONTENT,
        "tokenizer": [with_end.sha256, with_end.end_token],
        "held_out": asdict(held_out),
        "text": {name: documents.fingerprint() for name, documents in text.items()},
    }
    sources = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    if (manifest := finished(out, sources)) is not None:
        return manifest
    with published(out) as folder:
        write_corpus(folder, text, with_end, held_out=held_out, prepared={"sources": sources}, watch=watch)
    return Manifest.read(out)
