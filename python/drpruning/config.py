"""What a recipe can say: its sections, their defaults and bounds; checked once, frozen.

A recipe that became a :class:`RunConfig` is complete and consistent; later code trusts it. A setting that is allowed
but has no effect in this recipe is listed by :meth:`RunConfig.notices`. :mod:`drpruning.recipes` reads the YAML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from drpruning.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Losses = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]

PerDomain = dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]

StrategyName = Literal[
    "constant", "schedule", "sheared", "group_dro", "cvar", "chi_square", "drpruning", "ado", "doremi"
]

# Settings that every strategy reads; without reference losses of their own, some only report excess with them.
SHARED_SETTINGS = ("reference_loss", "min_share", "max_share", "max_epochs")

# Which other settings of `reweight` each strategy reads; the rest have no effect with it.
STRATEGY_SETTINGS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "schedule": ("schedule",),
    "sheared": ("eta", "smoothing"),
    "group_dro": ("eta", "smoothing"),
    "cvar": ("alpha", "floor"),
    "chi_square": ("rho", "floor", "solver"),
    "drpruning": (
        "rho",
        "delta",
        "floor",
        "collect_after",
        "predict_after",
        "min_points",
        "max_band",
        "move_after",
        "ratio_bound",
        "solver",
    ),
    "ado": ("credit_power", "credit_decay", "inertia", "least_share", "collect_after", "min_points"),
    "doremi": ("eta", "smoothing"),
}


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())


class Architecture(Section):
    """Shape of a Llama-type model, in units of its Hugging Face configuration."""

    family: Literal["llama", "mistral", "qwen2", "qwen3"] = Field(default="llama", description="model_type")
    layers: Positive = Field(description="num_hidden_layers")
    hidden: Positive = Field(description="hidden_size")
    heads: Positive = Field(description="num_attention_heads")
    kv_heads: Positive | None = Field(default=None, description="num_key_value_heads; missing: as many as heads")
    head_dim: Positive | None = Field(default=None, description="missing: hidden / heads")
    intermediate: Positive = Field(description="intermediate_size, the width of the FFN")
    vocabulary: Positive | None = Field(default=None, description="rows of the embedding; missing: the tokenizer's")
    positions: Positive = Field(default=4096, description="max_position_embeddings")
    rope_theta: Rate = Field(default=10000.0, description="base of the rotary embedding")
    tied_embeddings: bool = Field(default=True, description="whether the output layer is the embedding")


class ModelConfig(Section):
    """Where the large model comes from."""

    source: str = Field(description="a Hugging Face folder or hub name, or `pretrain` to train it on the spot")
    architecture: Architecture | None = Field(
        default=None,
        description="the model to pretrain; for other sources what is expected, to plan without a download",
    )

    @model_validator(mode="after")
    def _pretrain_needs_architecture(self) -> Self:
        if self.source == "pretrain" and self.architecture is None:
            raise ValueError("source `pretrain` needs `architecture`: the shape of the model to train")
        return self


class DataConfig(Section):
    """The corpus and the mixture to start from."""

    corpus: str = Field(description="a folder with corpus.json, or `demo` for the one built from installed packages")
    seq_len: Positive = Field(description="tokens in a row")
    reference_ratio: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        description="p_R: share of each domain; the mixture at the start and the centre of the chi-square ball"
    )
    draw: Literal["balanced", "random"] = Field(
        default="balanced", description="`balanced`: within a sample of the weights at every row; `random`: i.i.d."
    )

    @model_validator(mode="after")
    def _ratio_sums_to_one(self) -> Self:
        total = sum(self.reference_ratio.values())
        if not self.reference_ratio:
            raise ValueError("reference_ratio names no domain")
        if abs(total - 1) > 1e-6:
            raise ValueError(f"reference_ratio sums to {total:.6g}; shares must sum to 1")
        return self


class StageConfig(Section):
    """What every stage has: its length in optimizer steps, its batch, its learning rate."""

    steps: Positive = Field(description="optimizer steps")
    batch_size: Positive = Field(description="rows of seq_len tokens per optimizer step, over all processes")
    learning_rate: Rate = Field(description="highest rate of the weights")
    warmup: Fraction = Field(default=0.1, description="fraction of the steps in which the rate rises linearly from 0")
    final_learning_rate: Fraction = Field(default=0.1, description="end of the cosine, as a fraction of learning_rate")
    evaluate_every: Positive = Field(description="steps between evaluations; the mixture moves after each")


class PretrainConfig(StageConfig):
    """Training of the source model from scratch, for recipes that bring no model."""

    weights: Literal["even", "reference"] = Field(
        default="even", description="mixture of this stage: all domains alike, or the reference ratio"
    )


class TargetConfig(Section):
    """Shape of the small model; what is missing is kept as in the source."""

    layers: Positive | None = Field(default=None, description="blocks kept")
    hidden: Positive | None = Field(default=None, description="hidden units kept, the same in all blocks")
    heads: Positive | None = Field(default=None, description="query heads kept in each block")
    kv_heads: Positive | None = Field(default=None, description="key/value heads kept; follows from heads")
    intermediate: Positive | None = Field(default=None, description="FFN units kept in each block")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not any(value is not None for value in self.model_dump().values()):
            raise ValueError("a target names at least one of layers, hidden, heads, kv_heads, intermediate")
        return self


class PruneConfig(StageConfig):
    """Learning what to keep, with masks on the source model."""

    target: TargetConfig
    mask_learning_rate: Rate = Field(default=1.0, description="rate of the gates' log-alpha")
    multiplier_learning_rate: Rate = Field(default=1.0, description="rate of the Lagrange multipliers' ascent")
    target_warmup: Fraction = Field(
        default=0.2, description="fraction of the steps in which the target sparsity rises linearly from 0"
    )
    start: Literal["neutral", "taylor", "activation"] = Field(
        default="neutral",
        description="where gates start: all alike, or spread in the order of the units' importance for some batches",
    )
    initial_log_alpha: float | None = Field(default=None, description="start of the gates; higher is further open")
    initial_quadratic_multiplier: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="start of the multiplier of the squared distance to the target sparsity"
    )

    skip_closed: bool = Field(
        default=True, description="leave units whose mask is zero out of the computation; the results are the same"
    )

    def initial(self) -> dict[str, float]:
        """Where gates and multipliers start, as far as the recipe says."""
        given = {
            "initial_log_alpha": self.initial_log_alpha,
            "initial_quadratic": self.initial_quadratic_multiplier,
        }
        return {name: value for name, value in given.items() if value is not None}


class ContinueConfig(StageConfig):
    """Continued pretraining of the pruned model."""


class ChangeConfig(Section):
    """From a moment of the stage on, these weights."""

    at: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(description="optimizer steps, or tokens")
    weights: PerDomain = Field(description="mixture of all domains")


class ScheduleConfig(Section):
    """A history of weights, for each stage."""

    unit: Literal["step", "tokens"] = Field(default="step", description="what `at` counts")
    stages: dict[str, tuple[ChangeConfig, ...]] = Field(
        description="for `prune` and `continue` the changes, each `{at: 400, weights: {web: 0.6, code: 0.4}}`"
    )

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        if list(self.stages) not in (["prune"], ["prune", "continue"]):
            raise ValueError("a schedule has the stage prune, or prune and continue, in this order")
        return self


class ReweightConfig(Section):
    """The strategy that moves the mixture, and its settings; what is missing has the strategy's default."""

    strategy: StrategyName = Field(default="drpruning", description="who chooses the mixture after each evaluation")
    min_share: Fraction | dict[str, Fraction] | None = Field(
        default=None, description="all: least weight, one for all domains or by domain"
    )
    max_share: Fraction | dict[str, Fraction] | None = Field(
        default=None, description="all: largest weight, one for all domains or by domain"
    )
    max_epochs: Rate | dict[str, Rate] | None = Field(
        default=None, description="all: how often a domain may be gone through in a stage, for all domains or by domain"
    )
    schedule: str | ScheduleConfig | None = Field(
        default=None,
        description="schedule: the weights to replay; a run folder, its metrics.jsonl, a YAML file, or written out",
    )
    alpha: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="cvar: the fraction of the reference ratio that the worst domains make up"
    )
    reference_loss: Literal["base"] | Losses | None = Field(
        default=None,
        description="nats per token and domain to measure excess against: given, or `base`: the unpruned model's own",
    )
    rho: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="drpruning, chi_square: radius of the chi-square ball, halved divergence"
    )
    delta: Fraction | None = Field(
        default=None, description="drpruning: how far the reference ratio moves to the weights after an evaluation"
    )
    floor: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="drpruning, chi_square, cvar: least weight of a domain, as a fraction of its reference ratio",
    )
    collect_after: Fraction | None = Field(
        default=None, description="drpruning, ado: part of the stage before losses are collected for the law"
    )
    predict_after: Fraction | None = Field(
        default=None, description="drpruning: part of the stage before predicted reference losses are used"
    )
    min_points: Annotated[int, Field(ge=4)] | None = Field(
        default=None, description="drpruning, ado: losses needed to fit the law"
    )
    max_band: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="drpruning: half width in nats of the 90% band beyond which no prediction is believed"
    )
    move_after: Fraction | None = Field(
        default=None, description="drpruning: part of the stage before the reference ratio moves"
    )
    ratio_bound: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="drpruning: the reference ratio stays within this factor of the initial one"
    )
    solver: Literal["exact", "published"] | None = Field(
        default=None,
        description="drpruning, chi_square: the exact worst case, or the update of the paper's public code",
    )
    eta: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, description="sheared, group_dro, doremi: step of the exponentiated update, per nat"
    )
    smoothing: Fraction | None = Field(
        default=None, description="sheared, group_dro, doremi: share that is spread evenly"
    )

    credit_power: Fraction | None = Field(
        default=None, description="ado: exponent of the share of recent data in a domain's learning speed"
    )
    credit_decay: Fraction | None = Field(default=None, description="ado: what a step leaves of the credit before it")
    inertia: Fraction | None = Field(default=None, description="ado: weight of the mean over time in the mixture")
    least_share: Fraction | None = Field(default=None, description="ado: least preference for a domain")

    def reads(self) -> tuple[str, ...]:
        """The settings that this strategy reads."""
        return (*SHARED_SETTINGS, *STRATEGY_SETTINGS[self.strategy])

    def settings(self) -> dict[str, Any]:
        """What was set of the settings that this strategy reads, without ``reference_loss``, as plain data."""
        return self.model_dump(include=set(self.reads()) - {"reference_loss"}, exclude_none=True)


class TrainingConfig(Section):
    """How to train: what changes speed and safety, not what is learned."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="`auto`: the GPU where there is one")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the forward and backward pass; weights, gates and optimizer stay float32"
    )
    threads: Positive | Literal["auto"] = Field(default="auto", description="CPU threads; `auto` measures a few steps")
    micro_batch_size: Positive | None = Field(default=None, description="rows per forward pass; missing: the batch")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.95), description="of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="of matrices; vectors do not decay")
    clip: Rate = Field(default=1.0, description="largest norm of the weights' gradient")
    checkpoint_every: Positive = Field(default=100, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(default=2, description="checkpoints of the stage that stay")
    tensorboard: bool = Field(default=False, description="write TensorBoard events into the run folder as well")
    evaluation_tokens: Positive = Field(default=65536, description="held-out tokens per domain and evaluation, at most")
    measurement_tokens: Positive = Field(
        default=1048576, description="held-out tokens per domain for the tables of finished models, at most"
    )
    evaluation_batch_size: Positive = Field(default=32, description="rows per forward pass of an evaluation")


class RunConfig(Section):
    """A whole recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run folder")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=17, description="of data order, weights and gates")
    model: ModelConfig
    data: DataConfig
    pretrain: PretrainConfig | None = None
    prune: PruneConfig
    continue_: ContinueConfig = Field(alias="continue")
    reweight: ReweightConfig = ReweightConfig()
    training: TrainingConfig = TrainingConfig()
    compare: tuple[StrategyName, ...] = Field(
        default=(), description="strategies to run as well from the same base, for a table side by side"
    )

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.model.source == "pretrain" and self.pretrain is None:
            raise ValueError("model.source is `pretrain`, so the recipe needs a section `pretrain`")
        domains = set(self.data.reference_ratio)
        for name in ("min_share", "max_share", "max_epochs"):
            bound = getattr(self.reweight, name)
            if isinstance(bound, dict) and (odd := sorted(set(bound) - domains)):
                raise ValueError(f"reweight.{name} names the domain {odd[0]}, which is not in data.reference_ratio")
        least, most = self.shares("min_share", 0.0), self.shares("max_share", 1.0)
        if crossed := [domain for domain in least if least[domain] > most[domain]]:
            raise ValueError(f"reweight.min_share of the domain {crossed[0]} is above its max_share")
        if sum(least.values()) > 1 + 1e-9:
            raise ValueError(f"reweight.min_share asks for {sum(least.values()):.6g} of the mixture over all domains")
        if sum(most.values()) < 1 - 1e-9:
            raise ValueError(f"reweight.max_share allows only {sum(most.values()):.6g} of the mixture over all domains")
        losses = self.reweight.reference_loss
        if isinstance(losses, dict) and set(losses) != domains:
            odd = sorted(set(losses) ^ domains)
            raise ValueError(f"reweight.reference_loss and data.reference_ratio differ in the domains {', '.join(odd)}")
        stages = [("prune", self.prune), ("continue", self.continue_)]
        if self.pretrain is not None:
            stages.append(("pretrain", self.pretrain))
        micro = self.training.micro_batch_size
        for name, stage in stages:
            if micro is not None and stage.batch_size % micro:
                raise ValueError(
                    f"training.micro_batch_size {micro} does not divide {name}.batch_size {stage.batch_size}"
                )
        return self

    @property
    def domains(self) -> list[str]:
        """The domains of the mixture, in the recipe's order."""
        return list(self.data.reference_ratio)

    def shares(self, bound: Literal["min_share", "max_share"], default: float) -> dict[str, float]:
        """A bound of ``reweight`` for each domain."""
        given = getattr(self.reweight, bound)
        if not isinstance(given, dict):
            return dict.fromkeys(self.domains, default if given is None else given)
        return {domain: given.get(domain, default) for domain in self.domains}

    def stage(self, name: str) -> StageConfig:
        """The settings of stage ``pretrain``, ``prune`` or ``continue``."""
        stage = {"pretrain": self.pretrain, "prune": self.prune, "continue": self.continue_}[name]
        if stage is None:
            raise ConfigError(f"the recipe {self.name!r} has no stage {name!r}")
        return stage

    def with_strategy(self, strategy: str) -> RunConfig:
        """The same recipe with another strategy and nothing to compare with."""
        changed = self.model_copy(
            update={"reweight": self.reweight.model_copy(update={"strategy": strategy}), "compare": ()}
        )
        return RunConfig.model_validate(changed.to_dict())

    def with_threads(self, threads: int | Literal["auto"]) -> RunConfig:
        """The same recipe with the thread count given."""
        return self.model_copy(update={"training": self.training.model_copy(update={"threads": threads})})

    def notices(self) -> list[str]:
        """Settings that are given but change nothing in this recipe, a sentence each."""
        read = self.reweight.reads()
        idle = [
            f"reweight.{name} has no effect with reweight.strategy={self.reweight.strategy}"
            for name in type(self.reweight).model_fields
            if name not in ("strategy", *read) and getattr(self.reweight, name) is not None
        ]
        if self.reweight.strategy == "schedule" and self.reweight.schedule is None:
            idle.append("reweight.strategy=schedule without reweight.schedule keeps the reference ratio")
        if self.pretrain is not None and self.model.source != "pretrain":
            idle.append("the section pretrain has no effect with a model.source other than `pretrain`")
        if self.reweight.strategy in self.compare:
            idle.append(f"compare: {self.reweight.strategy} is the run's own strategy and is not run twice")
        return idle

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with every default written out."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def deciding(self) -> dict[str, Any]:
        """The part of :meth:`to_dict` that changes what is learned: what a resumed run must agree on."""
        body = self.to_dict()
        del body["compare"]
        for name in ("checkpoint_every", "keep_checkpoints", "tensorboard"):
            del body["training"][name]
        return body

    def hash(self) -> str:
        """sha256 over :meth:`deciding`."""
        return hashlib.sha256(json.dumps(self.deciding(), sort_keys=True).encode()).hexdigest()


def even(domains: Sequence[str]) -> dict[str, float]:
    """The same share for each domain."""
    return dict.fromkeys(domains, 1 / len(domains))
