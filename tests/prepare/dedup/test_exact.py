"""Repeated digests are marked, whether they are sorted in memory or on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drpruning.prepare.dedup.exact import Marks, duplicates


@pytest.mark.parametrize("at_once", [1 << 20, 16, 3])
def test_all_but_the_first_are_marked(tmp_path: Path, at_once: int) -> None:
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
    marks = duplicates(iter([digests[:7], digests[7:7], digests[7:]]), 60, tmp_path, at_once)
    assert marks.of(0, 60).tolist() == expected
    assert marks.of(11, 30).tolist() == expected[11:41]
    assert list(tmp_path.iterdir()) == []


def test_marks_of_nothing() -> None:
    assert Marks.none(0).of(0, 0).tolist() == []
    marks = Marks.none(9)
    marks.add(np.array([8, 0, 1]))
    assert marks.of(0, 9).tolist() == [True, True, *[False] * 6, True]
