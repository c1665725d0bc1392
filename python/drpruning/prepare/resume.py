"""Preparing again what is prepared already costs nothing: a fingerprint of all that decides a corpus is kept in it."""

from __future__ import annotations

from pathlib import Path

from drpruning.errors import CorpusError
from drpruning.prepare.manifest import Manifest
from drpruning.prepare.publish import MANIFEST, check_free


def finished(out: Path, sources: str) -> Manifest | None:
    """The corpus in ``out`` if it was made from these sources, or None if ``out`` is free for a new one.

    Args:
        out: The corpus folder asked for.
        sources: Fingerprint of the text, the tokenizer and the options.

    Raises:
        CorpusError: ``out`` holds a corpus of other sources, or something that is not a corpus.
    """
    if not (out / MANIFEST).exists():
        check_free(out)
        return None
    manifest = Manifest.read(out)
    if manifest.prepared.get("sources") != sources:
        raise CorpusError(
            f"{out} holds a corpus made from other text, options or versions", "Choose another folder, or remove it."
        )
    return manifest
