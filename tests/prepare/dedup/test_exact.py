"""Exact duplicates are found, whether digests are sorted in memory or on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drpruning.prepare.dedup.exact import DocumentBitmap, find_duplicates


@pytest.mark.parametrize("sorted_documents", [1 << 20, 16, 3])
def test_all_but_the_first_are_found(tmp_path: Path, sorted_documents: int) -> None:
    rng = np.random.default_rng(7)
    digests = rng.integers(0, 2**64, (20, 2), np.uint64)[rng.integers(0, 20, 60)]
    digests[1::7, 0] = digests[0, 0]  # equal in the first half alone is not equal
    digests[::5, 1] += np.arange(12, dtype=np.uint64) % np.uint64(2)
    seen: set[tuple[int, int]] = set()
    expected = []
    for first, second in digests.tolist():
        expected.append((first, second) in seen)
        seen.add((first, second))
    assert sum(expected) > 10
    bitmap = find_duplicates(iter([digests[:7], digests[7:7], digests[7:]]), 60, tmp_path, sorted_documents)
    assert bitmap.read(0, 60).tolist() == expected
    assert bitmap.read(11, 30).tolist() == expected[11:41]
    assert list(tmp_path.iterdir()) == []


def test_a_bitmap() -> None:
    assert DocumentBitmap.zeros(0).read(0, 0).tolist() == []
    bitmap = DocumentBitmap.zeros(9)
    bitmap.set(np.array([8, 0, 1]))
    assert bitmap.read(0, 9).tolist() == [True, True, *[False] * 6, True]
