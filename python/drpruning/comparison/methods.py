"""Methods: a method is a strategy with settings, read from a YAML file or built from a strategy's name.

The shipped files are in ``comparison/methods/``; docs/compare.md has an example.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from drpruning.config import Section, StrategyName
from drpruning.errors import ConfigError, did_you_mean
from drpruning.inputs import expected_value, parse_yaml, read_text
from drpruning.mixture import STRATEGIES

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
ENDPOINTS = ("worst", "mean", "weighted")
"""Primary endpoints apart from domains: worst excess, plain mean and ratio-weighted mean."""
SCRATCH = "scratch"
"""The method that supplies reference losses of the target size where the recipe gives none."""


class Method(Section):
    """A row of the table.

    Attributes:
        strategy: Strategy of the mixture.
        what: One sentence for the reader of the table.
        set: Settings of the recipe that differ, in the form of ``--set``: ``{mixture.rho: 0.3}``.
        times: Factors of whole numbers of the recipe: ``{prune.eval_every: 0.5}``.
        references: Source of the reference losses. ``base``: the unpruned model, measured in this setting. ``given``:
            the recipe's numbers or, if it has none, those of the method ``scratch``. The name of another method: the
            final losses of its run with the same seed, on the text of the evaluations in training. Missing: the
            recipe's setting.
        shift: Nats added to the reference losses by domain, to test wrong reference losses.
        average_of: Another method. This one keeps the mixture that the other's run drew, averaged over its tokens, and
            so measures what the movement of the mixture is worth. Its strategy is ``constant``.
        average_over: ``seed``: the average of the run with the same seed; ``seeds``: the mean of the averages of all
            seeds.
        scratch: Whether to train the target's shape from random weights, without a large model, on as many tokens as
            the other methods see in both stages together.
        model: A baseline model, by folder or name on the hub, which is measured and not trained.
    """

    strategy: StrategyName = "drpruning"
    what: str = ""
    set: dict[str, Any] = Field(default={})
    times: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default={})
    references: Name | None = None
    shift: dict[str, float] = Field(default={})
    average_of: Name | None = None
    average_over: Literal["seed", "seeds"] = "seed"
    scratch: bool = False
    model: str | None = None

    @model_validator(mode="after")
    def _baseline_models_have_no_settings(self) -> Self:
        odd = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        if self.model is not None and (odd := odd - {"model", "what"}):
            raise ValueError(f"model names a baseline model, which is not trained; {min(odd)} has no effect on it")
        return self

    @model_validator(mode="before")
    @classmethod
    def _averages_are_constant(cls, body: Any) -> Any:
        if isinstance(body, dict) and body.get("average_of") is not None:
            return {"strategy": "constant", **body}
        return body

    @model_validator(mode="after")
    def _averages_set_the_ratio(self) -> Self:
        if self.average_of is None:
            if self.average_over != "seed":
                raise ValueError("average_over has no effect without average_of")
            return self
        if self.strategy != "constant":
            raise ValueError(f"average_of keeps one mixture; expected strategy constant, got {self.strategy}")
        if odd := [key for key in self.set if key.startswith("data.reference_ratio")]:
            raise ValueError(f"average_of sets data.reference_ratio, and so does set: {odd[0]}")
        return self


class _MethodsFile(Section):
    """Methods, and the endpoints that are declared before the first run: of :data:`ENDPOINTS`, or domains."""

    primary: list[str] = Field(default=[])
    methods: Annotated[dict[Name, Method], Field(min_length=1)]


def shipped() -> list[str]:
    """Return the names of the method files in this package."""
    folder = resources.files("drpruning.comparison") / "methods"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def read_methods(source: str) -> dict[str, Method]:
    """Read the methods of a YAML file, or of a shipped one by its name, in order.

    Raises:
        ConfigError: There is no such file, or it is not a file of methods.

    Example:
        >>> list(read_methods("paper"))[:3]
        ['constant', 'sheared', 'sheared-base']
    """
    return _read(source).methods


def read_primary(sources: Sequence[str]) -> list[str]:
    """Return the primary endpoints of the first file that declares any.

    Raises:
        ConfigError: As :func:`read_methods`.
    """
    return next((found for source in sources if (found := _read(source).primary)), [])


def _read(source: str) -> _MethodsFile:
    if Path(source).is_file():
        text = read_text(source)
    elif source in shipped():
        text = (resources.files("drpruning.comparison") / "methods" / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(
            f"no methods {source!r}: neither a YAML file nor one of the shipped {', '.join(shipped())}",
            did_you_mean(source, shipped()),
        )
    try:
        return _MethodsFile.model_validate(parse_yaml(text, f"methods {source!r}"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise ConfigError(
            f"methods {source!r}: {where or 'the file'}: {expected_value(first['msg'])}",
            "A file of methods has `methods:`, from a name to " + ", ".join(Method.model_fields) + ".",
        ) from error


def choose_methods(
    names: Sequence[str], sources: Sequence[str], models: Sequence[str] = (), *, has_references: bool = False
) -> dict[str, Method]:
    """Return the methods to run.

    Args:
        names: Names of the methods, in this order; empty: all of ``sources``. A name is looked up in ``sources``, then
            in the shipped files, then among the strategies.
        sources: Files of methods, see :func:`read_methods`; of methods with the same name the first is used.
        models: Baseline models, by folder or name on the hub; the last part of the path is the name of the row.
        has_references: Whether the recipe has reference losses by domain.

    Returns:
        The methods by name, then the methods whose runs they need (see :func:`sources`), then the baseline models.

    Raises:
        ConfigError: A name is unknown, methods need each other's runs, or two rows would have the same name.

    Example:
        >>> list(choose_methods(["constant", "sheared", "cvar"], []))
        ['constant', 'sheared', 'cvar', 'scratch']
    """
    given = _merge_methods(read_methods(source) for source in sources)
    known = given | {
        name: method
        for name, method in _merge_methods(read_methods(source) for source in shipped()).items()
        if name not in given
    }
    order = list(dict.fromkeys(names or given or read_methods("paper")))
    chosen: dict[str, Method] = {}
    for name in order:
        method = _find(name, known)
        if method.references == "given":
            method = method.model_copy(update={"references": None if has_references else SCRATCH})
        chosen[name] = method
    for name in order:
        _add_needed(name, known, chosen, [])
    for model in models:
        name = _row_name(model)
        if name in chosen:
            raise ConfigError(
                f"the model {model!r} would be the row {name!r}, which exists already",
                "Name it in a file of methods: `methods: {OTHER-NAME: {model: ...}}`.",
            )
        chosen[name] = Method(model=model)
    return chosen


def needs(method: Method) -> str | None:
    """Return the method whose losses this method takes as references, if it names one."""
    return None if method.references in (None, "base") else method.references


def sources(method: Method) -> list[str]:
    """Return the methods whose runs this method reads: for reference losses, and for an average mixture."""
    return [name for name in (needs(method), method.average_of) if name is not None]


def _row_name(model: str) -> str:
    """Return the last part of a folder or of a name on the hub, as the name of a row."""
    last = Path(model).expanduser().resolve().name if Path(model).is_dir() else model.rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._+-]", "-", last).lstrip("._+-") or "model"


def _merge_methods(files: Iterable[dict[str, Method]]) -> dict[str, Method]:
    merged: dict[str, Method] = {}
    for methods in files:
        merged = methods | merged
    return merged


def _find(name: str, known: dict[str, Method]) -> Method:
    if name in known:
        return known[name]
    if name in STRATEGIES:
        return Method.model_validate({"strategy": name, "what": f"The strategy {name}."})
    names = list(dict.fromkeys([*known, *STRATEGIES]))
    raise ConfigError(f"there is no method {name!r}", did_you_mean(name, names) or f"There are {', '.join(names)}.")


def _add_needed(name: str, known: dict[str, Method], chosen: dict[str, Method], above: list[str]) -> None:
    if name in above:
        raise ConfigError(f"methods need each other's runs, in a cycle: {' -> '.join([*above, name])}")
    for other in sources(chosen[name]):
        chosen.setdefault(other, _find(other, known))
        _add_needed(other, known, chosen, [*above, name])
