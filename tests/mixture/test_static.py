"""Static mixtures by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drpruning.errors import WeightError
from drpruning.mixture.static import raise_ratio, static_mixture

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
    with pytest.raises(WeightError, match="Pass tokens="):
        static_mixture("unimax:4", SIZES)
    with pytest.raises(WeightError, match="domain_tokens is"):
        static_mixture("natural", {"web": 0.0})


@given(sizes, st.floats(0, 3))
def test_a_power_keeps_the_order_of_the_shares_and_their_ratios(domains: dict[str, float], power: float) -> None:
    ratio = static_mixture("natural", domains)
    raised = raise_ratio(ratio, f"power:{power}")
    assert isinstance(raised, dict)
    assert raised == pytest.approx(static_mixture(f"temperature:{power}", domains))
    assert list(raised) == list(domains)
    assert math.fsum(raised.values()) == pytest.approx(1, abs=1e-12)


def test_powers_of_names_are_temperatures() -> None:
    assert raise_ratio("natural", "power:0.5") == "temperature:0.5"
    assert raise_ratio("temperature:0.5", "power:0.5") == "temperature:0.25"
    assert raise_ratio("uniform", "power:2") == "temperature:0"
    assert raise_ratio("temperature:0.123456789", "power:1") == "temperature:0.123456789"


@pytest.mark.parametrize("name", ["power:", "power:-1", "power:inf", "temperature:0.5"])
def test_wrong_powers(name: str) -> None:
    with pytest.raises(WeightError, match=r"expected a ratio to a power of zero or more"):
        raise_ratio(SIZES, name)


def test_a_power_needs_a_ratio_of_positive_shares() -> None:
    with pytest.raises(WeightError, match="needs a positive share for each domain"):
        raise_ratio({"web": 1.0, "code": 0.0}, "power:0.5")
    with pytest.raises(WeightError, match="got 'unimax:4'"):
        raise_ratio("unimax:4", "power:0.5")
    with pytest.raises(WeightError, match="changes the reference ratio of a recipe") as error:
        static_mixture("power:0.5", SIZES)
    assert error.value.next_step is not None
    assert "--set data.reference_ratio=power:0.5" in error.value.next_step
