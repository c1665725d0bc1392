"""How numbers are written: losses to three decimals, counts with a unit, and a dash for what is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping

NONE, MINUS = "\u2013", "\u2212"


def number(value: float) -> str:
    """A loss.

    >>> number(2.10049)
    '2.100'
    """
    return f"{value:.3f}".replace("-", MINUS) if math.isfinite(value) else NONE


def signed(value: float) -> str:
    """A difference of losses, with its sign.

    >>> signed(0.5), signed(-0.0001), signed(-0.25) == MINUS + "0.250"
    ('+0.500', '0.000', True)
    """
    if not math.isfinite(value):
        return NONE
    text = f"{value:+.3f}"
    return "0.000" if text in {"+0.000", "-0.000"} else text.replace("-", MINUS)


def percent(value: float) -> str:
    """A share.

    >>> percent(0.876), percent(-0.02) == MINUS + "2%"
    ('88%', True)
    """
    return f"{value:.0%}".replace("-", MINUS) if math.isfinite(value) else NONE


def count(value: float) -> str:
    """A number of parameters or tokens, to three digits.

    >>> count(950), count(1_834_000), count(2_700_000_000)
    ('950', '1.83M', '2.7B')
    """
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value / size < 999.5 else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def held_out(tokens: Mapping[str, int]) -> str:
    """How many held-out tokens domains are measured on; empty where that was not recorded.

    >>> held_out({"web": 4096, "code": 4096}), held_out({"web": 4096, "code": 1024})
    ('4,096 held-out tokens of each domain', '1,024 to 4,096 held-out tokens of each domain')
    """
    if not tokens:
        return ""
    low, high = min(tokens.values()), max(tokens.values())
    return (
        f"{low:,} held-out tokens of each domain"
        if low == high
        else f"{low:,} to {high:,} held-out tokens of each domain"
    )


def duration(seconds: float) -> str:
    """A time span.

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
    """One dimension of a model, before and after, in one piece that does not break over lines.

    >>> shape("layers", 6, 4).split(), shape("kv_heads", None, 2).split()
    (['layers', '6', '→', '4'], ['KV', 'heads', '2'])
    """
    word = {"kv_heads": "KV heads", "intermediate": "FFN"}.get(name, name)
    text = f"{word} {target}" if source is None or source == target else f"{word} {source} → {target}"
    return text.replace(" ", "\u00a0")
