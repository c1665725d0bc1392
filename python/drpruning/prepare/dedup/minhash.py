"""Documents that resemble an earlier one, found by datatrove's MinHash, so that of each group the first is kept.

The signatures are of 5-grams of words, in 14 buckets of 8 hashes, datatrove's defaults: two documents that share 80% of
their 5-grams are found with a probability of 0.92, two that share 60% with one of 0.21.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from drpruning.errors import CorpusError, MissingExtraError
from drpruning.prepare.compressed import DamagedFileError
from drpruning.prepare.documents import Found, Utf8, documents, giant, look_through
from drpruning.prepare.duplicates import Marks
from drpruning.prepare.fields import Fields
from drpruning.prepare.gather import DomainSource
from drpruning.prepare.units import Block, blocks_of

# Words of alphabetic scripts; each character by itself in Chinese, Japanese and Thai, which put no space between words.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+")


def near_duplicates(
    sources: Mapping[str, DomainSource], utf8: Utf8, workers: int, folder: Path, *, expected: int
) -> Marks:
    """Marks every document that resembles an earlier one, in the order of the corpus.

    Args:
        sources: The text by domain, read once more.
        utf8: What becomes of invalid UTF-8, as when the pieces were made.
        workers: Processes.
        folder: Where signatures may be written; left as it was.
        expected: How many documents the pieces have.

    Raises:
        CorpusError: There are not as many now, so their numbers would name others.
        MissingExtraError: datatrove is not installed.
    """
    try:
        from datatrove.executor import LocalPipelineExecutor  # noqa: PLC0415 -- an extra
        from datatrove.pipeline.dedup.minhash import (  # noqa: PLC0415
            MinhashConfig,
            MinhashDedupBuckets,
            MinhashDedupCluster,
            MinhashDedupSignature,
        )
        from datatrove.utils.hashing import HashConfig  # noqa: PLC0415
        from datatrove.utils.word_tokenizers import WordTokenizer  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("near duplicates need datatrove", 'pip install "drpruning[prepare]"') from error

    class Words(WordTokenizer):  # type: ignore[misc] # datatrove has no annotations
        """Words of any language, without a model for each."""

        def word_tokenize(self, text: str) -> list[str]:
            return _WORD.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    tasks = [(source, number) for source in sources.values() for number in range(len(source.units))]
    with TemporaryDirectory(dir=folder, prefix=".minhash.") as name:
        place = Path(name)
        config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash refuses texts since xxhash 4
        signatures = [_Reader(tasks, utf8, place / "counts"), MinhashDedupSignature(str(place / "a"), config, Words())]
        steps: list[tuple[list[Any], int]] = [
            (signatures, len(tasks)),
            ([MinhashDedupBuckets(str(place / "a"), str(place / "b"), config=config)], config.num_buckets),
            ([MinhashDedupCluster(str(place / "b"), str(place / "c"), config, save_cluster_id=True)], 1),
        ]
        (place / "counts").mkdir()
        for number, (pipeline, count) in enumerate(steps):
            LocalPipelineExecutor(
                pipeline, tasks=count, workers=min(workers, count), logging_dir=str(place / f"logs{number}")
            ).run()
        counts = [int((place / "counts" / str(task)).read_text()) for task in range(len(tasks))]
        if sum(counts) != expected:
            raise CorpusError(
                f"the text changed while it was prepared: expected {expected} documents, found {sum(counts)}",
                "Run the same command again.",
            )
        return _later_ones(place / "c", counts)


class _Reader:
    """What datatrove's signatures are made of: the documents of a unit, as they are in its pieces."""

    def __init__(self, tasks: list[tuple[DomainSource, int]], utf8: Utf8, counts: Path) -> None:
        self.tasks = tasks
        self.utf8 = utf8
        self.counts = counts

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        from datatrove.data import Document  # noqa: PLC0415

        source, number = self.tasks[rank]
        count = 0
        for block in blocks_of(source.units[number], source.fields):
            for text in self._texts(block, source.fields):
                yield Document(text=text, id=str(count))
                count += 1
        (self.counts / str(rank)).write_text(str(count))

    def _texts(self, block: Block, fields: Fields) -> Iterator[str]:
        if block.kind != "giant":
            yield from (text for text, _ in documents(block, fields, self.utf8, Found()))
            return
        path = Path(block.path)
        with contextlib.suppress(OSError, DamagedFileError):  # counted already when the pieces were made
            if look_through(path).is_document(self.utf8):
                yield b"".join(giant(path)).decode(errors="replace")


def _later_ones(folder: Path, counts: list[int]) -> Marks:
    """Of each cluster all documents but the first."""
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    numbers: list[npt.NDArray[np.int64]] = []
    clusters: list[npt.NDArray[np.int64]] = []
    for file in sorted(folder.glob("*.clusters")):
        pairs = np.fromfile(file, "<u4").reshape(-1, 2).astype(np.int64)
        numbers.append(pairs[:, 0] + firsts[int(file.stem)])
        clusters.append(pairs[:, 1])
    marks = Marks.none(int(firsts[-1]))
    if numbers:
        number, cluster = np.concatenate(numbers), np.concatenate(clusters)
        order = np.lexsort((number, cluster))
        number, cluster = number[order], cluster[order]
        marks.add(number[1:][cluster[1:] == cluster[:-1]])
    return marks
