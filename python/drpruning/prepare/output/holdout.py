"""Which documents are held out: decided by a keyed hash of the content, so a document is always on the same side.

A document's hash puts it at a position in [0, 1). Those below the domain's fraction are held out. The position depends
on the text alone: not on the order, the number of workers, or what else is in the corpus. A fraction is only ever one
of ``base``, ``2 base``, ``4 base``, ...: where the base holds out too little for a stable loss, the next doubling is
taken. More data can only lower that fraction: a document then moves from held out to training, never the other way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drpruning.errors import ConfigError

KEY = b"drpruning/held-out/1"
"""Key of the hash: fixed, so that every corpus made by this package agrees on the side of a document."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How much of every domain is held out.

    Args:
        fraction: Expected share of the documents, in [0, 1); 0 holds out nothing.
        tokens: Wanted at least, for a stable loss; the fraction doubles until they are reached ...
        most: ... but never passes this.
    """

    fraction: float = 0.05
    tokens: int = 16384
    most: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"held-out share is {self.fraction:g}; it must be at least 0 and below 1")

    def candidates(self) -> list[float]:
        """The fractions a domain may have: the base and its doublings.

        >>> HeldOut(fraction=0.05).candidates()
        [0.05, 0.1, 0.2]
        """
        found = [self.fraction]
        while 0 < 2 * found[-1] <= self.most:
            found.append(2 * found[-1])
        return found

    def choose(self, held_out_tokens: Sequence[int]) -> float:
        """The smallest candidate that holds out enough.

        Args:
            held_out_tokens: What each candidate would hold out.
        """
        pairs = zip(self.candidates(), held_out_tokens, strict=True)
        return next((fraction for fraction, held in pairs if held >= self.tokens), self.candidates()[-1])


def digest(text: str) -> bytes:
    """16 bytes that stand for a document: equal for equal texts, and the source of its position."""
    return keyed_hash(text.encode("utf-8", errors="surrogatepass")).digest()


def keyed_hash(data: bytes = b"") -> hashlib.blake2b:
    """The hash behind :func:`digest`, to be fed with a document's UTF-8."""
    return hashlib.blake2b(data, key=KEY, digest_size=16)


def positions(digests: list[bytes]) -> npt.NDArray[np.float64]:
    """Position of each document in [0, 1): the first 53 bits of its digest.

    >>> bool(0 <= positions([digest("a document")])[0] < 1)
    True
    """
    return positions_of(np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64))


def positions_of(digests: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The same from digests as big-endian words: uint64 ``[documents, 2]``."""
    return (digests[:, 0] >> np.uint64(11)).astype(np.float64) / 2.0**53


def fraction_for(where: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64], rule: HeldOut) -> float:
    """The fraction a domain needs: the smallest doubling of the base that holds out enough tokens.

    Args:
        where: Position of each document, from :func:`positions`.
        tokens: Its length in tokens.
        rule: What is wanted.

    >>> fraction_for(np.array([0.03, 0.09, 0.5]), np.array([10, 10, 10]), HeldOut(fraction=0.05, tokens=20))
    0.1
    """
    candidates = rule.candidates()
    return rule.choose([int(tokens[where < fraction].sum()) for fraction in candidates])
