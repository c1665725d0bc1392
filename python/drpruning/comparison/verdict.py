"""The verdict of a comparison in sentences: which method is ahead of another in which endpoint, or that none is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drpruning.comparison.metrics import MEAN, WEIGHTED, WORST, RunMetrics
from drpruning.formatting import signed
from drpruning.intervals import Difference, benjamini_hochberg


def verdict(metrics: RunMetrics, endpoints: Sequence[str], other: str) -> str:
    """Return, for each endpoint, the method that is furthest ahead of ``other``, with the interval of the difference.

    A method is ahead if the 95% interval of its paired difference excludes zero and the difference passes
    Benjamini-Hochberg at 5% among all methods and endpoints of the verdict. If ``other`` is ahead of every method, the
    sentence has the nearest of them.

    Args:
        metrics: The runs.
        endpoints: Metrics, see :meth:`RunMetrics.metric`.
        other: The method that all others are compared with.

    Returns:
        Sentences; empty if no other method has a seed in common with ``other``.
    """
    found = {name: _differences(metrics, name, other) for name in endpoints}
    every = [(name, method) for name, differences in found.items() for method in differences]
    if not every:
        return ""
    passed = benjamini_hochberg([found[name][method].p_value for name, method in every])
    clear = {key for key, passes in zip(every, passed, strict=True) if passes and found[key[0]][key[1]].excludes_zero}
    sentences, level = [], []
    for name, differences in found.items():
        ahead = [method for method in differences if (name, method) in clear and differences[method].value < 0]
        behind = [method for method in differences if (name, method) in clear and differences[method].value > 0]
        nearest = min(differences, key=lambda method: differences[method].value, default="")
        if ahead:
            first = min(ahead, key=lambda method: differences[method].value)
            more = f"; {len(ahead)} methods are ahead of it" if len(ahead) > 1 else ""
            sentences.append(f"{first} is ahead of {other} in {_noun(name)}: {_interval(differences[first])}{more}.")
        elif differences and len(behind) == len(differences):
            reverse = _interval(differences[nearest], sign=-1)
            whom = nearest if len(behind) == 1 else f"every other method, the nearest {nearest}"
            sentences.append(f"{other} is ahead of {whom} in {_noun(name)}: {reverse}.")
        else:
            level.append(_noun(name))
    if level:
        sentences.append(f"No method is ahead of {other} in {_alternatives(level)}.")
    return " ".join(sentences)


def _differences(metrics: RunMetrics, name: str, other: str) -> dict[str, Difference]:
    """Return the differences to ``other`` whose intervals are known, by method."""
    differences = {method: metrics.difference(name, method, other) for method in metrics.results.methods}
    return {method: found for method, found in differences.items() if found and math.isfinite(found.half_width)}


def _interval(difference: Difference, sign: int = 1) -> str:
    low, high = sorted((sign * difference.low, sign * difference.high))
    return f"{signed(sign * difference.value)} [{signed(low)}, {signed(high)}] nats per token"


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _noun(endpoint: str) -> str:
    return f"the {endpoint}" if endpoint in (WORST, MEAN, WEIGHTED) else f"the domain {endpoint}"
