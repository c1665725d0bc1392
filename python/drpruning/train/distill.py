"""Distillation of the unpruned model: its logits and residual streams as additional targets.

Per token, with teacher p and student q at temperature T (logits divided by T before the softmax):

    objective = (1 - weight) * next-token loss + weight * T^2 KL(p || q) + hidden_weight * distance
    distance  = mean over kept blocks of  |h_student - h_teacher|^2 / |h_teacher|^2

weight is linear in the step from ``weight`` to ``final_weight``. For tokens that the teacher predicts with more than
``max_confidence``, weight and hidden_weight are 0; the mean of the objective is over all tokens. h are residual streams
after a block, compared on the units that the student keeps: a pruned model's units are a selection of the teacher's, so
no learned projection is needed. Sources: Hinton, Vinyals and Dean (2015), "Distilling the Knowledge in a Neural
Network", for the temperature and its square; Muralidharan et al. (2024), "Compact Language Models via Pruning and
Knowledge Distillation", section 3, for the sum of logit and layer-wise losses.

With a stored teacher, the divergence is computed from a sample of p or from its likeliest tokens; a sample replaces
KL(p || q) by the cross-entropy against the sample (:mod:`drpruning.train.teacher_samples`).

Memory: float32 softmaxes exist for ``CHUNK`` tokens at a time, in the backward pass too. The teacher keeps no
activations; with ``top_k`` its logits are freed after its forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drpruning.config import DistillConfig
from drpruning.pruning import MaskedModel
from drpruning.pruning.async_copy import copy_to_device
from drpruning.pruning.extract import KeptUnits
from drpruning.train.model_runtime import ModelRuntime, runtime_of
from drpruning.train.model_structure import block_output, decoder_blocks
from drpruning.train.teacher_files import SampledTargets, StoredTeacher, TeacherIdentity
from drpruning.train.teacher_samples import pad_samples, sample, sampled_losses, uniform_numbers

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
class RowNumbers:
    """The places in the corpus of the rows of a micro-batch, on all ranks.

    Attributes:
        domains: int32 [ranks, rows], index of each row's domain in the corpus.
        rows: int64 [ranks, rows], index of each row in its domain.
        rank: This process.
    """

    domains: NDArray[np.int32]
    rows: NDArray[np.int64]
    rank: int = 0


@dataclass(frozen=True)
class Distiller:
    """A teacher and the distillation objective.

    Args:
        settings: Weights and temperature.
        teacher: The unpruned model, frozen; None if it is the student itself without masks, or stored.
        kept: The teacher's units that a pruned student has; None for a masked student, or one of the same shape.
        stored: The stored teacher, if the recipe has one; then ``teacher`` computes the rows that are not stored.
    """

    settings: DistillConfig
    teacher: nn.Module | None = None
    kept: KeptUnits | None = None
    stored: StoredTeacher | None = None

    def losses(
        self, student: nn.Module, tokens_BT: Tensor, progress: float = 0.0, rows: RowNumbers | None = None
    ) -> DistillationLosses:
        """Run the teacher, without gradients, and the student; or read a stored teacher.

        Args:
            student: A masked model, or a pruned one.
            tokens_BT: int64 ids, rows of T tokens.
            progress: Fraction of the stage's steps that are taken, for the weight.
            rows: The places of the rows in the corpus; needed with a stored teacher.

        Raises:
            ConfigError: A row is not stored, and ``distill.missing`` is ``error``.
            CorpusError: A file of the stored teacher is damaged.
        """
        if self.stored is not None:
            assert rows is not None
            return self._stored_losses(student, tokens_BT, progress, rows)
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
            distance = self._distance(masked, ours, theirs)[:, :-1]
            if unsure is not None:
                distance = distance * unsure.view(shape)
            objective = objective + self.settings.hidden_weight * distance
        return DistillationLosses(losses=losses.view(shape).detach(), objective=objective)

    def _stored_losses(
        self, student: nn.Module, tokens_BT: Tensor, progress: float, rows: RowNumbers
    ) -> DistillationLosses:
        assert self.stored is not None
        weight, shape = self.settings.weight_at(progress), (tokens_BT.shape[0], tokens_BT.shape[1] - 1)
        targets = self._stored_targets(student, tokens_BT, rows)
        if self.stored.identity.method == "sample":
            losses, divergences = sampled_losses(student, tokens_BT, *targets, self.settings.temperature)
        else:
            runtime = runtime_of(student)
            inputs = runtime.inputs(tokens_BT)
            with runtime.known_documents():
                found = student(**inputs, use_cache=False).logits.view(*tokens_BT.shape, -1)[:, :-1]
            losses, divergences = self._of_logits(found.flatten(0, 1), targets, tokens_BT[:, 1:].flatten())
        objective = (1 - weight) * losses + weight * divergences
        return DistillationLosses(losses=losses.view(shape).detach(), objective=objective.view(shape))

    def _stored_targets(self, student: nn.Module, tokens_BT: Tensor, rows: RowNumbers) -> tuple[Tensor, Tensor]:
        """Return the targets of a micro-batch: those stored, and with ``distill.missing: compute`` those computed."""
        assert self.stored is not None
        domains, numbers = rows.domains[rows.rank], rows.rows[rows.rank]
        if self.teacher is None:
            return self._on_device(self.stored, domains, numbers, tokens_BT.device)
        stored = [self.stored.has(*each) for each in zip(rows.domains, rows.rows, strict=True)]
        if all(map(all, stored)):
            return self._on_device(self.stored, domains, numbers, tokens_BT.device)
        present, absent = (
            [place for place, has in enumerate(stored[rows.rank]) if has is own] for own in (True, False)
        )
        # A sharded teacher needs every rank in its forward pass: a rank without a missing row computes its first one.
        computed = compute_targets(
            self.teacher,
            tokens_BT[absent or [0]],
            self.stored.identity,
            [(self.stored.identity.domains[domains[place]], int(numbers[place])) for place in absent or [0]],
            runtime_of(student),
        )
        if not absent:
            return self._on_device(self.stored, domains, numbers, tokens_BT.device)
        if not present:
            return computed
        read = self._on_device(self.stored, domains[present], numbers[present], tokens_BT.device)
        return _merge_targets(read, computed, present, absent)

    @staticmethod
    def _on_device(
        stored: StoredTeacher, domains: NDArray[np.int32], rows: NDArray[np.int64], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        targets = stored.read(domains, rows)
        values = targets.probabilities if isinstance(targets, SampledTargets) else targets.log_probabilities
        ids, numbers = (copy_to_device(torch.from_numpy(each), device) for each in (targets.ids, values))
        return ids.long(), numbers

    def _targets(self, logits_NV: Tensor) -> tuple[Tensor, ...]:
        """Return the teacher's targets: logits, or the likeliest tokens of each with their log-probabilities."""
        if self.settings.top_k is None or self.settings.top_k >= logits_NV.shape[-1]:
            return (logits_NV,)
        return top_k_targets(logits_NV, self.settings.top_k, self.settings.temperature)

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


@torch.no_grad()
def compute_targets(
    teacher: nn.Module,
    tokens_BT: Tensor,
    identity: TeacherIdentity,
    places: Sequence[tuple[str, int]],
    runtime: ModelRuntime,
) -> tuple[Tensor, Tensor]:
    """Run a teacher and return what a stored teacher of this identity has of these rows, on the device.

    Args:
        teacher: The teacher, in evaluation mode.
        tokens_BT: int64 ids, rows of T tokens.
        identity: The method, with temperature and seed.
        places: Domain and number of each row, which determine the draws.
        runtime: How rows are passed to the model.

    Returns:
        int64 ids [N, K] and float32 probabilities [N, K] (0 for padding) for ``sample``, [N, k] and log-probabilities
        [N, k + 1] for ``top_k``; N = B (T - 1).
    """
    logits_NV = teacher_logits(teacher, tokens_BT, runtime)
    if identity.method == "top_k":
        return top_k_targets(logits_NV, identity.size, identity.temperature)
    count = tokens_BT.shape[1] - 1
    uniforms = np.concatenate([uniform_numbers(identity.seed, *place, count) for place in places])
    uniforms_N = copy_to_device(torch.from_numpy(uniforms), logits_NV.device)
    return pad_samples(*sample(logits_NV, uniforms_N, identity.size, identity.temperature), identity.size)


def teacher_logits(teacher: nn.Module, tokens_BT: Tensor, runtime: ModelRuntime) -> Tensor:
    """Return a teacher's logits for each next token of rows, [B (T - 1), V]."""
    inputs = runtime.inputs(tokens_BT)
    with runtime.known_documents():
        logits: Tensor = teacher(**inputs, use_cache=False).logits
    return logits.view(*tokens_BT.shape, -1)[:, :-1].flatten(0, 1)


def top_k_targets(logits_NV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the k likeliest tokens, int64 [N, k], and their log-probabilities with that of the rest, [N, k + 1]."""
    parts = []
    for logits in logits_NV.split(CHUNK):
        log_p = functional.log_softmax(logits.float() / temperature, dim=-1)
        index = log_p.topk(k, dim=-1).indices
        parts.append((index, _top_and_rest(log_p, index)))
    indices, logs = zip(*parts, strict=True)
    return torch.cat(indices), torch.cat(logs)


def _merge_targets(
    read: tuple[Tensor, Tensor], computed: tuple[Tensor, Tensor], present: Sequence[int], absent: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the targets of a whole micro-batch, from those of its rows ``present`` and ``absent``."""
    order = torch.tensor([*present, *absent]).argsort().to(read[0].device)
    merged = []
    for one, two in zip(read, computed, strict=True):
        width = max(one.shape[1], two.shape[1])
        both = torch.cat([functional.pad(each, (0, width - each.shape[1])) for each in (one, two)])
        merged.append(both.view(len(order), -1, width)[order].flatten(0, 1))
    return merged[0], merged[1]


def _chunk_losses(logits_NV: Tensor, targets_N: Tensor, temperature: float, *targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits_NV.float()
    losses = functional.cross_entropy(logits, targets_N, reduction="none")
    log_q = functional.log_softmax(logits / temperature, dim=-1)
    if len(targets) == 1:
        log_p = functional.log_softmax(targets[0].float() / temperature, dim=-1)
    else:
        index, log_p = targets
        log_q = _top_and_rest(log_q, index)
    p = log_p.exp()
    # a token of probability 0 contributes 0, also where its logarithm is -inf (a teacher with masked logits)
    divergences = (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(-1)
    return losses, temperature**2 * divergences


def _top_and_rest(log_p_NV: Tensor, index_NK: Tensor) -> Tensor:
    """Return the log-probabilities at ``index_NK`` and, last, that of all other tokens together: [N, K + 1].

    The last is summed over the other tokens: one minus the sum of the first has no digits where those are likely.
    """
    # the gradient of a logsumexp of -inf alone is NaN: the student can exclude all other tokens as well
    least = torch.finfo(log_p_NV.dtype).min
    rest = log_p_NV.scatter(-1, index_NK, least).logsumexp(-1, keepdim=True)
    return torch.cat([log_p_NV.gather(-1, index_NK), rest], dim=-1)
