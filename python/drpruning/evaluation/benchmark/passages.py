"""Passages of held-out documents, each split into two halves of which the second continues the first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

LETTERS = 0.5
"""Minimum share of letters and digits among the non-blank characters of a half; excludes tables and rulers."""

SPREAD = 0.25  # relative deviation of a half's length, so that it can end with a sentence
BREAKS = (re.compile(r"\n(?=\s*\n)"), re.compile(r"(?<=[.;:!?{}])\s"), re.compile(r"\n"), re.compile(r"\s"))
"""Where a half may end, best first: a paragraph, a sentence or statement, a line, a word."""


@dataclass(frozen=True)
class Passage:
    """Two halves of running text; the second begins with the white space that separates them.

    Args:
        domain: Its domain.
        document: Index of its document among the domain's held-out documents.
        start: Character of the document at which the first half begins.
        number: Index among the domain's passages, in the order of the text.
        first: The first half.
        second: The second half.
    """

    domain: str
    document: int
    start: int
    number: int
    first: str
    second: str

    @property
    def name(self) -> str:
        """Unique name in the corpus."""
        return f"{self.domain}/{self.document}/{self.start}"

    @property
    def lead(self) -> str:
        """White space at the beginning of the second half."""
        return self.second[: len(self.second) - len(self.second.lstrip())]


def find_passages(domain: str, texts: Sequence[str], context_chars: int) -> list[Passage]:
    """Find all passages of a domain's documents.

    A document is split into parts of about ``context_chars`` characters. A part ends with a paragraph, a sentence, a
    line or at least a word. Two consecutive parts are a passage, so a part is the second half of one passage and the
    first half of the next.

    Args:
        domain: Name of the domain.
        texts: The documents.
        context_chars: Characters of each half, give or take a quarter.

    Example:
        >>> text = "It rained all night. The river rose. By dawn the bridge was gone. No one crossed."
        >>> [(item.first, item.second) for item in find_passages("web", [text], context_chars=34)][0]
        ('It rained all night. The river rose.', ' By dawn the bridge was gone.')
    """
    found: list[Passage] = []
    for document, text in enumerate(texts):
        places = [0, *_breaks(text, context_chars)]
        parts = [text[begin:end] for begin, end in pairwise(places)]
        for start, (first, second) in zip(places, pairwise(parts), strict=False):
            if _is_text(first, context_chars) and _is_text(second, context_chars):
                found.append(Passage(domain, document, start, len(found), first, second))
    return found


def cut(text: str, most: int) -> str:
    """Return at most the first ``most`` characters of a text, up to the end of a word if there is one."""
    if len(text) <= most:
        return text
    shortened = text[:most]
    ends = [match.start() for match in re.finditer(r"\s", shortened)]
    if text[most : most + 1].isspace() or not ends or ends[-1] < most // 2:
        return shortened
    return shortened[: ends[-1]].rstrip()


def _breaks(text: str, context_chars: int) -> Iterator[int]:
    """Yield the ends of the parts; a short rest at the end of a document is omitted."""
    at, short, long = 0, round(context_chars * (1 - SPREAD)), round(context_chars * (1 + SPREAD))
    while at + short < len(text):
        window = text[at + short : at + long + 1]
        if at + short + len(window) == len(text) and len(text) - at <= long:
            yield len(text)
            return
        for pattern in BREAKS:
            places = [at + short + match.start() for match in pattern.finditer(window)]
            if places:
                at = min(places, key=lambda place: (abs(place - at - context_chars), place))
                break
        else:
            at += context_chars
        yield at


def _is_text(part: str, context_chars: int) -> bool:
    dense = "".join(part.split())
    return len(part.strip()) >= context_chars * (1 - SPREAD) / 2 and sum(map(str.isalnum, dense)) >= LETTERS * len(
        dense
    )
