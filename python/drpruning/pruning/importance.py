"""Importance scores of the units of a trained model, from one pass over a few batches; nothing is trained.

There are two measures, each in the shape of the gates:

``taylor``      |dloss/dz| at mask z = 1, averaged over batches: the increase in loss, to first order, if the unit is
                pruned. For heads: Michel, Levy and Neubig (2019), "Are Sixteen Heads Really Better than One?"; in
                general: Molchanov et al. (2019), "Importance Estimation for Neural Network Pruning", with the mask in
                place of a weight.
``activation``  the size of the unit's activations over all tokens. For MLP units mean |activation|, for heads the mean
                norm of their output, for hidden units mean |output| of the norms of the stream (Muralidharan et al.
                2024, "Compact Language Models via Pruning and Knowledge Distillation", section 2.2), for blocks
                1 - cos(input, output) (Men et al. 2024, "ShortGPT"). For experts the routed load: the mean over tokens
                of the expert's routing weight, zero where the token is not routed to it. For units of an expert, over
                all tokens too: mean |activation|, as many times zero.

Scores are comparable within a kind, not between kinds; those of ``head``, ``intermediate`` and ``expert`` only within a
row. Blocks can have another measure than the other kinds (:class:`Measures`);
:mod:`drpruning.pruning.domain_importance` combines the scores of several domains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from drpruning.errors import ConfigError
from drpruning.pruning.architectures import architecture_of, parts_of

if TYPE_CHECKING:
    from drpruning.pruning.masked_model import MaskedModel
    from drpruning.pruning.masked_modules import Masks

Measure = Literal["taylor", "activation"]


@dataclass(frozen=True)
class Measures:
    """A measure for blocks, and one for heads, MLP units and hidden units.

    Attributes:
        depth: Measure of the kind ``layer``.
        width: Measure of the other kinds.
    """

    depth: Measure
    width: Measure

    def of(self, kind: str) -> Measure:
        """Return the measure of a kind."""
        return self.depth if kind == "layer" else self.width


@dataclass(frozen=True)
class RankRows:
    """The rows of a batch that one rank computes.

    Attributes:
        tokens: int64 [rows, length], at least one row: a sharded model needs every rank in every forward pass.
        share: Fraction of the batch in these rows; 0 if they only fill a rank without rows.
    """

    tokens: Tensor
    share: float


def mean_loss(masked: MaskedModel, tokens: Tensor) -> Tensor:
    """Return the mean loss of the next tokens, computed from all logits: a scalar."""
    loss: Tensor = masked(tokens, labels=tokens).loss
    return loss


def importance(
    masked: MaskedModel,
    batches: Iterable[Tensor | RankRows],
    measure: Measure | Measures = "taylor",
    *,
    loss: Callable[[MaskedModel, Tensor], Tensor] = mean_loss,
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    masks: Masks | None = None,
) -> dict[str, Tensor]:
    """Score all units that have a gate; a unit with a larger score matters more.

    The model runs in evaluation mode, without other masks than ``masks``; its mode and masks are restored. Its blocks
    are recomputed in the backward pass if training does so, and only masks have gradients: memory is below that of a
    training step.

    Args:
        masked: The model; it may be sharded.
        batches: Tokens, int64 [rows, length]; some ten thousand tokens in total are enough to rank the units. With
            several ranks, each passes its :class:`RankRows` of every batch.
        measure: ``"taylor"`` (a backward pass per batch), ``"activation"`` (forward passes only), or both by kind: then
            the batches are stored, and each measure takes a pass over them.
        loss: Returns the mean loss of the next tokens of some rows, a scalar.
        total: Sums a tensor over ranks and returns the sum on each.
        masks: Masks of 0 and 1, of every kind, to score the units under; all ones by default. Units with a mask of
            zero have a score of -1, below all others.

    Returns:
        Scores by kind, float32 in the shape of ``masked.gates``.

    Raises:
        ConfigError: ``measure`` is unknown, or there is no batch.
    """
    if isinstance(measure, Measures):
        stored = list(batches)
        found: dict[str, Tensor] = {}
        for each in sorted({measure.of(kind) for kind in masked.gates}):
            scores_of_each = importance(masked, stored, each, loss=loss, total=total, masks=masks)
            found |= {kind: score for kind, score in scores_of_each.items() if measure.of(kind) == each}
        return {kind: found[kind] for kind in masked.gates}
    if measure not in get_args(Measure):
        raise ConfigError(f"measure is {measure!r}; it can be {' or '.join(map(repr, get_args(Measure)))}")
    training = masked.training
    masked.eval()
    per_rank = (batch if isinstance(batch, RankRows) else RankRows(batch, 1.0) for batch in batches)
    try:
        # Blocks run eagerly: compiling another variant takes minutes, a few batches seconds
        with torch.compiler.set_stance("force_eager"):
            scores = (_taylor if measure == "taylor" else _activation)(masked, per_rank, loss, total, masks)
    finally:
        masked.train(training)
    if scores is None:
        raise ConfigError("importance needs at least one batch of tokens, got none")
    shaped = {kind: scores[kind].view(gate.shape) for kind, gate in masked.gates.items()}
    if masks is None:
        return shaped
    return {kind: score.masked_fill(masks[kind] == 0, -1.0) for kind, score in shaped.items()}


def _taylor(
    masked: MaskedModel,
    batches: Iterable[RankRows],
    loss: Callable[[MaskedModel, Tensor], Tensor],
    total: Callable[[Tensor], Tensor],
    masks: Masks | None,
) -> dict[str, Tensor] | None:
    scores: Tensor | None = None
    counts = [gate.numel() for gate in masked.gates.values()]
    for block in masked.model.get_submodule(architecture_of(masked.model.config).blocks).children():
        block.training = True  # without its modules: a block in evaluation mode ignores activation checkpointing
    with _frozen(masked):
        for rows in batches:
            start = masks or {kind: torch.ones_like(gate) for kind, gate in masked.gates.items()}
            leaves = {kind: start[kind].detach().clone().requires_grad_() for kind in masked.gates}
            with masked.fixed_masks(leaves):
                share = loss(masked, rows.tokens) * rows.share
                gradients = torch.autograd.grad(share, list(leaves.values()))
            flat = total(torch.cat([gradient.flatten() for gradient in gradients])).abs()
            scores = flat if scores is None else flat + scores
    return None if scores is None else dict(zip(masked.gates, scores.split(counts), strict=True))


@contextmanager
def _frozen(masked: nn.Module) -> Iterator[None]:
    """Compute no parameter gradients within the context, so that activations for them are not saved."""
    trained = [parameter for parameter in masked.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def _activation(
    masked: MaskedModel,
    batches: Iterable[RankRows],
    loss: Callable[[MaskedModel, Tensor], Tensor],
    total: Callable[[Tensor], Tensor],
    masks: Masks | None,
) -> dict[str, Tensor] | None:
    sums = _ActivationSums(masked)
    handles = sums.watch()
    seen = False
    try:
        with masked.fixed_masks(masks or {}):
            for rows in batches:
                sums.share = rows.share
                loss(masked, rows.tokens)
                seen = True
    finally:
        for handle in handles:
            handle.remove()
    return {kind: total(score) for kind, score in sums.scores.items()} if seen else None


class _ActivationSums:
    """The activation scores of all units, added up by hooks in forward passes.

    Attributes:
        scores: By kind, float32; shapes as the gates'.
        share: Weight of the next forward pass.
    """

    def __init__(self, masked: MaskedModel) -> None:
        self._masked, self._sizes = masked, masked.source.sizes()
        sizes, device = self._sizes, masked.model.device
        blocks = sizes["layers"]
        self.share = 1.0
        self.scores = {
            "layer": torch.zeros(blocks, device=device),
            "head": torch.zeros(blocks, sizes["kv_heads"], device=device),
            "intermediate": torch.zeros(blocks, sizes["intermediate"], device=device),
            "hidden": torch.zeros(sizes["hidden"], device=device),
        }
        if "experts" in sizes:
            self.scores["expert"] = torch.zeros(blocks, sizes["experts"], device=device)
            self.scores["intermediate"] = torch.zeros(blocks, sizes["experts"], sizes["intermediate"], device=device)

    def watch(self) -> list[RemovableHandle]:
        """Register the hooks on all blocks and projections."""
        model = self._masked.model
        handles = []
        for block in range(self._sizes["layers"]):
            path = f"{architecture_of(model.config).blocks}.{block}"
            handles.append(model.get_submodule(path).register_forward_hook(partial(self._add_block, block)))
            for part in parts_of(model.config):
                module = model.get_submodule(f"{path}.{part.name}")
                if part.is_router:
                    handles.append(module.register_forward_hook(partial(self._add_router, block)))
                elif part.is_stacked:
                    if part.writes_to_stream and "intermediate" in self._masked.gates:
                        handles.append(module.register_forward_pre_hook(partial(self._add_experts, block)))
                elif part.axes == ("hidden",):
                    handles.append(module.register_forward_hook(self._add_hidden))
                elif part.axes == ("hidden", "query"):
                    handles.append(module.register_forward_pre_hook(partial(self._add_heads, block)))
                elif part.axes == ("hidden", "intermediate"):
                    handles.append(module.register_forward_pre_hook(partial(self._add_intermediate, block)))
        return handles

    def _add_block(self, block: int, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        before, after = inputs[0].float(), output.float()
        self.scores["layer"][block] += self.share * (1 - functional.cosine_similarity(before, after, dim=-1).mean())

    def _add_heads(self, block: int, module: Any, inputs: tuple[Any, ...]) -> None:
        groups = inputs[0].float().flatten(0, -2).unflatten(-1, (self._sizes["kv_heads"], -1))
        self.scores["head"][block] += self.share * groups.norm(dim=-1).mean(0)

    def _add_intermediate(self, block: int, module: Any, inputs: tuple[Any, ...]) -> None:
        self.scores["intermediate"][block] += self.share * inputs[0].float().flatten(0, -2).abs().mean(0)

    def _add_router(self, block: int, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        self.scores["expert"][block] += self.share * _routed_load(output[1], output[2], self._sizes["experts"])

    def _add_experts(self, block: int, module: Any, inputs: tuple[Any, ...]) -> None:
        self.scores["intermediate"][block] += self.share * _sizes_in_experts(module, inputs[0], inputs[1])

    def _add_hidden(self, module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.scores["hidden"] += self.share * output.float().abs().flatten(0, -2).mean(0)


def _routed_load(weights_NK: Tensor, experts_NK: Tensor, number: int) -> Tensor:
    """Return the mean over tokens of each expert's routing weight, float32 [number]."""
    load = torch.zeros(number, device=weights_NK.device)
    return load.index_add_(0, experts_NK.flatten(), weights_NK.float().flatten()) / len(weights_NK)


def _sizes_in_experts(module: Any, tokens_ND: Tensor, experts_NK: Tensor) -> Tensor:
    """Return the mean |activation| over all tokens of each unit of each expert, float32 [E, F]."""
    sums = []
    for expert, weight in enumerate(module.gate_up_proj):
        routed_ND = tokens_ND[(experts_NK == expert).any(-1)]
        weight_OD = weight.T if module.is_transposed else weight
        bias_O = module.gate_up_proj_bias[expert] if module.has_bias else None
        units_NF = module._apply_gate(functional.linear(routed_ND, weight_OD, bias_O))
        sums.append(units_NF.float().abs().sum(0))
    return torch.stack(sums) / len(tokens_ND)
