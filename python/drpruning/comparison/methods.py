"""What can be compared: a method is a strategy with settings of its own, read from YAML or made from a strategy's name.

The shipped files are in ``comparison/methods/``; docs/compare.md has an example.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, StringConstraints, ValidationError

from drpruning.config import STRATEGY_SETTINGS, Section, StrategyName
from drpruning.errors import ConfigError, did_you_mean

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
SCRATCH = "scratch"
"""The method that supplies reference losses of the target size where the recipe gives none."""


class Method(Section):
    """A row of the table.

    Attributes:
        strategy: Who moves the mixture.
        what: One sentence for the reader of the table.
        set: Settings of the recipe that differ, as ``--set`` writes them: ``{reweight.rho: 0.3}``.
        times: Whole numbers of the recipe to multiply, and by what: ``{prune.evaluate_every: 0.5}``.
        references: Where reference losses come from. ``base``: the unpruned model, measured in this setting. ``given``:
            the recipe's own numbers or, where it has none, those of the method ``scratch``. The name of another method:
            what its run with the same seed ended with, on the text that strategies see. Missing: as the recipe says.
        shift: Nats added to the reference losses by domain, to see what wrong ones do.
        scratch: No large model: the target's shape is trained from new weights, on as many tokens as the others see in
            both stages together.
    """

    strategy: StrategyName = "drpruning"
    what: str = ""
    set: dict[str, Any] = Field(default={})
    times: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={})
    references: Name | None = None
    shift: dict[str, float] = Field(default={})
    scratch: bool = False


class _File(Section):
    methods: Annotated[dict[Name, Method], Field(min_length=1)]


def shipped() -> list[str]:
    """The files of methods in this package, by name."""
    folder = resources.files("drpruning.comparison") / "methods"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def read_methods(source: str) -> dict[str, Method]:
    """The methods of a YAML file, or of a shipped one by its name, in order.

    Raises:
        ConfigError: There is no such file, or it is not a file of methods.

    Example:
        >>> list(read_methods("paper"))[:3]
        ['constant', 'sheared', 'resheared']
    """
    if Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    elif source in shipped():
        text = (resources.files("drpruning.comparison") / "methods" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"no methods {source!r}: neither a YAML file nor one of the shipped {', '.join(shipped())}",
            did_you_mean(source, shipped()),
        )
    try:
        return _File.model_validate(yaml.safe_load(text)).methods
    except yaml.YAMLError as error:
        raise ConfigError(f"methods {source!r} are not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise ConfigError(
            f"methods {source!r}: {where or 'the file'}: {first['msg']}",
            "A file of methods has `methods:`, from a name to strategy, what, set, times, references, shift, scratch.",
        ) from error


def choose_methods(
    names: Sequence[str], sources: Sequence[str], *, references_given: bool = False
) -> dict[str, Method]:
    """The methods to run.

    Args:
        names: Which, in this order; empty: all of ``sources``. A name is looked up in ``sources``, then in the shipped
            files, then among the strategies.
        sources: Files of methods, see :func:`read_methods`; of methods with the same name the first counts.
        references_given: Whether the recipe has reference losses by domain.

    Returns:
        The methods by name, and behind them those whose losses they need as references.

    Raises:
        ConfigError: A name is not known, or references lead in a circle.

    Example:
        >>> list(choose_methods(["constant", "sheared", "cvar"], []))
        ['constant', 'sheared', 'cvar', 'scratch']
    """
    given = _merged(read_methods(source) for source in sources)
    known = given | {
        name: method
        for name, method in _merged(read_methods(source) for source in shipped()).items()
        if name not in given
    }
    wanted = list(dict.fromkeys(names or given or read_methods("paper")))
    chosen: dict[str, Method] = {}
    for name in wanted:
        method = _find(name, known)
        if method.references == "given":
            method = method.model_copy(update={"references": None if references_given else SCRATCH})
        chosen[name] = method
    for name in wanted:
        _add_needed(name, known, chosen, [])
    return chosen


def needs(method: Method) -> str | None:
    """The method whose losses this one takes as references, if it names one."""
    return None if method.references in (None, "base") else method.references


def _merged(files: Iterable[dict[str, Method]]) -> dict[str, Method]:
    merged: dict[str, Method] = {}
    for methods in files:
        merged = methods | merged
    return merged


def _find(name: str, known: dict[str, Method]) -> Method:
    if name in known:
        return known[name]
    if name in STRATEGY_SETTINGS:
        return Method.model_validate({"strategy": name, "what": f"The strategy {name}."})
    names = list(dict.fromkeys([*known, *STRATEGY_SETTINGS]))
    raise ConfigError(f"there is no method {name!r}", did_you_mean(name, names) or f"There are {', '.join(names)}.")


def _add_needed(name: str, known: dict[str, Method], chosen: dict[str, Method], above: list[str]) -> None:
    if name in above:
        raise ConfigError(f"reference losses lead in a circle: {' -> '.join([*above, name])}")
    other = needs(chosen[name])
    if other is not None:
        chosen.setdefault(other, _find(other, known))
        _add_needed(other, known, chosen, [*above, name])
