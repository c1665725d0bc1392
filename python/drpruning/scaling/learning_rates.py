"""Learning-rate schedules in words: ``cosine:warmup=2%,final=10%``."""

from __future__ import annotations

import numpy as np

from drpruning.errors import ConfigError, did_you_mean
from drpruning.formatting import amount_of
from drpruning.scaling.annealing import LearningRates

DEFAULTS = {
    "constant": {"warmup": "0"},
    "cosine": {"warmup": "0", "final": "10%"},
    "linear": {"warmup": "0", "final": "0"},
    "wsd": {"warmup": "0", "decay": "10%", "final": "0"},
}
"""Settings of each shape with their defaults; all shapes except ``constant`` also have ``end``."""
ROUNDING = 1e-9
"""Percentages that add up to a hundred may do so by rounding only."""
EXAMPLE = "For example cosine:warmup=2%,final=10%, or wsd:warmup=2000,decay=20%."


def parse_learning_rates(text: str, end: float | None = None) -> LearningRates:
    """Parse the description of a schedule; the rates are relative to its peak.

    After a linear warm-up from zero, ``constant`` stays, ``cosine`` and ``linear`` fall to ``final`` at the end, and
    ``wsd`` (warm-up, stable, decay) stays until ``decay`` before the end and falls linearly. Settings follow a colon,
    separated by commas: ``warmup``, ``decay`` and ``end`` in tokens (``2B``, the unit of ``end``) or, but for ``end``,
    as a percentage of it; ``final`` as a part of the peak.

    Args:
        text: The description.
        end: Tokens at the end of training; an ``end=`` in the text replaces it.

    Raises:
        ConfigError: The text is not such a description, or needs an end and there is none.

    Example:
        >>> schedule = parse_learning_rates("wsd:warmup=1%,decay=20%", 1e9)
        >>> schedule.tokens, schedule.rates
        ((0.0, 10000000.0, 800000000.0, 1000000000.0), (0.0, 1.0, 1.0, 0.0))
    """
    shape, _, rest = text.strip().partition(":")
    if shape not in DEFAULTS:
        known = ", ".join(DEFAULTS)
        raise ConfigError(
            f"learning rates {text!r}: there is no shape {shape!r}; there are {known}",
            did_you_mean(shape, DEFAULTS) or EXAMPLE,
        )
    settings = _settings(text, shape, rest)
    if "end" in settings:
        end = _amount(text, "end", settings["end"], None)
    final = _part(text, settings["final"]) if "final" in settings else 1.0
    warmup = _amount(text, "warmup", settings["warmup"], end)
    if shape == "constant":
        return LearningRates([0.0, warmup], [0.0, 1.0]) if warmup > 0 else LearningRates([0.0], [1.0])
    if end is None:
        raise ConfigError(
            f"learning rates {text!r} end with the training, whose end is not known", "Add it: end=20B, for example."
        )
    decay = _amount(text, "decay", settings["decay"], end) if "decay" in settings else end - warmup
    if not 0 < decay <= (end - warmup) * (1 + ROUNDING):
        raise ConfigError(
            f"learning rates {text!r}: warmup {warmup:g} and decay {decay:g} do not fit into {end:g}", EXAMPLE
        )
    if shape == "cosine":
        return LearningRates.cosine(end, warmup=warmup, floor=final)
    stable = max(end - decay, warmup)
    corners = np.unique([0.0, warmup, stable, end])
    return LearningRates(corners, np.interp(corners, *_ramp(warmup, stable, end, final)))


def _ramp(warmup: float, stable: float, end: float, final: float) -> tuple[list[float], list[float]]:
    """Return the corners and rates of warm-up, stable part and decay."""
    if warmup > 0:
        return [0.0, warmup, stable, end], [0.0, 1.0, 1.0, final]
    return [0.0, stable, end], [1.0, 1.0, final]


def _settings(text: str, shape: str, rest: str) -> dict[str, str]:
    """Return the settings of a shape as text."""
    settings = dict(DEFAULTS[shape])
    known = [*settings, *([] if shape == "constant" else ["end"])]
    for item in filter(None, (item.strip() for item in rest.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        if name == "peak":
            raise ConfigError(f"learning rates {text!r}: only rates relative to the peak matter", "Leave out peak.")
        if name not in known or not value:
            raise ConfigError(
                f"learning rates {text!r}: {item!r} is not a setting of {shape}; its settings are {', '.join(known)}",
                did_you_mean(name, known) or EXAMPLE,
            )
        settings[name] = value
    return settings


def _amount(text: str, name: str, value: str, end: float | None) -> float:
    """Parse a number of tokens, or a percentage of ``end``."""
    number = amount_of(value.removesuffix("%"))
    if number is None or (name == "end" and (value.endswith("%") or not number > 0)):
        raise ConfigError(
            f"learning rates {text!r}: {name} {value!r} is not a number of tokens or a percentage", EXAMPLE
        )
    if not value.endswith("%"):
        return number
    if end is None:
        raise ConfigError(
            f"learning rates {text!r}: {name} {value!r} is a part of the training, whose end is not known",
            "Give it as a number of tokens.",
        )
    return number / 100 * end


def _part(text: str, value: str) -> float:
    """Parse a part of the peak: ``10%`` or ``0.1``."""
    number = amount_of(value.removesuffix("%"))
    part = -1.0 if number is None else number / 100 if value.endswith("%") else number
    if not 0 <= part <= 1:
        raise ConfigError(f"learning rates {text!r}: final {value!r} is not a part of the peak, 0 to 100%", EXAMPLE)
    return part
