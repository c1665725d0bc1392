"""Chunked tokenization of long documents, with the tokens of the whole document.

A tokenizer needs many times the memory of its text, so a long document is cut where the cut changes no token:
preferably after a line, else before a word. Every candidate is tested, since a tokenizer may insert a space at the
start of a text, or merge across lines: a window around the cut must have the same tokens, whole and in two parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

CHUNK_CHARACTERS = 1 << 18
"""Longest chunk: a token takes about 100 bytes until it is written, and a character may become several tokens."""

WINDOW = 256
"""Characters on each side of a cut that are tokenized to test it."""

CANDIDATES = 8
"""Places of each kind that are tested before the next kind."""

Encode = Callable[[str], Sequence[int]]

_AFTER_LINE = re.compile(r"(?<=\n)(?=\S)")
_BEFORE_WORD = re.compile(r"(?<=\S)(?=\s\S)")


@dataclass(frozen=True)
class Chunk:
    """A chunk of a document.

    Args:
        text: The text.
        context: Text before the chunk that is tokenized with it, so that the chunk does not look like the start of a
            text; the tokens of the context are then removed.
        exact: Whether the cut before the chunk changes no token.
    """

    text: str
    context: str = ""
    exact: bool = True


def split_into_chunks(texts: Iterator[str], encode: Encode, longest: int = CHUNK_CHARACTERS) -> Iterator[Chunk]:
    """Split a document into chunks to tokenize.

    Args:
        texts: The document, in parts of any size.
        encode: Returns the tokens of a text.
        longest: Characters of a chunk.
    """
    pending, context, exact = "", "", True
    for text in texts:
        pending += text
        while len(pending) > longest + WINDOW:
            at, next_context, next_exact = _find_cut(pending, encode, longest)
            yield Chunk(pending[:at], context, exact)
            pending, context, exact = pending[at:], next_context, next_exact
    if pending:
        yield Chunk(pending, context, exact)


def encode_chunk(chunk: Chunk, encode: Encode) -> Sequence[int]:
    """Return the tokens of a chunk, without those of its context."""
    if not chunk.context:
        return encode(chunk.text)
    before = encode(chunk.context)
    return encode(chunk.context + chunk.text)[len(before) :]


def _find_cut(text: str, encode: Encode, longest: int) -> tuple[int, str, bool]:
    """Return a place to cut, at most ``longest``; the context of the next chunk; whether the cut changes no token."""
    low = max(longest - (longest >> 2), 1)
    for pattern in (_AFTER_LINE, _BEFORE_WORD):
        places = [match.start() for match in pattern.finditer(text, low, longest)]
        for at in places[: -CANDIDATES - 1 : -1]:
            context = text[at - 1 : at]
            if _keeps_tokens(text, at, context, encode):
                return at, context, True
    for at in range(longest, longest - CANDIDATES, -1):  # text without any white space
        context = text[at - WINDOW : at]
        if at > WINDOW and _keeps_tokens(text, at, context, encode):
            return at, context, True
    return longest, text[longest - 1 : longest], False


def _keeps_tokens(text: str, at: int, context: str, encode: Encode) -> bool:
    left, right = text[max(at - WINDOW, 0) : at], text[at : at + WINDOW]
    before, after = list(encode(context)), list(encode(context + right))
    if after[: len(before)] != before:
        return False
    return list(encode(left + right)) == list(encode(left)) + after[len(before) :]
