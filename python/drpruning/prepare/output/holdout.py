"""Holdout: selects held-out documents by a keyed hash of their text, so that a document is always on the same side.

The hash gives a document a position in [0, 1). Documents with a position below the domain's fraction are held out. The
position depends on the text only: not on the order, the number of workers, or other documents. The fraction is one of
``fraction``, ``2 fraction``, ``4 fraction``, ...: if the first holds out too few tokens for a stable loss, the next is
used. More data can only lower the fraction, so a document may move from held-out to training, never from training to
held-out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drpruning.errors import ConfigError

KEY = b"drpruning/held-out/1"
"""Key of the hash: constant, so that all corpora of this package agree on the side of a document."""


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Size of the holdout of every domain.

    Args:
        fraction: Expected share of the documents, in [0, 1); 0 holds out nothing.
        min_tokens: Held-out tokens that a stable loss needs; the fraction doubles until it holds out this many.
        max_fraction: Largest fraction that doubling may reach.
    """

    fraction: float = 0.05
    min_tokens: int = 16384
    max_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"holdout fraction is {self.fraction:g}; expected at least 0 and below 1")

    def candidates(self) -> list[float]:
        """Return the fractions that a domain may have: the first and its doublings.

        >>> Holdout(fraction=0.05).candidates()
        [0.05, 0.1, 0.2]
        """
        fractions = [self.fraction]
        while 0 < 2 * fractions[-1] <= self.max_fraction:
            fractions.append(2 * fractions[-1])
        return fractions

    def choose(self, held_out_tokens: Sequence[int]) -> float:
        """Return the smallest candidate that holds out enough tokens, else the largest.

        Args:
            held_out_tokens: Number of tokens that each candidate holds out.
        """
        pairs = zip(self.candidates(), held_out_tokens, strict=True)
        return next((fraction for fraction, held in pairs if held >= self.min_tokens), self.candidates()[-1])

    def to_notes(self) -> dict[str, float]:
        """Return the settings with the keys of ``corpus.json`` and of fingerprints."""
        return {"fraction": self.fraction, "tokens": self.min_tokens, "most": self.max_fraction}

    @classmethod
    def from_notes(cls, notes: dict[str, float]) -> Holdout:
        """Read the settings that :meth:`to_notes` returned."""
        return cls(fraction=notes["fraction"], min_tokens=int(notes["tokens"]), max_fraction=notes["most"])


def document_digest(text: str) -> bytes:
    """Return the 16-byte digest of a document, which decides its position and identifies duplicates."""
    return keyed_hash(text.encode("utf-8", errors="surrogatepass")).digest()


def keyed_hash(data: bytes = b"") -> hashlib.blake2b:
    """Return the hash of :func:`document_digest`, to be updated with a document's UTF-8."""
    return hashlib.blake2b(data, key=KEY, digest_size=16)


def hash_positions(digests: npt.NDArray[np.uint64] | Sequence[bytes]) -> npt.NDArray[np.float64]:
    """Return the position of each document in [0, 1): the first 53 bits of its digest.

    Args:
        digests: Digests as bytes, or as big-endian words: uint64 ``[documents, 2]``.

    >>> bool(0 <= hash_positions([document_digest("a document")])[0] < 1)
    True
    """
    if not isinstance(digests, np.ndarray):
        digests = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    return (digests[:, 0] >> np.uint64(11)).astype(np.float64) / 2.0**53
