"""Long documents are tokenised part by part, with the tokens that the whole would have.

The memory of a tokenizer is many times that of its text. A document is therefore cut where a cut changes no token:
preferably after a line, else before a word. Whether a place will do is tried, not assumed, since a tokenizer may put a
space before what it takes for the beginning of a text, or merge across lines: the tokens of a window around the cut,
tokenised whole and in two parts, must agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

LONGEST_PART = 1 << 18
"""Characters tokenised at once: a token takes about 100 bytes until it is written, and a character may be several."""

WINDOW = 256
"""Characters on each side of a cut that are tokenised to see whether it changes anything."""

TRIED = 8
"""Places of each kind that are tried before the next kind is."""

Encode = Callable[[str], Sequence[int]]

_AFTER_A_LINE = re.compile(r"(?<=\n)(?=\S)")
_BEFORE_A_WORD = re.compile(r"(?<=\S)(?=\s\S)")


@dataclass(frozen=True)
class Part:
    """A part of a document.

    Args:
        text: The part.
        context: What stands before it, to be tokenised with it so that it does not look like a beginning; the tokens
            of the context alone are then taken off.
        exact: Whether the cut before it changes no token.
    """

    text: str
    context: str = ""
    exact: bool = True


def parts_of(texts: Iterator[str], encode: Encode, longest: int = LONGEST_PART) -> Iterator[Part]:
    """The parts to tokenise of a document that comes in pieces.

    Args:
        texts: The document; how it is divided does not matter.
        encode: The tokens of a text.
        longest: Characters of a part.
    """
    waiting, context, exact = "", "", True
    for text in texts:
        waiting += text
        while len(waiting) > longest + WINDOW:
            at, next_context, next_exact = _cut(waiting, encode, longest)
            yield Part(waiting[:at], context, exact)
            waiting, context, exact = waiting[at:], next_context, next_exact
    if waiting:
        yield Part(waiting, context, exact)


def tokens_of(part: Part, encode: Encode) -> Sequence[int]:
    """The tokens of a part: those of its context taken off."""
    if not part.context:
        return encode(part.text)
    before = encode(part.context)
    return encode(part.context + part.text)[len(before) :]


def _cut(text: str, encode: Encode, longest: int) -> tuple[int, str, bool]:
    """A place to cut at, at most ``longest``; the context of what follows; whether it changes no token."""
    low = max(longest - (longest >> 2), 1)
    for places in (_AFTER_A_LINE, _BEFORE_A_WORD):
        found = [match.start() for match in places.finditer(text, low, longest)]
        for at in found[: -TRIED - 1 : -1]:
            context = text[at - 1 : at]
            if _agrees(text, at, context, encode):
                return at, context, True
    for at in range(longest, longest - TRIED, -1):  # text without any white space
        context = text[at - WINDOW : at]
        if at > WINDOW and _agrees(text, at, context, encode):
            return at, context, True
    return longest, text[longest - 1 : longest], False


def _agrees(text: str, at: int, context: str, encode: Encode) -> bool:
    left, right = text[max(at - WINDOW, 0) : at], text[at : at + WINDOW]
    before, after = list(encode(context)), list(encode(context + right))
    if after[: len(before)] != before:
        return False
    return list(encode(left + right)) == list(encode(left)) + after[len(before) :]
