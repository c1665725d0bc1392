"""How much each unit matters to a trained model, from one pass over a few batches: nothing is learned.

Two measures, each in the shape of the gates:

``taylor``      |dloss/dz| at mask z = 1, averaged over batches: the loss, to first order, of removing the unit. For
                heads this is Michel, Levy and Neubig (2019), "Are Sixteen Heads Really Better than One?"; in general
                Molchanov et al. (2019), "Importance Estimation for Neural Network Pruning", with the mask in place of
                a weight.
``activation``  what the unit contributes, over all tokens: for MLP units mean |activation|, for heads the mean norm of
                their output, for hidden units mean |output| of the norms of the stream (Muralidharan et al. 2024,
                "Compact Language Models via Pruning and Knowledge Distillation", section 2.2), for blocks
                1 - cos(input, output) (Men et al. 2024, "ShortGPT").

Scores of one kind compare with each other, not with those of another kind. In a row of ``head`` or ``intermediate`` the
row's own units compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from drpruning.errors import ConfigError
from drpruning.pruning.architectures import architecture_of

if TYPE_CHECKING:
    from drpruning.pruning.masks import MaskedModel

Measure = Literal["taylor", "activation"]


def importance(masked: MaskedModel, batches: Iterable[Tensor], measure: Measure = "taylor") -> dict[str, Tensor]:
    """Scores of all units that have a gate; the larger, the more is lost without the unit.

    The model runs unmasked and in evaluation mode, and is left as it was.

    Args:
        masked: The model.
        batches: Tokens, int64 [rows, length]; some ten thousand tokens in all are enough to order the units.
        measure: ``"taylor"`` (a backward pass per batch) or ``"activation"`` (forward passes only).

    Returns:
        By kind, float32 in the shape of ``masked.gates``.

    Raises:
        ConfigError: ``measure`` is another, or there is no batch.
    """
    if measure not in get_args(Measure):
        raise ConfigError(f"measure is {measure!r}; it can be {' or '.join(map(repr, get_args(Measure)))}")
    training = masked.training
    masked.eval()
    try:
        scores = (_taylor if measure == "taylor" else _activation)(masked, batches)
    finally:
        masked.train(training)
    if scores is None:
        raise ConfigError("importance needs at least one batch of tokens, got none")
    return {kind: scores[kind].view(gate.shape) for kind, gate in masked.gates.items()}


def _taylor(masked: MaskedModel, batches: Iterable[Tensor]) -> dict[str, Tensor] | None:
    total: list[Tensor] | None = None
    kinds = list(masked.gates)
    for tokens in batches:
        ones = {kind: torch.ones_like(gate, requires_grad=True) for kind, gate in masked.gates.items()}
        with masked.fixed_masks(ones):
            loss = masked(tokens, labels=tokens).loss
        gradients = torch.autograd.grad(loss, list(ones.values()))
        total = [gradient.abs() + (0 if total is None else total[k]) for k, gradient in enumerate(gradients)]
    return None if total is None else dict(zip(kinds, total, strict=True))


@torch.no_grad()
def _activation(masked: MaskedModel, batches: Iterable[Tensor]) -> dict[str, Tensor] | None:
    model, sizes = masked.model, masked.source.sizes()
    architecture = architecture_of(model.config)
    blocks, device = sizes["layers"], model.device
    scores = {
        "layer": torch.zeros(blocks, device=device),
        "head": torch.zeros(blocks, sizes["kv_heads"], device=device),
        "intermediate": torch.zeros(blocks, sizes["intermediate"], device=device),
        "hidden": torch.zeros(sizes["hidden"], device=device),
    }

    def watch_block(block: int) -> Callable[..., None]:
        def add(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            before, after = inputs[0].float(), output.float()
            scores["layer"][block] += 1 - functional.cosine_similarity(before, after, dim=-1).mean()

        return add

    def watch_reads(block: int, axis: str) -> Callable[..., None]:
        def add(module: Any, inputs: tuple[Any, ...]) -> None:
            read = inputs[0].float().flatten(0, -2)
            if axis == "query":
                scores["head"][block] += read.unflatten(-1, (sizes["kv_heads"], -1)).norm(dim=-1).mean(0)
            else:
                scores["intermediate"][block] += read.abs().mean(0)

        return add

    def add_hidden(module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores["hidden"] += output.float().abs().flatten(0, -2).mean(0)

    handles = []
    for block in range(blocks):
        path = f"{architecture.blocks}.{block}"
        handles.append(model.get_submodule(path).register_forward_hook(watch_block(block)))
        for part in architecture.block:
            module = model.get_submodule(f"{path}.{part.name}")
            if part.axes == ("hidden",):
                handles.append(module.register_forward_hook(add_hidden))
            elif part.axes[0] == "hidden":
                handles.append(module.register_forward_pre_hook(watch_reads(block, part.axes[1])))
    seen = False
    try:
        with masked.unmasked():
            for tokens in batches:
                masked(tokens)
                seen = True
    finally:
        for handle in handles:
            handle.remove()
    return scores if seen else None
