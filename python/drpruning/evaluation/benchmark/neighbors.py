"""Find similar passages by the words of their first halves, weighted by tf-idf."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from drpruning.evaluation.benchmark.generator import draw_seed, shuffled
from drpruning.evaluation.benchmark.passages import Passage

BUCKETS = 1 << 18  # words are hashed: collisions are rare among the words of a held-out set
WORD = re.compile(r"\w+")
SAME_TEXT = 0.5
"""Jaccard index of word pairs above which a continuation is the true one with small changes."""

TOO_SIMILAR = 0.9
"""Cosine above which two first halves have the same meaning, so that the continuation of one may be right for both."""


@dataclass(frozen=True)
class Neighbors:
    """The passages of one domain and the similarity of their first halves.

    Args:
        passages: All passages of the domain.
        vectors: Vectors of unit length, ``[passages, BUCKETS]``.
    """

    passages: Sequence[Passage]
    vectors: csr_array

    @classmethod
    def of(cls, passages: Sequence[Passage]) -> Neighbors:
        """Compute tf-idf vectors of the first halves: (1 + ln count) ln(1 + N / documents), scaled to unit length."""
        counts = [Counter(map(_bucket, WORD.findall(item.first.lower()))) for item in passages]
        rows = np.repeat(np.arange(len(counts)), [len(item) for item in counts])
        columns = np.array([bucket for item in counts for bucket in item], dtype=np.int64)
        values = np.array([1 + np.log(number) for item in counts for number in item.values()], dtype=np.float64)
        held = np.bincount(columns, minlength=BUCKETS)
        values *= np.log1p(len(counts) / np.maximum(held, 1))[columns]
        norms = np.sqrt(np.bincount(rows, values**2, minlength=len(counts)))
        values /= np.maximum(norms, 1e-12)[rows]
        return cls(passages, csr_array((values, (rows, columns)), shape=(len(counts), BUCKETS)))

    def groups(self, size: int, num_neighbors: int, seed: int) -> list[list[Passage]]:
        """Group similar passages: no passage is in two groups, and in each group all continuations differ.

        A group is a passage, a second passage of its document if there is one, and others drawn from the
        ``num_neighbors`` most similar remaining passages. Groups depend only on the names of the passages and the seed.
        """
        left = {item.name for item in self.passages}
        found = []
        for passage in shuffled(self.passages, seed):
            if passage.name not in left:
                continue
            ranked = [item for item in self.ranked(passage) if item.name in left]
            near = shuffled(ranked[:num_neighbors], draw_seed(seed, passage.name))
            same_document = [item for item in near if item.document == passage.document]
            group = [passage]
            for item in (*same_document[:1], *near, *ranked[num_neighbors:]):
                if len(group) < size and not any(overlap(item, other) or same(item, other) for other in group):
                    group.append(item)
            if len(group) == size:
                found.append(group)
                left -= {item.name for item in group}
        return found

    def ranked(self, passage: Passage) -> list[Passage]:
        """Return the passages whose continuation can be a wrong choice for this one, the most similar first.

        Passages that share text with it are excluded, and passages whose continuation might be right as well.
        """
        similarity: NDArray[np.float64] = (self.vectors @ self.vectors[[passage.number]].T).toarray()[:, 0]
        order = np.argsort(-similarity, kind="stable")
        return [
            self.passages[at]
            for at in order
            if similarity[at] < TOO_SIMILAR
            and not overlap(passage, self.passages[at])
            and not same(passage, self.passages[at])
        ]


def overlap(passage: Passage, other: Passage) -> bool:
    """Return whether a half of one passage is a half of the other."""
    if passage.document != other.document:
        return False
    distance = abs(passage.start - other.start)
    return distance <= max(len(passage.first), len(other.first))


def same(passage: Passage, other: Passage) -> bool:
    """Return whether the two second halves are nearly the same text."""
    return alike(passage.second, other.second)


def alike(text: str, other: str) -> bool:
    """Return whether two texts share more than half of their word pairs, or one has none."""
    first, second = _pairs(text), _pairs(other)
    return len(first & second) > SAME_TEXT * len(first | second) or not (first and second)


@lru_cache(maxsize=1 << 15)  # every passage is compared with every other of its domain
def _pairs(text: str) -> frozenset[tuple[str, str]]:
    return frozenset(pairwise(WORD.findall(text.lower())))


def _bucket(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", errors="surrogatepass")) % BUCKETS
