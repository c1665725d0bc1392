"""Near deduplication with datatrove's MinHash: of each cluster of similar documents the first is kept.

Signatures are over 5-grams of words, in 14 buckets of 8 hashes, datatrove's defaults: two documents that share 80% of
their 5-grams are found with probability 0.92, two that share 60% with probability 0.21.
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

from drpruning.errors import CorpusError, MissingExtraError, install_command
from drpruning.prepare.dedup.exact import DocumentBitmap
from drpruning.prepare.readers import read_blocks
from drpruning.prepare.readers.blocks import READ_ERRORS, Block, DomainSource
from drpruning.prepare.readers.documents import ParseStats, parse_documents
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.text import Utf8, inspect_giant, read_giant

# Words of alphabetic scripts; single characters in Chinese, Japanese and Thai, which put no space between words.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+")


def find_near_duplicates(
    sources: Mapping[str, DomainSource], utf8: Utf8, workers: int, folder: Path, *, expected: int
) -> DocumentBitmap:
    """Find every document that resembles an earlier one, in the order of the corpus.

    Args:
        sources: The text by domain. It is read a second time.
        utf8: Policy for invalid UTF-8, the one used for tokenization.
        workers: Number of processes.
        folder: Folder for temporary signatures.
        expected: Number of documents in the tokenized blocks.

    Raises:
        CorpusError: The text has another number of documents now, so document numbers would not match.
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
        raise MissingExtraError("near duplicates need datatrove", install_command("datatrove")) from error

    class Words(WordTokenizer):  # type: ignore[misc] # datatrove has no annotations
        """Word tokenizer for all languages, without language models."""

        def word_tokenize(self, text: str) -> list[str]:
            return _WORD.findall(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    tasks = [(source, number) for source in sources.values() for number in range(len(source.units))]
    with TemporaryDirectory(dir=folder, prefix=".minhash.") as name:
        scratch = Path(name)
        config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash fails with xxhash 4
        signatures = [
            _DocumentReader(tasks, utf8, scratch / "counts"),
            MinhashDedupSignature(str(scratch / "a"), config, Words()),
        ]
        steps: list[tuple[list[Any], int]] = [
            (signatures, len(tasks)),
            ([MinhashDedupBuckets(str(scratch / "a"), str(scratch / "b"), config=config)], config.num_buckets),
            ([MinhashDedupCluster(str(scratch / "b"), str(scratch / "c"), config, save_cluster_id=True)], 1),
        ]
        (scratch / "counts").mkdir()
        for number, (pipeline, count) in enumerate(steps):
            LocalPipelineExecutor(
                pipeline, tasks=count, workers=min(workers, count), logging_dir=str(scratch / f"logs{number}")
            ).run()
        counts = [int((scratch / "counts" / str(task)).read_text()) for task in range(len(tasks))]
        if sum(counts) != expected:
            raise CorpusError(
                f"the text changed while it was prepared: expected {expected} documents, found {sum(counts)}",
                "Run the same command again.",
            )
        return _all_but_first(scratch / "c", counts)


class _DocumentReader:
    """Yields the documents of a read unit as datatrove documents, in the order of its tokenized blocks."""

    def __init__(self, tasks: list[tuple[DomainSource, int]], utf8: Utf8, counts: Path) -> None:
        self.tasks = tasks
        self.utf8 = utf8
        self.counts = counts

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        from datatrove.data import Document  # noqa: PLC0415

        source, number = self.tasks[rank]
        count = 0
        for block in read_blocks(source.units[number], source.fields):
            for text in self._texts(block, source.fields):
                yield Document(text=text, id=str(count))
                count += 1
        (self.counts / str(rank)).write_text(str(count))

    def _texts(self, block: Block, fields: FieldMapping) -> Iterator[str]:
        if block.kind != "giant":
            yield from (document.text for document in parse_documents(block, fields, self.utf8, ParseStats()))
            return
        path = Path(block.path)
        with contextlib.suppress(*READ_ERRORS):  # tokenization has counted these errors
            if inspect_giant(path).is_document(self.utf8):
                yield b"".join(read_giant(path)).decode(errors="replace")


def _all_but_first(folder: Path, counts: list[int]) -> DocumentBitmap:
    """Return the bitmap of all documents but the first of each cluster."""
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    numbers: list[npt.NDArray[np.int64]] = []
    clusters: list[npt.NDArray[np.int64]] = []
    for file in sorted(folder.glob("*.clusters")):
        pairs = np.fromfile(file, "<u4").reshape(-1, 2).astype(np.int64)
        numbers.append(pairs[:, 0] + firsts[int(file.stem)])
        clusters.append(pairs[:, 1])
    bitmap = DocumentBitmap.zeros(int(firsts[-1]))
    if numbers:
        number, cluster = np.concatenate(numbers), np.concatenate(clusters)
        order = np.lexsort((number, cluster))
        number, cluster = number[order], cluster[order]
        bitmap.set(number[1:][cluster[1:] == cluster[:-1]])
    return bitmap
