"""Documents that occur twice are kept once: which ones to drop, in memory that does not grow with the corpus.

Documents are numbered in the order of the corpus. Their digests are dealt into buckets by their first bits, on disk if
they are many; equal ones fall into the same bucket, which is sorted by itself. One bit for each document remains.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

AT_ONCE = 1 << 22
"""Documents sorted at once: 100 MB of digests, numbers and order."""

Digests = npt.NDArray[np.uint64]
"""``[documents, 2]``."""


class Marks:
    """A bit for each document.

    Args:
        bits: uint8, eight documents in each, the first in the lowest bit.
    """

    def __init__(self, bits: npt.NDArray[np.uint8]) -> None:
        self.bits = bits

    @classmethod
    def none(cls, count: int) -> Marks:
        """No document of ``count`` is marked."""
        return cls(np.zeros((count + 7) // 8, np.uint8))

    def add(self, numbers: npt.NDArray[np.int64]) -> None:
        """Marks documents."""
        np.bitwise_or.at(self.bits, numbers >> 3, np.left_shift(1, numbers & 7).astype(np.uint8))

    def of(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Whether each of ``count`` documents from ``first`` on is marked."""
        low, high = first // 8, (first + count + 7) // 8
        bits = np.unpackbits(self.bits[low:high], bitorder="little")
        return bits[first - 8 * low :][:count].astype(np.bool_)


def duplicates(digests: Iterable[Digests], count: int, folder: Path, at_once: int = AT_ONCE) -> Marks:
    """Marks every document that an earlier one equals.

    Args:
        digests: Of the documents in order.
        count: How many there are.
        folder: Where buckets may be written; left as it was.
        at_once: Documents sorted at once.
    """
    marks = Marks.none(count)
    bits = max((count + at_once - 1) // at_once - 1, 0).bit_length()
    if bits == 0:
        every = list(digests)
        if every:
            marks.add(_repeated(np.concatenate(every), np.arange(count)))
        return marks
    with TemporaryDirectory(dir=folder, prefix=".digests.") as name:
        buckets = [Path(name) / str(bucket) for bucket in range(1 << bits)]
        files = [bucket.open("wb") for bucket in buckets]
        try:
            first = 0
            for part in digests:
                _deal(part, first, bits, files)
                first += len(part)
        finally:
            for file in files:
                file.close()
        for bucket in buckets:
            records = np.fromfile(bucket, np.uint64).reshape(-1, 3)
            marks.add(_repeated(records[:, :2], records[:, 2].astype(np.int64)))
            bucket.unlink()
    return marks


def _deal(part: Digests, first: int, bits: int, files: list) -> None:  # type: ignore[type-arg]
    """Appends each digest, with its number, to the file of its first bits."""
    bucket = (part[:, 0] >> np.uint64(64 - bits)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    numbers = np.arange(first, first + len(part), dtype=np.uint64)
    records = np.column_stack([part, numbers])[order]
    starts = np.searchsorted(bucket[order], np.arange(len(files) + 1))
    for file, low, high in zip(files, starts, starts[1:], strict=False):
        records[low:high].tofile(file)


def _repeated(digests: Digests, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of the documents that equal one of a smaller number; numbers rise."""
    if len(numbers) < 2:
        return numbers[:0]
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: among equals the smaller number first
    equal = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    repeated: npt.NDArray[np.int64] = numbers[order[1:][equal]]
    return repeated
