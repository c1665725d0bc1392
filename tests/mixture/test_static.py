"""Static mixtures by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.errors import WeightError
from drpruning.mixture.static import static_mixture

SIZES = {"web": 9e9, "code": 1e9, "math": 1e8}
sizes = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(1, 1e15), min_size=1)


def test_natural_and_uniform_are_the_ends_of_temperature() -> None:
    assert static_mixture("natural", SIZES) == static_mixture("temperature:1", SIZES)
    assert static_mixture("uniform", SIZES) == static_mixture("temperature:0", SIZES) == dict.fromkeys(SIZES, 1 / 3)
    assert static_mixture("natural", SIZES)["math"] == pytest.approx(1e8 / 10.1e9)


@given(sizes, st.sampled_from(["natural", "uniform", "temperature:0.3", "unimax:4", "unimax:0.5"]), st.floats(1, 1e15))
def test_shares_sum_to_one_in_the_order_of_the_domains(domains: dict[str, float], name: str, tokens: float) -> None:
    mixture = static_mixture(name, domains, tokens)
    assert list(mixture) == list(domains)
    assert math.fsum(mixture.values()) == pytest.approx(1, abs=1e-12)
    assert min(mixture.values()) > 0


@given(sizes, st.floats(1, 1e15), st.floats(0.1, 100))
def test_unimax_keeps_its_caps_where_they_can_be_kept(domains: dict[str, float], tokens: float, epochs: float) -> None:
    mixture = static_mixture(f"unimax:{epochs}", domains, tokens)
    read = {domain: share * tokens / domains[domain] for domain, share in mixture.items()}
    if epochs * sum(domains.values()) >= tokens:
        assert max(read.values()) <= epochs * (1 + 1e-9)
    else:  # all text is read equally often
        assert max(read.values()) == pytest.approx(min(read.values()), rel=1e-9)
    free = [share for domain, share in mixture.items() if read[domain] < epochs * (1 - 1e-9)]
    assert free == pytest.approx([max(mixture.values())] * len(free))  # below their caps all have the same share


@pytest.mark.parametrize(
    "name", ["even", "temperature", "temperature:-1", "temperature:nan", "unimax:0", "natural:2", ""]
)
def test_other_names(name: str) -> None:
    with pytest.raises(WeightError, match="no static mixture is called"):
        static_mixture(name, SIZES, 1e9)


def test_what_is_missing() -> None:
    with pytest.raises(WeightError, match="needs the tokens of the run"):
        static_mixture("unimax:4", SIZES)
    with pytest.raises(WeightError, match="domain_tokens is"):
        static_mixture("natural", {"web": 0.0})
