"""Overlap of held-out documents with other text: the share of their token 13-grams that also occur there.

N-grams are compared as 64-bit hashes: two different ones of 10^7 are equal with a probability of 3 in a million.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NGRAM = 13
"""Tokens of an n-gram. GPT-3 (Brown et al. 2020, appendix C) looks for overlaps of 13 words, Llama 2 (Touvron et al.
2023, A.6) for overlaps of more than 10 tokens."""

Tokens = npt.NDArray[np.integer]


def ngram_hashes(
    tokens: Tokens, lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return the hash of every n-gram inside one document, and the number of its document.

    Args:
        tokens: Ids of the documents, concatenated: integers ``[tokens]``, 0 or above.
        lengths: Tokens of each document, int64 ``[documents]``.

    Returns:
        uint64 and int64 ``[n-grams]``.
    """
    count = max(len(tokens) - NGRAM + 1, 0)
    hashes = np.zeros(count, np.uint64)
    mixed = _mix(tokens.astype(np.uint64))
    for offset in range(NGRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + mixed[offset : offset + count]
    owners = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    inside = owners[:count] == owners[NGRAM - 1 :]
    return _mix(hashes[inside]), owners[:count][inside]


def overlap_shares(
    tokens: Tokens, lengths: npt.NDArray[np.int64], other: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """Return the share of each document's n-grams that occur in other text: float64 ``[documents]``.

    A document without an n-gram has the share 0.

    Args:
        tokens: As of :func:`ngram_hashes`.
        lengths: As of :func:`ngram_hashes`.
        other: Hashes of the other text's n-grams, ascending.
    """
    hashes, owners = ngram_hashes(tokens, lengths)
    order = np.argsort(hashes)  # a search for ascending values stays in the processor's caches
    hashes, owners = hashes[order], owners[order]
    found = np.zeros(len(hashes), np.bool_)
    if len(other):
        places = np.searchsorted(other, hashes)
        found = other[np.minimum(places, len(other) - 1)] == hashes
    totals = np.bincount(owners, minlength=len(lengths))
    return np.bincount(owners, weights=found, minlength=len(lengths)) / np.maximum(totals, 1)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread the bits of each value (the finaliser of splitmix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
