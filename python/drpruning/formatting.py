"""Formatting of losses, counts, bytes and durations for people, and parsing of amounts such as 20B."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

NONE, MINUS = "\u2013", "\u2212"
"""A missing value, and a minus sign."""

AMOUNT_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
LARGEST_AMOUNT = 2.0**62
"""A larger amount of steps, tokens or parameters is a mistake."""


def amount_of(text: str) -> float | None:
    """Parse an amount: 20000000000, 2e10 or 20B. Return None if ``text`` is none, or is above ``LARGEST_AMOUNT``.

    >>> amount_of("20B"), amount_of("1_000"), amount_of("2e-3M"), amount_of("soon")
    (20000000000.0, 1000.0, 2000.0, None)
    """
    match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)([kMBT]?)", text.strip().replace("_", ""))
    try:
        value = float(match[1]) * AMOUNT_UNITS[match[2]] if match else -1.0
    except ValueError:
        return None
    return value if 0 <= value <= LARGEST_AMOUNT else None


def size_in_words(num_bytes: float) -> str:
    """Format a number of bytes.

    >>> size_in_words(512), size_in_words(20_000_000), size_in_words(107.8e9)
    ('512 bytes', '20 MB', '108 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def number(value: float) -> str:
    """Format a loss.

    >>> number(2.10049)
    '2.100'
    """
    return f"{value:.3f}".replace("-", MINUS) if math.isfinite(value) else NONE


def signed(value: float) -> str:
    """Format a difference of losses, with its sign.

    >>> signed(0.5), signed(-0.0001), signed(-0.25) == MINUS + "0.250"
    ('+0.500', '0.000', True)
    """
    if not math.isfinite(value):
        return NONE
    text = f"{value:+.3f}"
    return "0.000" if text in {"+0.000", "-0.000"} else text.replace("-", MINUS)


def percent(value: float) -> str:
    """Format a share.

    >>> percent(0.876), percent(-0.02) == MINUS + "2%"
    ('88%', True)
    """
    return f"{value:.0%}".replace("-", MINUS) if math.isfinite(value) else NONE


def shares_in_words(mixture: Mapping[str, float]) -> str:
    """Describe a mixture.

    >>> shares_in_words({"web": 0.75, "code": 0.25})
    'web 0.750, code 0.250'
    """
    return ", ".join(f"{printable(domain)} {share:.3f}" for domain, share in mixture.items())


def count(value: float) -> str:
    """Format a number of parameters or tokens, to three digits.

    >>> count(950), count(1_834_000), count(2_700_000_000)
    ('950', '1.83M', '2.7B')
    """
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value / size < 999.5 else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def flops_in_words(flops: float | None) -> str:
    """Format a number of floating point operations, to three digits; None or NaN are not known.

    >>> flops_in_words(950), flops_in_words(1.834e15), flops_in_words(999.7e15), flops_in_words(None)
    ('950 FLOP', '1.83 PFLOP', '1 EFLOP', '–')
    """
    if flops is None or not math.isfinite(flops):
        return NONE
    for size, prefix in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= 0.9995 * size:
            return f"{flops / size:.3g} {prefix}FLOP"
    return f"{flops:,.0f} FLOP"


def held_out(tokens: Mapping[str, int], split: str) -> str:
    """Describe the number of held-out tokens per domain; empty if not recorded.

    >>> held_out({"web": 4096, "code": 4096}, "test"), held_out({"web": 4096, "code": 1024}, "validation")
    ('4,096 test tokens of each domain', '1,024 to 4,096 validation tokens of each domain')
    """
    if not tokens:
        return ""
    low, high = min(tokens.values()), max(tokens.values())
    return (
        f"{low:,} {split} tokens of each domain"
        if low == high
        else f"{low:,} to {high:,} {split} tokens of each domain"
    )


def duration(seconds: float) -> str:
    """Format a time span.

    >>> duration(42), duration(425), duration(7300)
    ('42 s', '7 min 5 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return NONE
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shape(name: str, source: int | None, target: int) -> str:
    """Format one dimension of a model, before and after, without line breaks.

    >>> shape("layers", 6, 4).split(), shape("kv_heads", None, 2).split()
    (['layers', '6', '→', '4'], ['KV', 'heads', '2'])
    """
    word = {"kv_heads": "KV heads", "intermediate": "FFN"}.get(name, name)
    text = f"{word} {target}" if source is None or source == target else f"{word} {source} → {target}"
    return text.replace(" ", "\u00a0")


def printable(text: object) -> str:
    """Replace unprintable characters (terminal codes, lone surrogates).

    >>> printable("a" + chr(27) + "[31mb") == "a" + chr(0xFFFD) + "[31mb"
    True
    """
    return "".join(char if char.isprintable() else "\ufffd" for char in str(text))


def printable_lines(text: str) -> str:
    r"""Return ``text`` with each line :func:`printable`.

    >>> printable_lines("one\ntwo")
    'one\ntwo'
    """
    return "\n".join(map(printable, text.split("\n")))


def shorten(text: object, limit: int = 14) -> str:
    """Return ``text``, printable and cut to at most ``limit`` characters.

    >>> shorten("a long name of a domain", 8)
    'a long …'
    """
    whole = printable(text)
    return whole if len(whole) <= limit else whole[: limit - 1] + "…"
