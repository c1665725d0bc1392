"""What a stage changes while it runs: all of it, and only that, is what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from drpruning.config import StageConfig
from drpruning.mixture import Strategy
from drpruning.pruning import MaskedModel
from drpruning.sampler import DomainSampler
from drpruning.train.distill import Distiller
from drpruning.train.validation import HeldOutLosses


@dataclass
class StageState:
    """A stage under way.

    Args:
        name: ``pretrain``, ``prune`` or ``continue``.
        settings: Its section of the recipe.
        model: The model being trained, a :class:`MaskedModel` in the prune stage.
        optimizer: Over the model's parameters.
        sampler: Yields the batches; holds the weights used from the next batch on.
        strategy: Chooses the weights after each evaluation.
        mixture: The strategy's own state.
        paired: Whether standard errors are of differences to reference losses on the same rows.
        reference: Those losses: the unpruned model's, or else those of the first evaluation once there is one.
        distiller: What the unpruned model teaches, if anything; it does not change.
        step: Optimizer steps taken.
        tokens: Tokens trained on.
        seconds: Time spent in this stage, over all sittings.
        skipped: Numbers of the batches of the last steps in a row that were skipped: none after a step that was taken.
        passed_over: Numbers of batches that are not trained on, because they failed before.
    """

    name: str
    settings: StageConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    sampler: DomainSampler
    strategy: Strategy
    mixture: Any
    paired: bool = False
    reference: HeldOutLosses | None = None
    distiller: Distiller | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: list[int] = field(default_factory=list)
    passed_over: frozenset[int] = frozenset()

    @property
    def masked(self) -> MaskedModel | None:
        """The model with its masks, in the prune stage."""
        return self.model if isinstance(self.model, MaskedModel) else None

    @property
    def finished(self) -> bool:
        """Whether every step of the stage has been taken."""
        return self.step >= self.settings.steps

    def set_weights(self, weights: dict[str, float]) -> None:
        """Draws by ``weights`` from the next batch on; domains of the corpus that are not named are not drawn."""
        self.sampler.set_weights({domain: weights.get(domain, 0.0) for domain in self.sampler.corpus.domains})

    def pass_over(self) -> None:
        """Leaves out the batches that come next, as far as they are to be passed over."""
        while self.sampler.step in self.passed_over:
            self.sampler.skip(1)

    def tensors(self) -> dict[str, Any]:
        """Model and optimizer as nested dicts keyed by parameter names, for torch.distributed.checkpoint."""
        return tensors_of(self.model, self.optimizer)

    def load_tensors(self, tensors: dict[str, Any]) -> None:
        """Puts back what :meth:`tensors` gave."""
        load_tensors(self.model, self.optimizer, tensors)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is not a tensor, JSON-able."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "sampler": self.sampler.state_dict(),
            "strategy": type(self.strategy).__name__,
            "mixture": self.mixture,
            "reference": None
            if self.reference is None
            else {domain: losses.tolist() for domain, losses in self.reference.rows.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what :meth:`state_dict` gave."""
        self.step = state["step"]
        self.tokens = state["tokens"]
        self.seconds = state["seconds"]
        self.skipped = list(state["skipped"])
        self.sampler.load_state_dict(state["sampler"])
        self.mixture = state["mixture"]
        self.reference = reference_in(state)


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer as nested dicts keyed by parameter names: the tensors themselves, not copies."""
    return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}


def load_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Any]) -> None:
    """Puts back what :func:`tensors_of` gave."""
    model.load_state_dict(tensors["model"])
    set_optimizer_state_dict(model, optimizer, tensors["optimizer"])


def reference_in(state: dict[str, Any]) -> HeldOutLosses | None:
    """The reference losses by row that a state of :meth:`StageState.state_dict` holds; float64 comes back exactly."""
    rows = state["reference"]
    if rows is None:
        return None
    return HeldOutLosses({domain: torch.tensor(losses, dtype=torch.float64) for domain, losses in rows.items()})
