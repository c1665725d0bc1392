"""Repeated paragraphs, which would let a model read held-out text during training, are kept once.

Licences and templated docstrings share whole paragraphs while no two files are the same, so comparing documents is not
enough. As in CCNet (Wenzek et al. 2020, section 3.1) text is compared by paragraph after normalisation: lower case,
letters only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*?(?=\S|[ \t])")
_NOT_LETTERS = re.compile(r"[^a-z]+")


def without_repeated_paragraphs(
    documents: Iterable[str], *, at_least: int = 100, shortest_document: int = 200
) -> Iterator[str]:
    r"""``documents`` in order, each without the paragraphs that an earlier one (or itself, earlier) had.

    Args:
        documents: Texts; paragraphs are separated by blank lines.
        at_least: Paragraphs with fewer letters are kept always: headings, ``Returns``, ``}``.
        shortest_document: What is left of a document is dropped below this many characters.

    >>> notice = "Redistribution and use in source and binary forms are permitted " * 2
    >>> texts = [f"One\n\n{notice}", f"Two\n\n{notice.upper()}"]
    >>> list(without_repeated_paragraphs(texts, shortest_document=0))[1]
    'Two\n'
    """
    seen: set[bytes] = set()
    for document in documents:
        kept = []
        for paragraph in _BLANK_LINES.split(document):
            letters = _NOT_LETTERS.sub(" ", paragraph.lower()).strip()
            if len(letters) >= at_least:
                digest = hashlib.blake2b(letters.encode(), digest_size=16).digest()
                if digest in seen:
                    continue
                seen.add(digest)
            kept.append(paragraph)
        text = "\n\n".join(kept).strip("\n") + "\n"
        if len(text) >= shortest_document:
            yield text
