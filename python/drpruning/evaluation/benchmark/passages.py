"""Passages of held-out documents, each cut into two halves of which the second follows from the first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

LETTERS = 0.5
"""Least share of letters and digits among the characters of a half that are not blank: tables and rulers say little."""

SPREAD = 0.25  # a half may be so much shorter or longer than asked for, so that it can end where a sentence does
BREAKS = (re.compile(r"\n(?=\s*\n)"), re.compile(r"(?<=[.;:!?{}])\s"), re.compile(r"\n"), re.compile(r"\s"))
"""Where a half may end, best first: a paragraph, a sentence or statement, a line, a word."""


@dataclass(frozen=True)
class Passage:
    """Two halves of running text; the second begins with the white space that separates them.

    Args:
        domain: Its domain.
        document: Place of its document among the domain's held-out ones.
        start: Character of the document at which the first half begins.
        number: Place among the domain's passages; that of the neighbour before it in the text is one less.
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
        """What tells it from every other passage of the corpus."""
        return f"{self.domain}/{self.document}/{self.start}"

    @property
    def lead(self) -> str:
        """White space at the beginning of the second half."""
        return self.second[: len(self.second) - len(self.second.lstrip())]


def find_passages(domain: str, texts: Sequence[str], context_chars: int) -> list[Passage]:
    """Every passage of a domain's documents.

    A document is cut into pieces of about ``half`` characters that end where a paragraph, a sentence, a line or at
    least a word does; each two pieces that follow each other are a passage. So a piece is the second half of one
    passage and the first half of the next.

    Args:
        domain: Its name.
        texts: The documents.
        half: Characters of each half, more or less by a quarter.

    Example:
        >>> text = "It rained all night. The river rose. By dawn the bridge was gone. No one crossed."
        >>> [(item.first, item.second) for item in find_passages("web", [text], context_chars=34)][0]
        ('It rained all night. The river rose.', ' By dawn the bridge was gone.')
    """
    found: list[Passage] = []
    for document, text in enumerate(texts):
        places = [0, *_breaks(text, context_chars)]
        pieces = [text[begin:end] for begin, end in pairwise(places)]
        for start, (first, second) in zip(places, pairwise(pieces), strict=False):
            if _is_text(first, context_chars) and _is_text(second, context_chars):
                found.append(Passage(domain, document, start, len(found), first, second))
    return found


def cut(text: str, most: int) -> str:
    """The first ``most`` characters of a text at most, up to the end of a word unless a word is longer than all."""
    if len(text) <= most:
        return text
    shortened = text[:most]
    ends = [match.start() for match in re.finditer(r"\s", shortened)]
    if text[most : most + 1].isspace() or not ends or ends[-1] < most // 2:
        return shortened
    return shortened[: ends[-1]].rstrip()


def _breaks(text: str, context_chars: int) -> Iterator[int]:
    """Ends of the pieces; what is left at the end of a document and is too short is not taken."""
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


def _is_text(piece: str, context_chars: int) -> bool:
    dense = "".join(piece.split())
    return len(piece.strip()) >= context_chars * (1 - SPREAD) / 2 and sum(map(str.isalnum, dense)) >= LETTERS * len(
        dense
    )
