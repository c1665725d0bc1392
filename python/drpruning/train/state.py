"""The state of a stage: all that its steps change, and no more, is in a checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from drpruning.config import PruneConfig, StageConfig
from drpruning.errors import StateError
from drpruning.flops import FlopCounts
from drpruning.mixture import Observation, Strategy, Update
from drpruning.pruning import MaskedModel, parameter_count
from drpruning.pruning.sizes import evaluated_parameters
from drpruning.records import Evaluated, MixtureUpdated, StepTaken
from drpruning.sampler import DomainSampler
from drpruning.train.distill import Distiller, RowNumbers
from drpruning.train.model_structure import products_of_model
from drpruning.train.optimizers.build import learning_rates
from drpruning.train.validation import HeldOutLosses


@dataclass
class StageState:
    """A stage in progress.

    Args:
        name: ``pretrain``, ``prune`` or ``continue``.
        settings: Its section of the recipe.
        model: The model being trained, a :class:`MaskedModel` in the prune stage.
        optimizer: Over the model's parameters.
        sampler: Yields the batches; holds the weights used from the next batch on.
        strategy: Chooses the weights after each evaluation, and between evaluations if it requests that.
        strategy_state: Its state, a plain dict.
        paired: Whether standard errors are of differences to reference losses on the same rows.
        reference: Those losses: the unpruned model's, or else those of the first evaluation, once there is one.
        distiller: Adds the teacher's objective, if the recipe has one; constant.
        step: Optimizer steps taken.
        tokens: Tokens trained on.
        flops: Operations of the stage so far, over all ranks.
        seconds: Time spent in this stage, over all processes that resumed it.
        nonfinite_batches: Batches of the latest consecutive steps that were skipped as not finite; empty after a step
            that was taken.
        bad_batches: Batches that are not trained on, because they failed before a rollback.
        training_losses: Training loss of each domain since the last update of the mixture: the sum over tokens, and the
            number of tokens.
    """

    name: str
    settings: StageConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    sampler: DomainSampler
    strategy: Strategy
    strategy_state: Any
    paired: bool = False
    reference: HeldOutLosses | None = None
    distiller: Distiller | None = None
    step: int = 0
    tokens: int = 0
    flops: FlopCounts = field(default_factory=FlopCounts)
    seconds: float = 0.0
    nonfinite_batches: list[int] = field(default_factory=list)
    bad_batches: frozenset[int] = frozenset()
    training_losses: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def masked(self) -> MaskedModel | None:
        """The model with its masks, in the prune stage."""
        return self.model if isinstance(self.model, MaskedModel) else None

    @property
    def finished(self) -> bool:
        """Whether every step of the stage is taken."""
        return self.step >= self.settings.steps

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation follows the step just taken: as the recipe sets, or at the end of a probe."""
        scheduled = self.step % self.settings.eval_every == 0 or self.finished
        return scheduled or self.step == self.strategy.probe_end(self.strategy_state)

    @property
    def update_due(self) -> bool:
        """Whether the strategy requests an update after the step just taken, with or without an evaluation."""
        return self.strategy.update_due(self.strategy_state, self.step, self.tokens)

    @property
    def rescoring_due(self) -> bool:
        """Whether the units are scored again before the next step: at the start of a later cycle."""
        settings = self.settings
        rescore = isinstance(settings, PruneConfig) and settings.rescore_cycles and self.masked is not None
        return rescore and self.masked is not None and self.masked.schedule.rescoring_due(self.step)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch, over all ranks."""
        return self.settings.batch_size * self.sampler.seq_len

    @cached_property
    def products(self) -> float:
        """Products of a token in a forward pass of the model without masks."""
        return products_of_model(self.model if self.masked is None else self.masked.model, self.sampler.seq_len)

    @cached_property
    def teacher_products(self) -> float:
        """Products of a token in the teacher's forward pass; zero without a teacher that runs.

        With ``distill.missing: compute`` it is an upper bound: rows that are stored count too.
        """
        if self.distiller is None or not self.distiller.settings.runs_teacher:
            return 0.0
        teacher = self.distiller.teacher  # None is the student without masks
        return self.products if teacher is None else products_of_model(teacher, self.sampler.seq_len)

    def set_weights(self, weights: dict[str, float]) -> None:
        """Draw by ``weights`` from the next batch on; domains of the corpus that are not named are not drawn."""
        self.sampler.set_weights({domain: weights.get(domain, 0.0) for domain in self.sampler.corpus.domains})

    def skip_bad_batches(self) -> None:
        """Skip the next batches while they are among :attr:`bad_batches`."""
        while self.sampler.step in self.bad_batches:
            self.sampler.skip(1)

    def row_numbers(self, first: int, count: int) -> RowNumbers:
        """Return the places in the corpus of rows of the last batch drawn, without a copy from the device.

        Args:
            first: Number of the first row among each rank's rows of the batch.
            count: Number of rows of each rank.
        """
        plan, sampler = self.sampler.peek(self.sampler.step - 1), self.sampler
        ranks, part = sampler.world_size, slice(first, first + count)
        return RowNumbers(plan.domains.reshape(ranks, -1)[:, part], plan.rows.reshape(ranks, -1)[:, part], sampler.rank)

    def add_training_losses(self, record: StepTaken) -> None:
        """Add the losses of a step to those since the last update; a step that was skipped has none."""
        if record.skipped:
            return
        for domain, loss in (record.domain_losses or {}).items():
            total, tokens = self.training_losses.get(domain, (0.0, 0))
            new = (record.domain_tokens or {})[domain]
            self.training_losses[domain] = (total + loss * new, tokens + new)

    def observation(self, measured: HeldOutLosses | None) -> Observation:
        """Return the strategy's input from the held-out losses measured now, if any, and the training losses."""
        params, final_params = float(count_parameters(self.model)), float(count_parameters(self.model))
        if self.masked is not None:
            params = evaluated_parameters(self.masked)
            final_params = float(parameter_count(self.masked.model.config, self.masked.target))
        corpus, seq_len = self.sampler.corpus, self.sampler.seq_len
        return Observation(
            step=self.step,
            tokens=self.tokens,
            params=params,
            losses={} if measured is None else measured.means(),
            final_tokens=self.settings.steps * self.tokens_per_step,
            final_params=final_params,
            domain_tokens={domain: rows * seq_len for domain, rows in corpus.num_rows(seq_len).items()},
            consumed=self.sampler.tokens,
            standard_errors=None if measured is None else measured.standard_errors(self.reference),
            learning_rates=learning_rates(self.settings, self.tokens_per_step),
            training_losses={domain: total / tokens for domain, (total, tokens) in self.training_losses.items()},
            training_tokens={domain: tokens for domain, (_, tokens) in self.training_losses.items()},
        )

    def replicated_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that every rank holds whole and must hold alike: gates and multipliers, by name."""
        if self.masked is None:
            return {}
        multipliers = {f"{kind} multipliers": pair for kind, pair in self.masked.multipliers.items()}
        return {**self.masked.gates, **multipliers}

    def tensors(self) -> dict[str, Any]:
        """Return model and optimizer as nested dicts keyed by parameter names, for torch.distributed.checkpoint."""
        return tensors_of(self.model, self.optimizer)

    def load_tensors(self, tensors: dict[str, Any]) -> None:
        """Load the result of :meth:`tensors`."""
        load_tensors(self.model, self.optimizer, tensors)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the tensors, JSON-able."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "flops": asdict(self.flops),
            "seconds": self.seconds,
            "nonfinite_batches": self.nonfinite_batches,
            "training_losses": {domain: list(sums) for domain, sums in self.training_losses.items()},
            "sampler": self.sampler.state_dict(),
            "strategy": type(self.strategy).__name__,
            "strategy_state": self.strategy_state,
            "reference": None
            if self.reference is None
            else {domain: losses.tolist() for domain, losses in self.reference.rows.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict`."""
        self.step = state["step"]
        if self.masked is not None:
            self.masked.step = self.step - 1
        self.tokens = state["tokens"]
        self.flops = FlopCounts(**state["flops"])
        self.seconds = state["seconds"]
        self.nonfinite_batches = list(state["nonfinite_batches"])
        self.training_losses = {domain: (total, tokens) for domain, (total, tokens) in state["training_losses"].items()}
        self.sampler.load_state_dict(state["sampler"])
        self.strategy_state = self.strategy.checked(state["strategy_state"])
        self.reference = saved_reference(state)


def check_saved(saved: dict[str, Any]) -> None:
    """Check keys and types of a checkpoint's state, as :func:`drpruning.train.loop.save_checkpoint` writes it.

    Raises:
        StateError: A key is missing, or its value has another type.
    """
    stage = saved.get("stage")
    counts = [saved.get("records")]
    if isinstance(stage, dict):
        batches = stage.get("nonfinite_batches")
        counts += [stage.get("step"), stage.get("tokens"), *(batches if isinstance(batches, list) else [None])]
        seconds, sampler, reference = stage.get("seconds"), stage.get("sampler"), stage.get("reference", 0)
        counts.append(sampler.get("step") if isinstance(sampler, dict) else None)
        if (
            all(type(count) is int and 0 <= count < 2**63 for count in counts)
            and type(seconds) in {int, float}
            and _are_counts(stage.get("flops"))
            and isinstance(stage.get("strategy"), str)
            and isinstance(stage.get("strategy_state"), dict)
            and (reference is None or _are_losses(reference))
        ):
            return
    raise StateError("the state of the stage is damaged: a key is missing, or a value has another type")


def _are_counts(flops: Any) -> bool:
    """Return whether ``flops`` has a number for each part of :class:`drpruning.flops.FlopCounts`."""
    return (
        isinstance(flops, dict)
        and flops.keys() == asdict(FlopCounts()).keys()
        and all(type(count) in {int, float} and count >= 0 for count in flops.values())
    )


def _are_losses(rows: Any) -> bool:
    """Return whether ``rows`` has a list of numbers for each domain."""
    return isinstance(rows, dict) and all(
        isinstance(losses, list) and all(type(loss) in {int, float} for loss in losses) for losses in rows.values()
    )


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return model and optimizer as nested dicts keyed by parameter names: the tensors themselves, not copies."""
    return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}


def load_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Any]) -> None:
    """Load the result of :func:`tensors_of`."""
    model.load_state_dict(tensors["model"])
    set_optimizer_state_dict(model, optimizer, tensors["optimizer"])


def saved_reference(state: dict[str, Any]) -> HeldOutLosses | None:
    """Return the reference losses by row in a result of :meth:`StageState.state_dict`, float64 bit for bit."""
    rows = state["reference"]
    if rows is None:
        return None
    return HeldOutLosses({domain: torch.tensor(losses, dtype=torch.float64) for domain, losses in rows.items()})


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def step_seed(seed: int, stage: str, step: int) -> int:
    """Return a 63-bit seed for one step; equal inputs give equal seeds on every platform."""
    digest = hashlib.blake2b(f"{seed}/{stage}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def evaluation_record(stage: StageState, observation: Observation, update: Update) -> Evaluated:
    """Return the record of an evaluation: the strategy's input and its whole answer."""
    answer: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(update).items()
    }
    return Evaluated(
        stage=stage.name,
        step=observation.step,
        tokens=observation.tokens,
        parameters=observation.params,
        losses=dict(observation.losses),
        standard_errors=dict(observation.standard_errors or {}),
        epochs=stage.sampler.epochs,
        **answer,
    )


def update_record(stage: StageState, observation: Observation, update: Update) -> MixtureUpdated:
    """Return the record of an update between evaluations."""
    return MixtureUpdated(
        stage=stage.name,
        step=observation.step,
        tokens=observation.tokens,
        weights=update.weights,
        training_losses=dict(observation.training_losses or {}),
        status=update.status,
    )
