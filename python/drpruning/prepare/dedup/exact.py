"""Exact deduplication: finds documents that equal an earlier one, in memory that does not grow with the corpus.

Documents are numbered in the order of the corpus. Their digests are partitioned into buckets by their first bits, on
disk if there are many. Equal digests fall into the same bucket, and each bucket is sorted separately. The result is
one bit per document.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

SORTED_DOCUMENTS = 1 << 22
"""Documents sorted at once: 100 MB of digests, numbers and order."""

Digests = npt.NDArray[np.uint64]
"""``[documents, 2]``."""


class DocumentBitmap:
    """A bit for each document.

    Args:
        bits: uint8, eight documents in each, the first in the lowest bit.
    """

    def __init__(self, bits: npt.NDArray[np.uint8]) -> None:
        self.bits = bits

    @classmethod
    def zeros(cls, count: int) -> DocumentBitmap:
        """Return a bitmap of ``count`` documents with no bit set."""
        return cls(np.zeros((count + 7) // 8, np.uint8))

    def set(self, numbers: npt.NDArray[np.int64]) -> None:
        """Set the bits of documents."""
        np.bitwise_or.at(self.bits, numbers >> 3, np.left_shift(1, numbers & 7).astype(np.uint8))

    def read(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return the bits of ``count`` documents from ``first`` on."""
        low, high = first // 8, (first + count + 7) // 8
        bits = np.unpackbits(self.bits[low:high], bitorder="little")
        return bits[first - 8 * low :][:count].astype(np.bool_)


def find_duplicates(
    digests: Iterable[Digests], count: int, folder: Path, sorted_documents: int = SORTED_DOCUMENTS
) -> DocumentBitmap:
    """Find every document that equals an earlier one.

    Args:
        digests: Digests of the documents in order.
        count: Number of documents.
        folder: Folder for temporary buckets.
        sorted_documents: Documents sorted at once.
    """
    bitmap = DocumentBitmap.zeros(count)
    bits = max((count + sorted_documents - 1) // sorted_documents - 1, 0).bit_length()
    if bits == 0:
        parts = list(digests)
        if parts:
            bitmap.set(_find_repeats(np.concatenate(parts), np.arange(count)))
        return bitmap
    with TemporaryDirectory(dir=folder, prefix=".digests.") as name:
        buckets = [Path(name) / str(bucket) for bucket in range(1 << bits)]
        files = [bucket.open("wb") for bucket in buckets]
        try:
            first = 0
            for part in digests:
                _partition(part, first, bits, files)
                first += len(part)
        finally:
            for file in files:
                file.close()
        for bucket in buckets:
            records = np.fromfile(bucket, np.uint64).reshape(-1, 3)
            bitmap.set(_find_repeats(records[:, :2], records[:, 2].astype(np.int64)))
            bucket.unlink()
    return bitmap


def _partition(part: Digests, first: int, bits: int, files: list) -> None:  # type: ignore[type-arg]
    """Append each digest and its document number to the bucket of its first bits."""
    bucket = (part[:, 0] >> np.uint64(64 - bits)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    numbers = np.arange(first, first + len(part), dtype=np.uint64)
    records = np.column_stack([part, numbers])[order]
    starts = np.searchsorted(bucket[order], np.arange(len(files) + 1))
    for file, low, high in zip(files, starts, starts[1:], strict=False):
        records[low:high].tofile(file)


def _find_repeats(digests: Digests, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the numbers of the documents that equal one with a smaller number; ``numbers`` ascend."""
    if len(numbers) < 2:
        return numbers[:0]
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: among equals the smaller number first
    equal = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    repeats: npt.NDArray[np.int64] = numbers[order[1:][equal]]
    return repeats
