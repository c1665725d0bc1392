"""What a step can need, found out a step ahead, so that nobody waits to learn which units its masks leave open.

The masks of a step follow from its noise, which can be drawn at any time, and from the gates, which move once before:
by a limited distance (:func:`drpruning.pruning.rates.farthest_step`; the clamp after the step never lengthens a move:
:meth:`drpruning.pruning.MaskedModel.clamp_gates`). A mask rises with its log-alpha. So the masks at
the highest log-alphas that the gates can have by then leave open all that will be open, and a little more. What more is
open costs its share of the computation and changes nothing: its mask is exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from drpruning.pruning import hard_concrete
from drpruning.pruning.closed import Look

SLACK = 1e-3
"""Added to how far a log-alpha can move: thousands of times what rounding adds to it and to its mask."""

Locate = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Makes log-alphas as they count of those that are trained."""


class Foretold(nn.Module):
    """Looks a step ahead. Part of a model's state, so that a resumed run leaves out what the first one did.

    Its buffers are the gates of the last look ahead, float32, by kind; infinite where there was none: then anything can
    be open.

    Args:
        gates: Log-alphas by kind.
        locate: As they count.
    """

    def __init__(self, gates: Mapping[str, Tensor], locate: Locate) -> None:
        super().__init__()
        for kind, gate in gates.items():
            self.register_buffer(kind, torch.full_like(gate.detach(), math.inf))
        self._locate = locate
        # The last look ahead, none if nothing is known, and the state of the buffers by which it is still that
        self._ahead: Look | None = None
        self._state = self._versions()

    @property
    def last(self) -> Look | None:
        """The last look ahead."""
        return self._ahead

    def forget(self) -> None:
        """Makes the next look one at everything."""
        for gate in self.buffers():
            gate.fill_(math.inf)
        self._ahead, self._state = None, self._versions()

    def now(self, noise: Mapping[str, Tensor], reach: float) -> Look | None:
        """The look ahead at this step; None if anything can be open.

        After a resume it is found out again, and waited for.

        Args:
            noise: Of this step.
            reach: As it was given for that look.
        """
        if self._state == self._versions():
            return self._ahead
        return self._look(dict(self.named_buffers()), noise, reach)

    @torch.no_grad()
    def ahead(self, gates: Mapping[str, Tensor], noise: Mapping[str, Tensor], reach: float) -> None:
        """Looks at the next step.

        Args:
            gates: Log-alphas by kind, in this step.
            noise: Of the next one.
            reach: The farthest that a log-alpha can move until then.
        """
        seen = dict(self.named_buffers())
        for kind, gate in seen.items():
            gate.copy_(gates[kind])
        self._ahead, self._state = self._look(seen, noise, reach), self._versions()

    @torch.no_grad()
    def _look(self, gates: Mapping[str, Tensor], noise: Mapping[str, Tensor], reach: float) -> Look:
        highest = self._locate({kind: gate + (reach + SLACK) for kind, gate in gates.items()})
        return Look.at({kind: hard_concrete.sample(gate, noise[kind]) for kind, gate in highest.items()})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Foretold:
        """Moves with the model, but stays float32 where that changes its type."""
        before, valid = dict(self.named_buffers()), self._state == self._versions()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for kind, gate in before.items():
            self.register_buffer(kind, gate.to(self.get_buffer(kind).device))
        if valid and self._ahead is None:
            self._state = self._versions()
        return self

    def _versions(self) -> tuple[int, ...]:
        return versions(dict(self.named_buffers()))


def versions(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Numbers that change when a tensor does."""
    return tuple(number for tensor in tensors.values() for number in (tensor.data_ptr(), tensor._version))
