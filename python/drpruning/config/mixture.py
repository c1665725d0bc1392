"""The strategy that moves the mixture, and its settings.

The settings of the strategies and the bounds on the mixture are fields of the dataclasses in
:mod:`drpruning.mixture`; this section has the same names, types, ranges and descriptions. A setting that the chosen
strategy does not read is allowed, because a recipe may run several strategies; :meth:`RunConfig.notices` lists it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, create_model, model_validator

from drpruning.config.section import Losses, PerDomain, Section, StaticName
from drpruning.mixture import STRATEGIES, Bounds
from drpruning.mixture.settings import Setting, settings

if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[tuple(STRATEGIES)]
    """Name of a strategy: a key of ``STRATEGIES``."""

READ_BY_ALL = ("strategy", "stages", "reference_loss", *settings(Bounds))
"""Settings that every strategy reads; some strategies only report excess losses with ``reference_loss``."""


class ChangeConfig(Section):
    """A mixture and the place in the stage from which it applies."""

    at: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        description="Start of the mixture, in the unit of the schedule."
    )
    weights: PerDomain | StaticName = Field(
        description="Weight of each domain, or the name of a static mixture, such as `temperature:0.5`."
    )


class ScheduleConfig(Section):
    """A history of mixtures for each stage."""

    unit: Literal["step", "tokens"] = Field(
        default="step", description="Unit of `at`: optimizer steps or tokens of the stage."
    )
    stages: dict[str, tuple[ChangeConfig, ...]] = Field(
        description="Changes of the mixture by stage (`prune`, `continue`), each "
        "`{at: 400, weights: {web: 0.6, code: 0.4}}`."
    )

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        if list(self.stages) not in (["prune"], ["continue"], ["prune", "continue"]):
            raise ValueError("a schedule has the stage prune, continue, or both in this order")
        return self


def _file_name(text: str) -> str:
    if not any(mark in text for mark in "./\\"):
        raise ValueError(
            "expected losses by domain, `base`, or a file of losses of finished models, such as sizes.json"
        )
    return text


class MixtureSection(Section):
    """The settings of the section that are not declared by a strategy or by the bounds."""

    strategy: StrategyName = Field(
        default="drpruning", description="Strategy that chooses the mixture after each evaluation."
    )
    stages: tuple[Literal["prune", "continue"], ...] = Field(
        default=("prune", "continue"),
        min_length=1,
        description="Stages in which the strategy moves the mixture; the other stage has the reference ratio. Without "
        "a section `prune` the default is `[continue]`.",
    )
    reference_loss: Literal["base"] | Losses | Annotated[str, AfterValidator(_file_name)] | None = Field(
        default=None,
        description="Reference loss of each domain, in nats per token: numbers by domain; `base` for the losses of the "
        "unpruned model; or a file with the losses of finished models of several sizes, from which a scaling law gives "
        "the losses at the target's size.",
    )
    schedule: str | ScheduleConfig | None = Field(
        default=None,
        description="Mixtures to replay: a run folder, its metrics.jsonl, a YAML file, or the schedule itself. Read by "
        "schedule.",
    )

    @property
    def sizes_file(self) -> str | None:
        """The file of losses of finished models that the reference losses are computed from, if any."""
        losses = self.reference_loss
        return losses if isinstance(losses, str) and losses != "base" else None

    def settings(self) -> dict[str, Any]:
        """Return the settings of the chosen strategy and the bounds that the recipe sets, as plain data."""
        read = {name for name in type(self).model_fields if self.strategy in readers(name)}
        return self.model_dump(include=read - {"strategy", "stages", "reference_loss"}, exclude_none=True)


def readers(name: str) -> tuple[str, ...]:
    """Return the names of the strategies that read a setting of the section."""
    if name in READ_BY_ALL:
        return tuple(STRATEGIES)
    if name == "schedule":
        return ("schedule",)
    return tuple(strategy for strategy, cls in STRATEGIES.items() if name in settings(cls))


def _fields() -> Iterator[tuple[str, Any]]:
    """Yield name, type and pydantic field of each setting that the bounds or a strategy declare."""
    for name, bound in settings(Bounds).items():
        share: Any = Annotated[float, Field(**_limits([bound]))]
        description = f"{bound.description} One number for all domains, or one for each domain. Read by all strategies."
        yield name, (share | dict[str, share] | None, Field(default=None, description=description))
    for name in dict.fromkeys(name for cls in STRATEGIES.values() for name in settings(cls)):
        declared = {strategy: settings(STRATEGIES[strategy])[name] for strategy in readers(name)}
        first, *_ = declared.values()
        value: Any = Annotated[first.type, Field(**_limits(list(declared.values())))]
        yield name, (value | None, Field(default=None, description=_description(declared)))


def _limits(declared: list[Setting]) -> dict[str, Any]:
    """Return the arguments of :func:`pydantic.Field` for the range that all strategies accept."""
    tightest = {"ge": max, "gt": max, "le": min, "lt": min}
    limits: dict[str, Any] = {}
    for name, choose in tightest.items():
        if values := [item.bounds[name] for item in declared if name in item.bounds]:
            limits[name] = choose(values)
    if limits.get("lt") == math.inf:
        del limits["lt"]
        limits["allow_inf_nan"] = False
    return limits


def _description(declared: dict[str, Setting]) -> str:
    """Return the description of a setting with the strategies that read it and their defaults."""
    by_default: dict[str, list[str]] = {}
    for strategy, item in declared.items():
        default = f"{item.default:g}" if isinstance(item.default, float) else str(item.default).lower()
        by_default.setdefault(default, []).append(strategy)
    defaults = [f"{', '.join(names)} (default {default})" for default, names in by_default.items()]
    first, *_ = declared.values()
    return f"{first.description} Read by {' and '.join(defaults)}."


if TYPE_CHECKING:
    MixtureConfig = MixtureSection
else:
    MixtureConfig = create_model(
        "MixtureConfig",
        __base__=MixtureSection,
        __doc__="The strategy that moves the mixture, and its settings; a missing setting has the strategy's default.",
        **dict(_fields()),
    )
