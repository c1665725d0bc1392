"""Holdout: a document is always on the same side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.errors import ConfigError
from drpruning.prepare.output.holdout import Holdout, document_digest, hash_positions


def fraction_for(positions: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64], holdout: Holdout) -> float:
    """Return the holdout fraction of a domain with these documents."""
    return holdout.choose([int(lengths[positions < fraction].sum()) for fraction in holdout.candidates()])


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


def test_positions_are_even() -> None:
    positions = np.sort(hash_positions([document_digest(f"document {number}") for number in range(10_000)]))
    # Kolmogorov-Smirnov at alpha = 0.001: 1.95 / sqrt(n); the texts are fixed
    assert np.abs(positions - np.arange(10_000) / 10_000).max() < 1.95 / 100


@given(texts, texts, st.integers(1, 200))
def test_more_data_never_holds_out_what_was_trained_on(own: list[str], others: list[str], min_tokens: int) -> None:
    holdout = Holdout(fraction=0.05, min_tokens=min_tokens)

    def fraction(documents: list[str]) -> float:
        lengths = np.array([len(text) for text in documents])
        return fraction_for(hash_positions([document_digest(text) for text in documents]), lengths, holdout)

    assert fraction(list({*own, *others})) <= fraction(own)


@pytest.mark.parametrize(("min_tokens", "fraction"), [(0, 0.05), (10, 0.05), (11, 0.1), (21, 0.2), (1000, 0.2)])
def test_the_fraction_doubles_until_enough_is_held_out(min_tokens: int, fraction: float) -> None:
    positions = np.array([0.01, 0.07, 0.15, 0.6])
    assert (
        fraction_for(positions, np.array([10, 10, 10, 10]), Holdout(fraction=0.05, min_tokens=min_tokens)) == fraction
    )


def test_a_fraction_above_the_largest_is_not_changed() -> None:
    assert fraction_for(np.array([0.9]), np.array([1]), Holdout(fraction=0.5, min_tokens=10)) == 0.5


def test_nothing_can_be_held_out() -> None:
    assert fraction_for(np.array([0.0]), np.array([1]), Holdout(fraction=0)) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_other_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="holdout fraction"):
        Holdout(fraction=fraction)
