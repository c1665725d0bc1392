"""Accelerators by name: what a plan counts with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drpruning.errors import ConfigError, did_you_mean
from drpruning.flops import PEAKS


@dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        name: As people say it.
        memory: Bytes that a process sees, rounded down to a tenth of a GiB.
        bandwidth: Bytes/s of its memory.
        peak: FLOP/s in bfloat16, dense.
        float32_peak: FLOP/s in float32 outside of the tensor cores, which torch leaves alone for it by default (TF32).
    """

    name: str
    memory: float
    bandwidth: float
    peak: float
    float32_peak: float


def _card(name: str, gib: float, gigabytes_per_second: float, float32: float, peak_of: str | None = None) -> Card:
    return Card(name, gib * 2**30, gigabytes_per_second * 1e9, PEAKS[peak_of or name], float32 * 1e12)


CARDS = {
    card.name: card
    for card in (
        _card("B200", 178.3, 7700, 75),
        _card("H200", 139.8, 4800, 67),
        _card("H100", 79.1, 3350, 67),
        _card("A100", 79.1, 2039, 19.5),
        _card("A100-40", 39.4, 1555, 19.5, "A100"),
        _card("L40S", 44.4, 864, 91.6),
        _card("RTX4090", 23.5, 1008, 82.6, "RTX 4090"),
        _card("L4", 22.0, 300, 30.3),
    )
}
"""SXM forms of H100, H200 and A100 (80 GB). Bandwidths and peaks from data sheets; memory as torch reports it."""


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
