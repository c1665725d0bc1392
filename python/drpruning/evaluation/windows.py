"""Windows over text: the tokens that a model reads together, and those that are scored, each once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drpruning.errors import ConfigError
from drpruning.evaluation.held_out_text import HeldOutText


@dataclass(frozen=True)
class Windows:
    """A text laid out for a model.

    A window ``(start, length, skip)`` feeds ``tokens[start : start + length]``; the targets are the next
    tokens; the first ``skip`` of them were scored in the previous window.

    Args:
        tokens: int64 ``[N]``.
        owner: int64 ``[N]``, the document to which each token belongs.
        table: int64 ``[windows, 3]``: start, length, skip.
    """

    tokens: NDArray[np.int64]
    owner: NDArray[np.int64]
    table: NDArray[np.int64]

    def scored(self, documents: int) -> NDArray[np.int64]:
        """Return the number of scored tokens of each document: int64 ``[documents]``."""
        counts = np.zeros(documents, dtype=np.int64)
        for start, length, skip in self.table:
            np.add.at(counts, self.owner[start + 1 + skip : start + 1 + length], 1)
        return counts

    def batches(self, most_tokens: int) -> Iterator[NDArray[np.int64]]:
        """Yield batches of rows of ``table``, long rows first, so that there is little padding.

        Args:
            most_tokens: Maximum number of rows times the longest row; a longer row is a batch of one.
        """
        ordered = self.table[np.argsort(-self.table[:, 1], kind="stable")]
        at = 0
        while at < len(ordered):
            rows = max(1, most_tokens // int(ordered[at, 1]))
            yield ordered[at : at + rows]
            at += rows


def document_windows(text: HeldOutText, seq_len: int, stride: int | None = None) -> Windows:
    """Arrange each document separately, after the start token; each of its tokens is scored exactly once.

    A document longer than ``seq_len`` is read in windows that begin ``stride`` tokens apart. With a smaller stride a
    token is scored with at least ``seq_len - stride`` tokens of its document before it, and more is computed.

    Args:
        text: The documents.
        seq_len: Tokens that a model reads at once.
        stride: Tokens between the starts of windows, 1 to ``seq_len``; None: ``seq_len``, so that none is read twice.

    Raises:
        ConfigError: ``seq_len`` or ``stride`` is out of range.

    Example:
        >>> text = HeldOutText((np.array([5, 6, 7, 0]), np.array([8, 0])), None, start=0)
        >>> document_windows(text, seq_len=3, stride=2).table.tolist()
        [[0, 3, 0], [2, 2, 1], [5, 2, 0]]
    """
    stride = seq_len if stride is None else stride
    if seq_len < 1:
        raise ConfigError(f"seq_len is {seq_len}; expected at least 1")
    if not 1 <= stride <= seq_len:
        raise ConfigError(f"stride is {stride}; expected 1 to seq_len ({seq_len}), or some tokens would not be scored")
    rows: list[tuple[int, int, int]] = []
    first = 0
    for ids in text.documents:
        scored = 0
        for begin in range(0, len(ids), stride):
            end = min(begin + seq_len, len(ids))
            rows.append((first + begin, end - begin, scored - begin))
            scored = end
            if end == len(ids):
                break
        first += 1 + len(ids)
    start = np.array([text.start], dtype=np.int64)
    lengths = [1 + len(ids) for ids in text.documents]
    return Windows(
        tokens=np.concatenate([part for ids in text.documents for part in (start, ids)]),
        owner=np.repeat(np.arange(len(text.documents)), lengths),
        table=np.array(rows, dtype=np.int64).reshape(-1, 3),
    )


def packed_windows(text: HeldOutText, seq_len: int) -> Windows:
    """Arrange the documents in rows of ``seq_len`` tokens, as the training loop reads and measures them.

    The first token of a row is not scored, and a last row that is not full is omitted.

    Raises:
        ConfigError: ``seq_len`` is below 2, or the text does not fill one row.
    """
    if seq_len < 2:
        raise ConfigError(f"seq_len is {seq_len}; expected at least 2 for packed rows")
    tokens = np.concatenate(text.documents)
    count = len(tokens) // seq_len
    if count == 0:
        raise ConfigError(f"the text has {len(tokens)} tokens, not one row of {seq_len}", "Use a smaller --seq-len.")
    starts = np.arange(count, dtype=np.int64) * seq_len
    return Windows(
        tokens=tokens,
        owner=np.repeat(np.arange(len(text.documents)), [len(ids) for ids in text.documents]),
        table=np.stack([starts, np.full(count, seq_len - 1), np.zeros(count, dtype=np.int64)], axis=1),
    )
