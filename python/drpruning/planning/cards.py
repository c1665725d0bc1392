"""Accelerators by name: what a plan counts with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drpruning.errors import ConfigError, did_you_mean
from drpruning.train.flops import PEAKS


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        name: As people say it.
        memory: Bytes that a process sees, rounded down to a tenth of a GiB.
        bandwidth: Bytes/s of its memory.
        peak: FLOP/s in bfloat16, dense.
    """

    name: str
    memory: float
    bandwidth: float
    peak: float


def _card(name: str, gib: float, gigabytes_per_second: float, peak_of: str | None = None) -> Card:
    return Card(name, gib * 2**30, gigabytes_per_second * 1e9, PEAKS[peak_of or name])


CARDS = {
    card.name: card
    for card in (
        _card("B200", 178.3, 7700),
        _card("H200", 139.8, 4800),
        _card("H100", 79.1, 3350),
        _card("A100", 79.1, 2039),
        _card("A100-40", 39.4, 1555, "A100"),
        _card("L40S", 44.4, 864),
        _card("RTX4090", 23.5, 1008, "RTX 4090"),
        _card("L4", 22.0, 300),
    )
}
"""SXM forms of H100, H200 and A100 (80 GB). Bandwidths from the makers' data sheets; memory as torch reports it."""


def card_of(name: str) -> Card:
    """A card by name.

    Raises:
        ConfigError: It is not in the table.

    Example:
        >>> card_of("h100").bandwidth / 1e12
        3.35
    """
    plain = {_plain(known): card for known, card in CARDS.items()}
    if _plain(name) not in plain:
        raise ConfigError(
            f"no card {name!r} in the table; known: {', '.join(CARDS)}",
            did_you_mean(name.upper(), CARDS) or "Choose the one that is nearest to yours.",
        )
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold().removeprefix("nvidia"))
