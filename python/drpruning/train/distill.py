"""Distillation of the unpruned model: its logits and residual streams as additional targets.

Per token, with teacher p and student q at temperature T (logits divided by T before the softmax):

    objective = (1 - weight) * next-token loss + weight * T^2 KL(p || q) + hidden_weight * distance
    distance  = mean over kept blocks of  |h_student - h_teacher|^2 / |h_teacher|^2

weight is linear in the step from ``weight`` to ``final_weight``, and 0 for tokens that the teacher predicts with more
than ``max_confidence``. h are residual streams after a block, compared on the units that the student keeps: a pruned
model's units are a selection of the teacher's, so no learned projection is needed. Sources: Hinton, Vinyals and Dean
(2015), "Distilling the Knowledge in a Neural Network", for the temperature and its square; Muralidharan et al. (2024),
"Compact Language Models via Pruning and Knowledge Distillation", section 3, for the sum of logit and layer-wise losses.

Memory: float32 softmaxes exist for ``CHUNK`` tokens at a time, in the backward pass too. The teacher keeps no
activations; with ``top_k`` its logits are freed after its forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drpruning.config import DistillConfig
from drpruning.export.extract import KeptUnits
from drpruning.pruning import MaskedModel
from drpruning.train.model_runtime import runtime_of
from drpruning.train.model_structure import block_output, decoder_blocks

CHUNK = 1024  # tokens whose float32 logits exist at once: 0.5 GB at a vocabulary of 128,000


@dataclass(frozen=True)
class DistillationLosses:
    """The result of one forward pass of student and teacher, per token: float32 [B, T - 1].

    Attributes:
        losses: Negative log-likelihood of the next token, nats, without gradients.
        objective: The objective of the step.
    """

    losses: Tensor
    objective: Tensor


@dataclass(frozen=True)
class Distiller:
    """A teacher and the distillation objective.

    Args:
        settings: Weights and temperature.
        teacher: The unpruned model, frozen; None if it is the student itself without masks.
        kept: The teacher's units that a pruned student has; None for a masked student, or one of the same shape.
    """

    settings: DistillConfig
    teacher: nn.Module | None = None
    kept: KeptUnits | None = None

    def losses(self, student: nn.Module, tokens_BT: Tensor, progress: float = 0.0) -> DistillationLosses:
        """Run the teacher, without gradients, and the student.

        Args:
            student: A masked model, or a pruned one.
            tokens_BT: int64 ids, rows of T tokens.
            progress: Fraction of the stage's steps that are taken, for the weight.
        """
        masked = student if isinstance(student, MaskedModel) else None
        context: AbstractContextManager[Any] = nullcontext()
        teacher = self.teacher
        if teacher is None:
            assert masked is not None
            teacher, context = masked.model, masked.unmasked()
        runtime, shape_BT = runtime_of(student), tokens_BT.shape
        inputs = runtime.inputs(tokens_BT)
        with torch.no_grad(), context, runtime.known_documents(), self._residual_streams(teacher, shape_BT) as theirs:
            logits = teacher(**inputs, use_cache=False).logits.view(*shape_BT, -1)[:, :-1].flatten(0, 1)
        targets, unsure = self._targets(logits), self._unsure(logits)
        del logits
        with (
            runtime.known_documents(),
            self._residual_streams(student if masked is None else masked.model, shape_BT) as ours,
        ):
            found = student(**inputs, use_cache=False).logits.view(*shape_BT, -1)[:, :-1]
        losses, divergences = self._of_logits(found.flatten(0, 1), targets, tokens_BT[:, 1:].flatten())
        weight: float | Tensor = self.settings.weight_at(progress)
        if unsure is not None:
            weight = weight * unsure
        objective = (1 - weight) * losses + weight * divergences
        shape = tokens_BT.shape[0], tokens_BT.shape[1] - 1
        objective = objective.view(shape)
        if self.settings.hidden_weight:
            objective = objective + self.settings.hidden_weight * self._distance(masked, ours, theirs)[:, :-1]
        return DistillationLosses(losses=losses.view(shape).detach(), objective=objective)

    def _targets(self, logits_NV: Tensor) -> tuple[Tensor, ...]:
        """Return the teacher's targets: logits, or the likeliest tokens of each with their log-probabilities."""
        if self.settings.top_k is None or self.settings.top_k >= logits_NV.shape[-1]:
            return (logits_NV,)
        parts = []
        for logits in logits_NV.split(CHUNK):
            scaled = logits.float() / self.settings.temperature
            log_p = functional.log_softmax(scaled, dim=-1)
            index = log_p.topk(self.settings.top_k, dim=-1).indices
            parts.append((index, _top_and_rest(log_p, index)))
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _unsure(self, logits_NV: Tensor) -> Tensor | None:
        """Return 1 for tokens that the teacher predicts with at most ``max_confidence``, else 0; None if all are 1."""
        if self.settings.max_confidence >= 1:
            return None
        parts = []
        for part in logits_NV.split(CHUNK):
            logits = part.float()
            log_p = logits.amax(-1) - logits.logsumexp(-1)
            parts.append((log_p <= math.log(self.settings.max_confidence)).float())
        return torch.cat(parts)

    def _of_logits(self, logits_NV: Tensor, targets: tuple[Tensor, ...], targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next-token loss and the divergence of each token, in chunks that the backward pass recomputes."""
        pairs = [
            checkpoint(_chunk_losses, logits, targets, self.settings.temperature, *parts, use_reentrant=False)
            for logits, targets, *parts in zip(
                logits_NV.split(CHUNK), targets_N.split(CHUNK), *(part.split(CHUNK) for part in targets), strict=True
            )
        ]
        losses, divergences = zip(*pairs, strict=True)
        return torch.cat(losses), torch.cat(divergences)

    def _distance(self, masked: MaskedModel | None, ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor]) -> Tensor:
        """Return the distance of the residual streams at each position, [B, T]."""
        kept, units, weight, opened = self.kept, None, None, None
        if masked is not None:
            applied = masked.applied
            blocks = {block: block for block in ours if block not in applied.active.skipped_blocks}
            units = applied.active.hidden
            if applied.layer is not None and blocks:
                layers = (applied.layer.detach() != 0).float().unbind()
                opened = torch.stack([layers[block] for block in blocks])
            weight = None if applied.hidden is None else (applied.hidden.detach() != 0).float()
        else:
            blocks = {block: block for block in ours} if kept is None else dict(enumerate(kept.layers))
            units = None if kept is None else self._units
        distances = []
        for mine, source in blocks.items():
            teacher = theirs[source].float()
            if units is not None:
                teacher = teacher.index_select(-1, units)
            difference = (ours[mine].float() - teacher).square()
            size = teacher.square()
            if weight is not None:
                difference, size = difference * weight, size * weight
            distances.append(difference.sum(-1) / size.sum(-1).clamp(min=torch.finfo(torch.float32).tiny))
        if not distances:
            stream = next(iter(ours.values()))
            return stream.new_zeros(stream.shape[:-1])
        of_blocks = torch.stack(distances)
        if opened is None:
            return of_blocks.mean(0)
        return (of_blocks * opened[:, None, None]).sum(0) / opened.sum().clamp(min=1)

    @cached_property
    def _units(self) -> Tensor:
        """The teacher's units that a pruned student has, on its device, copied there once."""
        assert self.kept is not None
        assert self.teacher is not None
        return torch.tensor(self.kept.hidden, device=next(self.teacher.parameters()).device)

    @contextmanager
    def _residual_streams(self, model: nn.Module, shape_BT: torch.Size) -> Iterator[dict[int, Tensor]]:
        """Record the residual stream after each block within the context, if the objective needs it."""
        seen: dict[int, Tensor] = {}
        handles = []
        if self.settings.hidden_weight:
            for block, module in enumerate(decoder_blocks(model)):

                def record(module: nn.Module, inputs: Any, output: Any, block: int = block) -> None:
                    seen[block] = block_output(output).view(*shape_BT, -1)

                handles.append(module.register_forward_hook(record))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def _chunk_losses(logits_NV: Tensor, targets_N: Tensor, temperature: float, *targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits_NV.float()
    losses = functional.cross_entropy(logits, targets_N, reduction="none")
    log_q = functional.log_softmax(logits / temperature, dim=-1)
    if len(targets) == 1:
        log_p = functional.log_softmax(targets[0].float() / temperature, dim=-1)
    else:
        index, log_p = targets
        log_q = _top_and_rest(log_q, index)
    divergences = (log_p.exp() * (log_p - log_q)).sum(-1)
    return losses, temperature**2 * divergences


def _top_and_rest(log_p_NV: Tensor, index_NK: Tensor) -> Tensor:
    """Return the log-probabilities at ``index_NK`` and, last, that of all other tokens together: [N, K + 1].

    The last is summed over the other tokens: one minus the sum of the first has no digits where those are likely.
    """
    rest = log_p_NV.scatter(-1, index_NK, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_p_NV.gather(-1, index_NK), rest], dim=-1)
