"""Static mixtures by name: from the sizes of the domains, or from a run.

================== ========================================================================================
``natural``        shares in proportion to the domains' tokens
``uniform``        equal shares
``temperature:a``  shares in proportion to the tokens to the power ``a``; 1 is natural, 0 uniform (the ``alpha`` of
                   XLM-R, Conneau et al. 2020; ``1 / T`` of mT5)
``unimax:e``       equal shares, but no domain is read more than ``e`` times (UniMax, Chung et al. 2023); the
                   rest goes to the larger domains in equal shares
``average:run``    what the run in the folder ``run`` drew, averaged over the tokens of its stages prune and continue
================== ========================================================================================

``power:a`` changes a ratio that exists: :func:`raise_ratio`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from drpruning.errors import WeightError, did_you_mean
from drpruning.records import Record, RunStarted, StepTaken, read_records
from drpruning.run_folder import RunFolder

NAMES = ("natural", "uniform", "temperature:A", "unimax:EPOCHS", "average:RUN")
RULES = ("natural", "uniform", "temperature", "unimax", "average")
EXAMPLES = {"temperature": "temperature:0.5", "unimax": "unimax:4", "average": "average:runs/quickstart"}
POWER = "power:"
BASE_STAGE = "pretrain"
"""Stage of a run that an average leaves out: it trains the large model, which runs share."""


def check_name(name: str) -> str:
    """Return ``name`` if a static mixture has it.

    Raises:
        WeightError: The name is unknown, or its number is out of its range.

    Example:
        >>> check_name("unimax:4")
        'unimax:4'
    """
    _parse(name)
    return name


def static_mixture(name: str, domain_tokens: Mapping[str, float], tokens: float | None = None) -> dict[str, float]:
    """Return the mixture called ``name``.

    Args:
        name: ``natural``, ``uniform``, ``temperature:0.5`` or ``unimax:4``, with any non-negative power and any
            positive number of epochs; or ``average:FOLDER``, see :func:`average_mixture`.
        domain_tokens: Training tokens of each domain, positive; an average does not read them.
        tokens: Tokens of the run, which ``unimax`` needs.

    Raises:
        WeightError: The name is unknown, a number is out of its range, ``unimax`` lacks the tokens of the run, or the
            folder of an average has no run that drew from every domain.

    Example:
        >>> sizes = {"web": 9e9, "code": 1e9, "math": 1e8}
        >>> {domain: round(share, 3) for domain, share in static_mixture("temperature:0.5", sizes).items()}
        {'web': 0.695, 'code': 0.232, 'math': 0.073}
        >>> {domain: round(share, 3) for domain, share in static_mixture("unimax:4", sizes, tokens=4e9).items()}
        {'web': 0.45, 'code': 0.45, 'math': 0.1}
    """
    rule, value = _parse(name)
    if isinstance(value, Path):
        return average_mixture(value)
    if not domain_tokens or not all(math.isfinite(size) and size > 0 for size in domain_tokens.values()):
        raise WeightError(f"domain_tokens is {dict(domain_tokens)}; expected a positive number for each domain")
    if rule == "unimax":
        if tokens is None or not tokens > 0:
            raise WeightError(
                f"{name!r} needs the tokens of the run; got {tokens}", "Pass tokens=, for example tokens=20e9."
            )
        return _unimax(domain_tokens, tokens, value)
    return _power(domain_tokens, value)


def raise_ratio(ratio: Mapping[str, float] | str, name: str) -> dict[str, float] | str:
    """Return a ratio to the power ``a`` of the name ``power:a``; the shares sum to one.

    Args:
        ratio: Share of each domain, positive, of any sum; or ``natural``, ``uniform`` or ``temperature:b``.
        name: ``power:0.5``, with any non-negative power: 1 changes nothing, 0 gives equal shares.

    Returns:
        Shares, or for a name the name ``temperature:c``.

    Raises:
        WeightError: The power or a share is out of its range, or the name depends on more than the domains' tokens.

    Example:
        >>> raise_ratio({"web": 9, "code": 1}, "power:0.5")
        {'web': 0.75, 'code': 0.25}
        >>> raise_ratio("natural", "power:0.5")
        'temperature:0.5'
    """
    power = _number(name.removeprefix(POWER))
    if not name.startswith(POWER) or not power >= 0:
        raise WeightError(f"got {name!r}; expected a ratio to a power of zero or more, such as power:0.5")
    if isinstance(ratio, str):
        rule, value = _parse(ratio)
        if rule != "power" or isinstance(value, Path):
            raise WeightError(f"{name} raises shares, natural, uniform or temperature:A to a power; got {ratio!r}")
        return f"temperature:{str(value * power).removesuffix('.0')}"
    if not ratio or not all(type(share) in (int, float) and 0 < share < math.inf for share in ratio.values()):
        raise WeightError(f"{name} needs a positive share for each domain; got {dict(ratio)}")
    return _power(ratio, power)


def average_mixture(folder: Path) -> dict[str, float]:
    """Return the mixture that a run drew, averaged over the tokens of all its stages but pretrain.

    Args:
        folder: A run folder. A run that has not ended gives the average so far.

    Raises:
        WeightError: The folder has no records of steps, or the run drew nothing from one of its domains.
    """
    file = RunFolder(folder.expanduser()).metrics
    if not file.is_file():
        raise WeightError(
            f"average:{folder}: expected a run folder, but there is no file {file}",
            "Give the folder of a run of `drpruning train`.",
        )
    drawn = drawn_tokens(read_records(file))
    if missing := [domain for domain, tokens in drawn.items() if not tokens]:
        raise WeightError(
            f"average:{folder}: the run drew nothing from domain {missing[0]!r}; every share must be positive"
        )
    if not drawn:
        raise WeightError(f"average:{folder}: the run has no step of the stages prune and continue yet")
    total = sum(drawn.values())
    return {domain: tokens / total for domain, tokens in drawn.items()}


def drawn_tokens(records: Iterable[Record]) -> dict[str, int]:
    """Return the tokens that a run drew from each of its domains, in all stages but pretrain; empty without a step."""
    domains: list[str] = []
    steps: dict[tuple[str, int], dict[str, int]] = {}  # of repeated steps the last counts
    for record in records:
        if isinstance(record, RunStarted):
            domains = record.domains
        elif isinstance(record, StepTaken) and record.stage != BASE_STAGE and record.domain_tokens:
            steps[record.stage, record.step] = record.domain_tokens
    if not steps:
        return {}
    return {domain: sum(tokens.get(domain, 0) for tokens in steps.values()) for domain in domains}


def _parse(name: str) -> tuple[str, float | Path]:
    """Return the rule of a name with its power, its epochs or its folder."""
    rule, colon, text = name.partition(":")
    if rule in ("natural", "uniform") and not colon:
        return "power", 1.0 if rule == "natural" else 0.0
    if rule == "average" and text:
        return rule, Path(text)
    if name.startswith(POWER):
        raise WeightError(
            f"{name} changes the reference ratio of a recipe; it is no mixture",
            f"Use it with --set data.reference_ratio={name}, or in a methods file.",
        )
    number = _number(text)
    if rule == "temperature" and number >= 0:
        return "power", number
    if rule == "unimax" and number > 0:
        return rule, number
    example = f"For example {EXAMPLES[rule]}." if rule in EXAMPLES else None
    raise WeightError(
        f"no static mixture is called {name!r}; expected one of {', '.join(NAMES)}",
        example or did_you_mean(rule, RULES),
    )


def _number(text: str) -> float:
    """Return a finite number, or nan for any other text."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _power(sizes: Mapping[str, float], power: float) -> dict[str, float]:
    largest = max(sizes.values())
    parts = {domain: (size / largest) ** power for domain, size in sizes.items()}
    total = math.fsum(parts.values())
    return {domain: part / total for domain, part in parts.items()}


def _unimax(sizes: Mapping[str, float], tokens: float, epochs: float) -> dict[str, float]:
    """Give each domain, the smallest first, an equal part of what is left, up to its cap.

    If all domains are at their caps before the run ends, the shares are those of the caps.
    """
    budget: dict[str, float] = {}
    left = tokens
    for number, domain in enumerate(sorted(sizes, key=lambda each: sizes[each])):
        budget[domain] = min(left / (len(sizes) - number), epochs * sizes[domain])
        left -= budget[domain]
    total = math.fsum(budget.values())
    return {domain: budget[domain] / total for domain in sizes}
