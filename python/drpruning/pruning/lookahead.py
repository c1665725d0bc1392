"""One-step lookahead: predict which units the next step's masks can keep active, to avoid a device synchronisation.

A sparse forward pass (:mod:`drpruning.pruning.sparse_forward`) needs the active units on the host. Reading them from
the masks of the same step would synchronise with the device. But the masks of step t + 1 depend only on

- the noise of step t + 1, which can be drawn in advance;
- the gates, which move once until then, by a bounded distance: one optimizer step moves a log-alpha by at most
  :func:`drpruning.pruning.learning_rates.max_adam_step`, and the clamp after it never lengthens a move.

A mask never falls when its log-alpha rises. So the masks at the largest reachable log-alphas keep a superset of the
units that step t + 1 keeps, known one step early. A unit that only the superset has costs its share of the computation
and changes no result: its mask is exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from drpruning.pruning import hard_concrete
from drpruning.pruning.sparse_forward import ActiveSet

SLACK = 1e-3
"""Added to the bound on a move: thousands of times the rounding error of a log-alpha and of its mask."""

Locate = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Returns the log-alphas that masks are sampled at, given those that are trained (protected units differ)."""


class MaskLookahead(nn.Module):
    """The active units of the next step, predicted during this step.

    A module, so that its state is saved with the model and a resumed run skips the same units. The buffers are the
    largest log-alphas of the last prediction, float32, by mask kind. They are infinite where there was no prediction:
    then any unit can be active.

    Args:
        gates: Log-alphas by kind.
        locate: See :data:`Locate`.
    """

    def __init__(self, gates: Mapping[str, Tensor], locate: Locate) -> None:
        super().__init__()
        for kind, gate in gates.items():
            self.register_buffer(kind, torch.full_like(gate.detach(), math.inf))
        self._locate = locate
        self._next: ActiveSet | None = None
        self._versions_of_next = self._versions()  # `_next` is valid while the buffers have these versions

    @property
    def predicted(self) -> ActiveSet | None:
        """The prediction for the next step, if any."""
        return self._next

    def reset(self) -> None:
        """Discard the prediction: in the next step any unit can be active."""
        for gate in self.buffers():
            gate.fill_(math.inf)
        self._next, self._versions_of_next = None, self._versions()

    def current(self, noise: Mapping[str, Tensor]) -> ActiveSet | None:
        """Return the prediction that the last step made for this one; None if any unit can be active.

        After a resume the prediction is computed again from the loaded buffers, with one synchronisation.

        Args:
            noise: Uniform noise of this step, by kind.
        """
        if self._versions_of_next == self._versions():
            return self._next
        return self._predict(noise)

    @torch.no_grad()
    def advance(self, gates: Mapping[str, Tensor], next_noise: Mapping[str, Tensor], max_gate_step: float) -> None:
        """Predict the active units of the next step.

        Args:
            gates: Log-alphas by kind, in this step.
            next_noise: Uniform noise of the next step, by kind.
            max_gate_step: Upper bound of the distance that a log-alpha moves until the next step.
        """
        for kind, highest in self.named_buffers():
            highest.copy_(gates[kind] + (max_gate_step + SLACK))
        self._next, self._versions_of_next = self._predict(next_noise), self._versions()

    @torch.no_grad()
    def _predict(self, noise: Mapping[str, Tensor]) -> ActiveSet:
        highest = self._locate(dict(self.named_buffers()))
        return ActiveSet.of({kind: hard_concrete.sample(gate, noise[kind]) for kind, gate in highest.items()})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskLookahead:
        """Move the buffers with the model and keep them in float32 when the model changes its dtype."""
        before, valid = dict(self.named_buffers()), self._versions_of_next == self._versions()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for kind, gate in before.items():
            self.register_buffer(kind, gate.to(self.get_buffer(kind).device))
        if valid and self._next is None:
            self._versions_of_next = self._versions()
        return self

    def _versions(self) -> tuple[int, ...]:
        return versions(dict(self.named_buffers()))


def versions(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return numbers that change when one of the tensors is replaced or changed in place."""
    return tuple(number for tensor in tensors.values() for number in (tensor.data_ptr(), tensor._version))
