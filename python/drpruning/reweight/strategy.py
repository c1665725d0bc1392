"""What a strategy is: the protocol that all of them follow and that a training loop relies on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from drpruning.reweight.bounds import Bounds
from drpruning.reweight.observation import Observation, State, Update


class Strategy(Protocol):
    """Chooses the mixture from the losses. Implementations are frozen dataclasses of settings."""

    name: ClassVar[str]

    @property
    def bounds(self) -> Bounds:
        """Limits on the mixture."""

    def init(
        self,
        domains: Sequence[str],
        reference_ratio: Mapping[str, float],
        *,
        reference_loss: Mapping[str, float] | None = None,
    ) -> State:
        """The state before the first evaluation, as JSON-able data; ``state["weights"]`` is the mixture to start with.

        Args:
            domains: Their names; the order of everything in the state.
            reference_ratio: Mixture to start from, positive, sum one.
            reference_loss: Loss each domain should reach, nats per token, if known.

        Raises:
            WeightError: A domain is missing or unknown, or a number is not as described.
            ConfigError: No mixture of these domains is within the bounds.
        """

    def next_stage(self, state: State) -> State:
        """The state for the start of another stage of the same run: what is learned stays, the curves begin anew."""

    def update(self, state: State, observation: Observation) -> tuple[State, Update]:
        """The next state and the mixture to use from the next batch on; ``state`` itself is not changed.

        Raises:
            WeightError: A loss is of an unknown domain.
            StateError: The state is not one of this strategy and version.
            ConfigError: The observation lacks something the settings need, or the bounds cannot be kept.
        """
