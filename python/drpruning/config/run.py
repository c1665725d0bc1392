"""A recipe as a whole: all sections, checked together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from drpruning.config import presets
from drpruning.config.data import DataConfig
from drpruning.config.mixture import MixtureConfig, ScheduleConfig, StrategyName, readers
from drpruning.config.model import ModelConfig
from drpruning.config.section import Section
from drpruning.config.stages import ContinueConfig, PretrainConfig, PruneConfig, StageConfig
from drpruning.config.task_eval import TaskEvalConfig
from drpruning.config.training import TrainingConfig
from drpruning.errors import ConfigError

CHANGEABLE = (
    "checkpoint_every",
    "keep_checkpoints",
    "async_checkpoints",
    "fsdp_shard",
    "distributed_timeout_s",
    "max_skipped_steps",
    "peak_tflops",
    "logger",
)
"""Settings of ``training`` that a resumed run may change: they do not affect the trained weights."""


class RunConfig(Section):
    """A recipe: all sections."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run folder.")
    preset: Literal["published"] | None = Field(
        default=None,
        description="Settings for the sections prune and mixture where the recipe has none; `published` is those of "
        "the papers' public code (docs/fidelity.md).",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=17, description="Seed of the order of rows, of new weights and of gates."
    )
    model: ModelConfig
    data: DataConfig
    pretrain: PretrainConfig | None = None
    prune: PruneConfig | None = Field(default=None, description="Without this section the model keeps its shape.")
    continue_: ContinueConfig = Field(alias="continue")
    mixture: MixtureConfig = MixtureConfig()
    training: TrainingConfig = TrainingConfig()
    task_eval: TaskEvalConfig = TaskEvalConfig()
    also_run: tuple[StrategyName, ...] = Field(
        default=(), description="Strategies to run from the same base as well, for a table of all."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, body: Any) -> Any:
        """Add the preset's settings where the recipe has none, or null."""
        if not isinstance(body, dict) or body.get("preset") != "published":
            return body
        body = dict(body)
        mixture = body.get("mixture")
        strategy = mixture.get("strategy") if isinstance(mixture, dict) else None
        strategy = strategy if isinstance(strategy, str) else "drpruning"
        fillings = {"mixture": presets.STRATEGIES.get(strategy, {})}
        if body.get("prune") is not None:
            fillings["prune"] = presets.PRUNE
        for section, filling in fillings.items():
            given = body.get(section) or {}
            if isinstance(given, dict):
                own = {key: value for key, value in given.items() if value is not None}
                body[section] = {**given, **filling, **own}
        return body

    @model_validator(mode="before")
    @classmethod
    def _default_of_mixture_stages(cls, body: Any) -> Any:
        """Set ``mixture.stages`` to ``[continue]`` if the recipe has neither it nor a stage ``prune``."""
        if not isinstance(body, dict) or body.get("prune") is not None:
            return body
        mixture = body.get("mixture")
        if isinstance(mixture, MixtureConfig) and "stages" not in mixture.model_fields_set:
            return {**body, "mixture": mixture.model_copy(update={"stages": ("continue",)})}
        if mixture is None or isinstance(mixture, dict):
            return {**body, "mixture": {"stages": ["continue"], **(mixture or {})}}
        return body

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.model.source == "pretrain" and self.pretrain is None:
            raise ValueError("model.source is `pretrain`, so the recipe needs a section `pretrain`")
        if self.prune is None and "prune" in self.mixture.stages:
            raise ValueError("mixture.stages names the stage prune, and the recipe has no section `prune`")
        stages = {"prune": self.prune, "continue": self.continue_, "pretrain": self.pretrain}
        if late := [step for step in self.task_eval.at_steps if step > self.continue_.steps]:
            raise ValueError(
                f"task_eval.at_steps has step {late[0]}, and the stage continue ends at {self.continue_.steps}"
            )
        micro = self.training.micro_batch_size
        for name, stage in stages.items():
            if stage is not None and micro is not None and stage.batch_size % micro:
                raise ValueError(
                    f"training.micro_batch_size {micro} does not divide {name}.batch_size {stage.batch_size}"
                )
        return self

    @model_validator(mode="after")
    def _domains_agree(self) -> Self:
        if isinstance(self.data.reference_ratio, str):
            return self  # checked again with its shares
        domains = set(self.data.reference_ratio)
        base = None if self.pretrain is None else self.pretrain.mixture
        if isinstance(base, dict) and set(base) != domains:
            odd = sorted(set(base) ^ domains)
            raise ValueError(f"pretrain.mixture and data.reference_ratio differ in the domains {', '.join(odd)}")
        for name in ("min_share", "max_share", "max_epochs"):
            bound = getattr(self.mixture, name)
            if isinstance(bound, dict) and (odd := sorted(set(bound) - domains)):
                raise ValueError(f"mixture.{name} names the domain {odd[0]}, which is not in data.reference_ratio")
        least, most = self.shares("min_share", 0.0), self.shares("max_share", 1.0)
        if crossed := [domain for domain in least if least[domain] > most[domain]]:
            raise ValueError(f"mixture.min_share of the domain {crossed[0]} is above its max_share")
        if sum(least.values()) > 1 + 1e-9:
            raise ValueError(
                f"mixture.min_share sums to {sum(least.values()):.6g} over all domains; expected at most 1"
            )
        if sum(most.values()) < 1 - 1e-9:
            raise ValueError(
                f"mixture.max_share sums to {sum(most.values()):.6g} over all domains; expected at least 1"
            )
        losses = self.mixture.reference_loss
        if isinstance(losses, dict) and set(losses) != domains:
            odd = sorted(set(losses) ^ domains)
            raise ValueError(f"mixture.reference_loss and data.reference_ratio differ in the domains {', '.join(odd)}")
        return self

    @property
    def domains(self) -> list[str]:
        """The domains of the mixture, in the recipe's order.

        Raises:
            ConfigError: As :attr:`reference_ratio`.
        """
        return list(self.reference_ratio)

    @property
    def reference_ratio(self) -> dict[str, float]:
        """The share of each domain.

        Raises:
            ConfigError: The recipe has a name in its place, which only its corpus turns into shares
                (:func:`drpruning.recipes.with_shares`).
        """
        ratio = self.data.reference_ratio
        if isinstance(ratio, str):
            raise ConfigError(
                f"data.reference_ratio is {ratio!r}, and the shares are not known without the corpus",
                "Give a share for each domain: --set 'data.reference_ratio={web: 0.8, code: 0.2}'.",
            )
        return ratio

    @property
    def pretrain_ratio(self) -> dict[str, float]:
        """The share of each domain in the stage pretrain.

        Raises:
            ConfigError: As :attr:`reference_ratio`.
        """
        mixture = "uniform" if self.pretrain is None else self.pretrain.mixture
        if isinstance(mixture, dict):
            return {domain: mixture[domain] for domain in self.domains}
        if mixture == "uniform":
            return uniform(self.domains)
        if mixture == "reference":
            return self.reference_ratio
        raise ConfigError(
            f"pretrain.mixture is {mixture!r}, and the shares are not known without the corpus",
            "Give a share for each domain.",
        )

    @property
    def mixture_names(self) -> dict[str, str]:
        """The names of static mixtures that the recipe has in place of shares, by setting.

        ``pretrain.mixture`` is one of them only if the corpus determines its shares.
        """
        names = {"data.reference_ratio": self.data.reference_ratio}
        if self.pretrain is not None and self.pretrain.mixture not in ("uniform", "reference"):
            names["pretrain.mixture"] = self.pretrain.mixture
        if isinstance(self.mixture.schedule, ScheduleConfig):
            for stage, changes in self.mixture.schedule.stages.items():
                names |= {f"mixture.schedule.stages.{stage}.{at}": each.weights for at, each in enumerate(changes)}
        return {setting: name for setting, name in names.items() if isinstance(name, str)}

    def shares_to_set(self) -> dict[str, dict[str, float]]:
        """Return the settings, by name, that fix the mixtures of this recipe while another reference ratio is set.

        The stage pretrain keeps its mixture, so that runs with several reference ratios share a base.
        """
        if isinstance(self.data.reference_ratio, str):
            return {}
        fixed = {"data.reference_ratio": self.reference_ratio}
        if self.pretrain is not None and self.pretrain.mixture != "uniform":
            fixed["pretrain.mixture"] = self.pretrain_ratio
        return fixed

    def tokens(self, *stages: str) -> int:
        """Return the tokens that these stages train on."""
        return sum(self.stage(name).steps * self.stage(name).batch_size * self.data.seq_len for name in stages)

    @property
    def stages(self) -> list[str]:
        """The stages of a run in their order."""
        before = ["pretrain"] if self.model.source == "pretrain" else []
        if self.prune is not None and self.model.source != "scratch":
            before.append("prune")
        return [*before, "continue"]

    @property
    def calibration_shares(self) -> dict[str, float]:
        """The share of each domain in the rows of ``prune.calibration``."""
        if self.pruning.calibration.rows == "even":
            return dict.fromkeys(self.domains, 1 / len(self.domains))
        return self.reference_ratio

    @property
    def pruning(self) -> PruneConfig:
        """The section ``prune``.

        Raises:
            ConfigError: The recipe has none.
        """
        if self.prune is None:
            raise ConfigError(
                f"the recipe {self.name!r} has no stage prune: its model keeps its shape",
                "Add a section `prune` with a target, or start from a recipe that has one (`drpruning recipes`).",
            )
        return self.prune

    @property
    def pretrain_seed(self) -> int:
        """The seed that the base is trained with."""
        own = None if self.pretrain is None else self.pretrain.seed
        return self.seed if own is None else own

    def shares(self, bound: Literal["min_share", "max_share"], default: float) -> dict[str, float]:
        """Return a bound of ``mixture`` for each domain."""
        given = getattr(self.mixture, bound)
        if not isinstance(given, dict):
            return dict.fromkeys(self.domains, default if given is None else given)
        return {domain: given.get(domain, default) for domain in self.domains}

    def stage(self, name: str) -> StageConfig:
        """Return the settings of stage ``pretrain``, ``prune`` or ``continue``."""
        stage = {"pretrain": self.pretrain, "prune": self.prune, "continue": self.continue_}[name]
        if stage is None:
            raise ConfigError(f"the recipe {self.name!r} has no stage {name!r}")
        return stage

    def with_strategy(self, strategy: str) -> RunConfig:
        """Return the same recipe with another strategy and an empty ``also_run``."""
        changed = self.model_copy(
            update={"mixture": self.mixture.model_copy(update={"strategy": strategy}), "also_run": ()}
        )
        return RunConfig.model_validate(changed.to_dict())

    def with_reference_loss(self, losses: dict[str, float] | str | None) -> RunConfig:
        """Return the same recipe with other reference losses."""
        return self.model_copy(update={"mixture": self.mixture.model_copy(update={"reference_loss": losses})})

    def with_threads(self, threads: int | Literal["auto"]) -> RunConfig:
        """Return the same recipe with another number of threads."""
        return self.model_copy(update={"training": self.training.model_copy(update={"threads": threads})})

    def notices(self) -> list[str]:
        """Return a sentence for each setting of this recipe that has no effect."""
        strategy = self.mixture.strategy
        idle = [
            f"mixture.{name} has no effect with mixture.strategy={strategy}; it is read by {', '.join(readers(name))}"
            for name in type(self.mixture).model_fields
            if strategy not in readers(name) and getattr(self.mixture, name) is not None
        ]
        if self.mixture.strategy == "schedule" and self.mixture.schedule is None:
            idle.append("mixture.strategy=schedule without mixture.schedule keeps the reference ratio")
        idle += [
            f"{name}.decay_fraction has no effect with {name}.lr_schedule=cosine"
            for name in self.stages
            if self.stage(name).decay_fraction is not None and self.stage(name).lr_schedule == "cosine"
        ]
        idle += [
            f"training.cross_entropy has no effect on the {name} stage, whose distillation does not use it"
            for name in self.stages
            if getattr(self.stage(name), "distill", None) is not None
            and self.training.cross_entropy not in ("auto", "plain")
        ]
        if self.prune is not None and self.prune.gates == "deterministic":
            idle += [
                f"prune.{name} has no effect with prune.gates=deterministic, which has no multipliers"
                for name in ("multiplier_learning_rate", "quadratic_multiplier_init")
                if getattr(self.prune, name) not in (None, "auto")
            ]
        idle += self._idle_of_distillation() + self._idle_of_importance()
        if self.training.cross_entropy == "plain" and self.training.cross_entropy_chunk is not None:
            idle.append("training.cross_entropy_chunk has no effect with training.cross_entropy=plain")
        if self.pretrain is not None and self.model.source != "pretrain":
            idle.append("the section pretrain has no effect with a model.source other than `pretrain`")
        if self.model.source == "scratch":
            if self.prune is not None:
                idle.append(
                    "with model.source=scratch nothing is pruned; of the section prune only the target has an effect"
                )
            if self.continue_.distill is not None:
                idle.append("continue.distill has no effect with model.source=scratch: there is no teacher")
        if self.prune is not None and self.prune.gate_init == "uniform" and self.prune.calibration.combine is not None:
            idle.append(
                "prune.calibration.combine has no effect with prune.gate_init=uniform: no importance is measured"
            )
        if self.mixture.strategy in self.also_run:
            idle.append(f"also_run: {self.mixture.strategy} is the run's own strategy and is not run twice")
        return idle

    def _idle_of_distillation(self) -> list[str]:
        idle: list[str] = []
        for name in self.stages:
            distill = getattr(self.stage(name), "distill", None)
            if distill is not None and distill.weight == 0 and not distill.final_weight:
                idle += [
                    f"{name}.distill.{setting} has no effect with {name}.distill.weight=0: no divergence is computed"
                    for setting, default in (("temperature", 1.0), ("top_k", None))
                    if getattr(distill, setting) != default
                ]
        return idle

    def _idle_of_importance(self) -> list[str]:
        idle: list[str] = []
        if self.prune is None:
            return idle
        if self.prune.rescore_cycles and self.prune.cycles == 1:
            idle.append("prune.rescore_cycles has no effect with prune.cycles=1: units are scored before the first one")
        calibration = self.prune.calibration
        combined = self.prune.gate_init != "uniform" and calibration.combine == "worst_case"
        if calibration.rho != type(calibration).model_fields["rho"].default and not combined:
            idle.append(
                "prune.calibration.rho has no effect without importance that is combined by "
                "prune.calibration.combine=worst_case"
            )
        return idle

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with all defaults."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """Return the recipe with all defaults as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def fixed_on_resume(self) -> dict[str, Any]:
        """Return the part of :meth:`to_dict` that affects the trained weights; a resumed run must have the same."""
        body = self.to_dict()
        del body["also_run"], body["task_eval"]
        for name in CHANGEABLE:
            del body["training"][name]
        return body

    def hash(self) -> str:
        """Return the sha256 of :meth:`fixed_on_resume`."""
        return hashlib.sha256(json.dumps(self.fixed_on_resume(), sort_keys=True).encode()).hexdigest()


def uniform(domains: Sequence[str]) -> dict[str, float]:
    """Return the same share for each domain."""
    return dict.fromkeys(domains, 1 / len(domains))
