"""Holdout: selects held-out documents by a keyed hash of their group, so that a group is always in one split.

A group is the documents of one source, such as a repository or a package; a document without a group is a group of its
own. The hash gives a group two positions in [0, 1). Groups with a first position below the domain's fraction are held
out; of these, groups with a second position below :data:`~drpruning.corpus.manifest.VALIDATION_SHARE` are validation
text, the others test text. The positions depend on the group only, or on the text of a document without a group: not on
the order, the number of workers, or other documents.

The fraction is one of ``fraction``, ``2 fraction``, ``4 fraction``, ..., ``max_fraction``: if the first yields too
little test text for a stable loss, the next is used. More data can only lower the fraction, so a document may move from
held-out to training, never from training to held-out, nor between validation and test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drpruning.corpus.manifest import SPLITS, VALIDATION_SHARE
from drpruning.errors import ConfigError

KEY = b"drpruning/held-out/1"
"""Key of the hash: constant, so that all corpora of this package agree on the split of a document."""

GROUP_KEY = b"drpruning/group/1"
"""Key of the hash of a group's name."""

TRAIN, VALIDATION, TEST = range(len(SPLITS))
"""Indices of :data:`~drpruning.corpus.manifest.SPLITS`."""


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Size of the holdout of every domain.

    Args:
        fraction: Expected share of the groups, in [0, 1); 0 holds out nothing.
        min_tokens: Test tokens that a stable loss needs; the fraction doubles until the test has this many, and
            validation a quarter of it.
        min_groups: Test groups that an interval needs: with fewer than about 50 of them, intervals of the worst domain
            are too narrow. The fraction doubles until the test has this many.
        max_fraction: Largest fraction that doubling may reach.
    """

    fraction: float = 0.05
    min_tokens: int = 65_536
    min_groups: int = 50
    max_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"holdout fraction is {self.fraction:g}; expected at least 0 and below 1")
        if not 0 <= self.max_fraction < 1:
            raise ConfigError(f"holdout max_fraction is {self.max_fraction:g}; expected at least 0 and below 1")
        if self.min_tokens < 0 or self.min_groups < 0:
            raise ConfigError(
                f"holdout min_tokens and min_groups are {self.min_tokens} and {self.min_groups}; expected at least 0"
            )

    def candidates(self) -> list[float]:
        """Return the fractions that a domain may have: the first, its doublings, and the largest.

        >>> Holdout(fraction=0.05, max_fraction=0.3).candidates()
        [0.05, 0.1, 0.2, 0.3]
        """
        fractions = [self.fraction]
        while 0 < fractions[-1] < self.max_fraction:
            fractions.append(min(2 * fractions[-1], self.max_fraction))
        return fractions

    def is_enough(self, *, groups: int, test_tokens: int, validation_tokens: int) -> bool:
        """Return whether a domain's test has enough groups, and test and validation enough tokens."""
        enough = test_tokens >= self.min_tokens and validation_tokens >= max(VALIDATION_SHARE * self.min_tokens, 1)
        return enough and groups >= self.min_groups

    def to_notes(self) -> dict[str, float]:
        """Return the settings with the keys of ``corpus.json`` and of fingerprints."""
        return {
            "fraction": self.fraction,
            "tokens": self.min_tokens,
            "groups": self.min_groups,
            "most": self.max_fraction,
        }

    @classmethod
    def from_notes(cls, notes: dict[str, float]) -> Holdout:
        """Read the settings that :meth:`to_notes` returned."""
        return cls(
            fraction=notes["fraction"],
            min_tokens=int(notes["tokens"]),
            min_groups=int(notes["groups"]),
            max_fraction=notes["most"],
        )


def document_digest(text: str) -> bytes:
    """Return the 16-byte digest of a document, which decides its position and identifies duplicates."""
    return keyed_hash(text.encode("utf-8", errors="surrogatepass")).digest()


def keyed_hash(data: bytes = b"") -> hashlib.blake2b:
    """Return the hash of :func:`document_digest`, to be updated with a document's UTF-8."""
    return hashlib.blake2b(data, key=KEY, digest_size=16)


def group_digest(name: str) -> bytes:
    """Return the 16-byte digest of a group, which decides the split of its documents in every domain."""
    return hashlib.blake2b(name.encode("utf-8", errors="surrogatepass"), key=GROUP_KEY, digest_size=16).digest()


def hash_positions(digests: npt.NDArray[np.uint64] | Sequence[bytes], word: int = 0) -> npt.NDArray[np.float64]:
    """Return the position of each group in [0, 1): the first 53 bits of a word of its digest.

    Args:
        digests: Digests as bytes, or as big-endian words: uint64 ``[documents, 2]``.
        word: 0: the position that decides whether the group is held out; 1: the one that divides held-out groups.

    >>> bool(0 <= hash_positions([document_digest("a document")])[0] < 1)
    True
    """
    if not isinstance(digests, np.ndarray):
        digests = np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    return (digests[:, word] >> np.uint64(11)).astype(np.float64) / 2.0**53


def assign_splits(groups: npt.NDArray[np.uint64] | Sequence[bytes], fraction: float) -> npt.NDArray[np.int8]:
    """Return the split of each document, an index of :data:`~drpruning.corpus.manifest.SPLITS`: int8 ``[documents]``.

    Args:
        groups: Digests of the documents' groups, as of :func:`hash_positions`.
        fraction: Share of the groups that is held out.
    """
    held_out = np.where(hash_positions(groups, 1) < VALIDATION_SHARE, VALIDATION, TEST)
    return np.where(hash_positions(groups) < fraction, held_out, TRAIN).astype(np.int8)
