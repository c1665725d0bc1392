"""Every token is scored once, with the context that was promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.errors import ConfigError
from drpruning.evaluation.held_out_text import HeldOutText
from drpruning.evaluation.windows import Windows, document_windows, packed_windows


def text(*lengths: int) -> HeldOutText:
    return HeldOutText(tuple(np.full(length, 7, dtype=np.int64) for length in lengths), None, start=1)


def targets(windows: Windows) -> list[int]:
    return [place for start, length, skip in windows.table for place in range(start + 1 + skip, start + 1 + length)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 12), st.data())
def test_each_token_is_scored_once_with_context_of_its_document(
    lengths: list[int], seq_len: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, seq_len))
    windows = document_windows(text(*lengths), seq_len, stride)
    firsts = np.cumsum([0, *(1 + length for length in lengths[:-1])])
    assert sorted(targets(windows)) == sorted(set(range(len(windows.tokens))) - set(firsts.tolist()))
    assert windows.scored(len(lengths)).tolist() == lengths
    for start, length, skip in windows.table:
        assert 1 <= length <= seq_len
        assert len(set(windows.owner[start : start + length + 1])) == 1
        document = firsts[windows.owner[start]]
        # either the document's beginning is in the window, or a scored token has this many tokens before it
        assert start == document or skip + 1 >= seq_len - stride


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 64))
def test_batches_hold_every_window_and_stay_within_the_limit(lengths: list[int], most: int) -> None:
    windows = document_windows(text(*lengths), seq_len=8)
    batches = list(windows.batches(most))
    together = sorted(map(tuple, np.concatenate(batches).tolist()))
    assert together == sorted(map(tuple, windows.table.tolist()))
    assert all(len(rows) == 1 or len(rows) * rows[:, 1].max() <= most for rows in batches)


def test_packed_rows_are_those_of_the_training_loop() -> None:
    windows = packed_windows(text(5, 6), seq_len=4)
    assert windows.table.tolist() == [[0, 3, 0], [4, 3, 0]]
    assert windows.scored(2).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("seq_len", "stride", "message"),
    [(0, None, "seq_len is 0"), (4, 5, "stride is 5; expected 1 to seq_len"), (4, 0, "stride is 0")],
)
def test_windows_that_would_lose_tokens_are_refused(seq_len: int, stride: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        document_windows(text(5), seq_len, stride)


def test_a_text_shorter_than_a_packed_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="the text has 5 tokens, not one row of 6"):
        packed_windows(text(5), seq_len=6)
