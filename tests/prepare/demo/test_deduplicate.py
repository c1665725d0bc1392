"""Paragraphs that come twice are kept once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drpruning.prepare.demo.corpus import without_repeated_paragraphs

NOTICE = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated"


def test_a_paragraph_is_kept_at_its_first_place() -> None:
    texts = [f"Copyright one\n\n{NOTICE}\n\nEnd one.", f"Copyright two\n\n{NOTICE.upper()}\n\nEnd two."]
    kept = list(without_repeated_paragraphs(texts, shortest_document=0))
    assert kept == [texts[0] + "\n", "Copyright two\n\nEnd two.\n"]


def test_short_paragraphs_may_repeat() -> None:
    text = "Returns\n\nReturns\n"
    assert list(without_repeated_paragraphs([text], shortest_document=0)) == [text]


def test_indentation_after_a_blank_line_is_kept() -> None:
    text = "def f():\n    a = 1\n\n    return a\n"
    assert list(without_repeated_paragraphs([text], shortest_document=0)) == [text]


def test_what_is_left_of_a_document_can_be_too_little() -> None:
    assert list(without_repeated_paragraphs([NOTICE * 2, f"Mine\n\n{NOTICE * 2}"])) == [NOTICE * 2 + "\n"]


@given(st.lists(st.lists(st.sampled_from([NOTICE, NOTICE[::-1], NOTICE * 2, "short"]), min_size=1), min_size=1))
def test_long_paragraphs_occur_once_each(documents: list[list[str]]) -> None:
    kept = without_repeated_paragraphs(["\n\n".join(parts) for parts in documents], shortest_document=0)
    found = [part.strip() for text in kept for part in text.split("\n\n")]
    long = [part for part in found if len(part) >= 100]
    assert len(long) == len(set(long))
    assert set(long) == {part for parts in documents for part in parts if part != "short"}
