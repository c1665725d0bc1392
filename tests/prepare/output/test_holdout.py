"""Holdout: a group is always in the same split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.errors import ConfigError
from drpruning.prepare.output.holdout import (
    TEST,
    TRAIN,
    VALIDATION,
    Holdout,
    assign_splits,
    document_digest,
    group_digest,
    hash_positions,
)


def fraction_for(
    digests: npt.NDArray[np.uint64] | list[bytes], lengths: npt.NDArray[np.int64], holdout: Holdout
) -> float:
    """Return the holdout fraction of a domain with these documents."""
    for fraction in holdout.candidates():
        splits = assign_splits(digests, fraction)
        tokens = {split: int(lengths[splits == split].sum()) for split in (VALIDATION, TEST)}
        groups = int((splits == TEST).sum())
        if holdout.is_enough(groups=groups, test_tokens=tokens[TEST], validation_tokens=tokens[VALIDATION]):
            break
    return fraction


def digests_at(positions: list[tuple[float, float]]) -> npt.NDArray[np.uint64]:
    """Return digests with these two positions."""
    return (np.array(positions).reshape(-1, 2) * 2.0**64).astype(np.uint64)


texts = st.lists(st.text(min_size=1), min_size=1, max_size=40, unique=True)


@given(texts, texts)
def test_a_position_depends_on_the_text_alone(own: list[str], others: list[str]) -> None:
    alone = hash_positions([document_digest(text) for text in own])
    among = hash_positions([document_digest(text) for text in [*others, *own]])[len(others) :]
    assert alone.tolist() == among.tolist()
    assert ((alone >= 0) & (alone < 1)).all()


def test_positions_never_change() -> None:
    positions = hash_positions([document_digest(text) for text in ("a", "b", "naïve 中文")])
    assert positions.tolist() == [0.18875864235737982, 0.5837886867075506, 0.32585466747193403]


@pytest.mark.parametrize("word", [0, 1])
def test_positions_are_even(word: int) -> None:
    positions = np.sort(hash_positions([document_digest(f"document {number}") for number in range(10_000)], word))
    # Kolmogorov-Smirnov at alpha = 0.001: 1.95 / sqrt(n); the texts are fixed
    assert np.abs(positions - np.arange(10_000) / 10_000).max() < 1.95 / 100


def test_groups_are_divided_by_two_positions() -> None:
    digests = digests_at([(0.09, 0.3), (0.09, 0.4), (0.11, 0.3), (0.11, 0.9)])
    assert assign_splits(digests, 0.1).tolist() == [VALIDATION, TEST, TRAIN, TRAIN]
    splits = assign_splits([group_digest(f"group {number}") for number in range(10_000)], 0.3)
    # Binomial counts: 7000, 1000 and 2000 with standard deviations 46, 30 and 40; four of each, fixed names
    assert (np.abs(np.bincount(splits) - [7000, 1000, 2000]) <= [184, 120, 160]).all()


@given(texts, st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_larger_fraction_moves_no_document_between_validation_and_test(
    documents: list[str], first: float, second: float
) -> None:
    digests = [document_digest(text) for text in documents]
    smaller, larger = (assign_splits(digests, fraction) for fraction in sorted([first, second]))
    assert all(later == before for before, later in zip(smaller, larger, strict=True) if before != TRAIN)


@given(texts, texts, st.integers(1, 200), st.integers(0, 10))
def test_more_data_never_holds_out_what_was_trained_on(
    own: list[str], others: list[str], min_tokens: int, min_groups: int
) -> None:
    holdout = Holdout(fraction=0.05, min_tokens=min_tokens, min_groups=min_groups)

    def fraction(documents: list[str]) -> float:
        lengths = np.array([len(text) for text in documents])
        return fraction_for([document_digest(text) for text in documents], lengths, holdout)

    assert fraction(list({*own, *others})) <= fraction(own)


@pytest.mark.parametrize(
    ("min_tokens", "min_groups", "fraction"),
    [(0, 0, 0.05), (10, 0, 0.05), (11, 0, 0.1), (21, 0, 0.2), (1000, 0, 0.2), (0, 2, 0.1), (0, 3, 0.2), (0, 99, 0.2)],
)
def test_the_fraction_doubles_until_the_test_has_enough(min_tokens: int, min_groups: int, fraction: float) -> None:
    digests = digests_at([(0.01, 0.5), (0.07, 0.5), (0.15, 0.5), (0.6, 0.5), (0.02, 0.1)])
    holdout = Holdout(fraction=0.05, min_tokens=min_tokens, min_groups=min_groups)
    assert fraction_for(digests, np.full(5, 10), holdout) == fraction


def test_the_fraction_doubles_until_validation_has_its_share() -> None:
    digests = digests_at([(0.01, 0.5), (0.07, 0.1)])
    for tokens, fraction in [(10, 0.1), (33, 0.2)]:  # a third of 33 tokens is more than 10
        holdout = Holdout(fraction=0.05, min_tokens=tokens, min_groups=0)
        assert fraction_for(digests, np.array([40, 10]), holdout) == fraction


def test_the_largest_fraction_is_the_last_candidate() -> None:
    assert Holdout(fraction=0.2, max_fraction=0.6).candidates() == [0.2, 0.4, 0.6]
    assert Holdout(fraction=0.5, max_fraction=0.2).candidates() == [0.5]
    assert Holdout(fraction=0).candidates() == [0]


def test_settings_are_read_from_notes() -> None:
    holdout = Holdout(fraction=0.1, min_tokens=7, min_groups=3, max_fraction=0.3)
    assert Holdout.from_notes(holdout.to_notes()) == holdout


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_other_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="holdout fraction"):
        Holdout(fraction=fraction)
