"""Amounts as people write them: 20000000000, 2e10 or 20B; and bytes as they read them."""

from __future__ import annotations

import re

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
LARGEST = 2.0**62
"""Beyond it an amount of steps, tokens or parameters is a mistake."""


def amount_of(text: str) -> float | None:
    """The amount that ``text`` says; None if it is none, or outside 0 to ``LARGEST``.

    >>> amount_of("20B"), amount_of("1_000"), amount_of("2e-3M"), amount_of("soon")
    (20000000000.0, 1000.0, 2000.0, None)
    """
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)([kMBT]?)", text.strip().replace("_", ""))
    try:
        number = float(match[1]) * UNITS[match[2]] if match else -1.0
    except ValueError:
        return None
    return number if 0 <= number <= LARGEST else None


def size_in_words(num_bytes: float) -> str:
    """Bytes as people read them.

    >>> size_in_words(512), size_in_words(20_000_000), size_in_words(107.8e9)
    ('512 bytes', '20 MB', '108 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"
