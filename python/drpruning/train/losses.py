"""Next-token losses, one number for each token, in training and in evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from drpruning.pruning import MaskedModel
from drpruning.pruning.masked_modules import MaskedProjection
from drpruning.pruning.sparse_forward import gather
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.model_runtime import runtime_of


def token_losses(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """Return the negative log-likelihood of each next token.

    Args:
        model: A causal model of transformers, or a masked one. :func:`drpruning.train.model_runtime.prepare` sets how
            losses are computed, and whether attention stays within documents; without it all logits are computed.
        tokens_BT: int64 ids, rows of T tokens.

    Returns:
        float32 [B, T - 1], nats; entry t is the loss of token t + 1 given those up to t.
    """
    runtime = runtime_of(model)
    inputs = runtime.inputs(tokens_BT)
    targets_BT = tokens_BT[:, 1:]
    if runtime.cross_entropy is None:
        with runtime.known_documents():
            logits_BTV = model(**inputs, use_cache=False).logits.view(*tokens_BT.shape, -1)[:, :-1]
        losses = functional.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets_BT.flatten().to(logits_BTV.device), reduction="none"
        )
        return losses.view(targets_BT.shape)
    compute = runtime.cross_entropy

    def losses_of(hidden: Tensor) -> Tensor:
        hidden_BTD = hidden.view(*tokens_BT.shape, -1)[:, :-1]
        return compute(hidden_BTD.flatten(0, 1), output_weight(model), targets_BT.flatten().to(hidden.device))

    with replace_logits(model, losses_of), runtime.known_documents():
        found: Tensor = model(**inputs, use_cache=False).logits
    return found.view(targets_BT.shape)


@contextmanager
def replace_logits(model: nn.Module, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Make the model's output layer return ``compute`` of its input, within the context.

    The loss is computed inside the model's forward pass, where a sharded model has its weights gathered.
    """
    head = output_layer(model)
    head.forward = compute
    try:
        yield
    finally:
        del head.forward  # restores that of its class


def output_layer(model: nn.Module) -> Any:
    """Return the layer that computes the logits."""
    inner: Any = model.model if isinstance(model, MaskedModel) else model
    return inner.get_output_embeddings()


def output_weight(model: nn.Module) -> Tensor:
    """Return the output layer's weight [V, D]; only the columns of active units where pruned ones are skipped."""
    head = output_layer(model)
    weight: Tensor = head.weight
    if isinstance(head, MaskedProjection):
        return gather(weight, None, head.block_masks.active.get("hidden"))
    return weight


@torch.no_grad()
def row_losses(
    model: nn.Module,
    rows: Tensor,
    *,
    batch_size: int,
    autocast: AbstractContextManager[Any] | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Return the mean loss of each row, nats per token, accumulated in float64.

    Args:
        model: The model, in the mode to measure it in.
        rows: int64 [N, T] on the CPU, the same on every rank.
        batch_size: Rows per forward pass and rank.
        autocast: Context of mixed precision, if any.
        ranks: The processes of the run; each computes a part of the rows, and all return all losses.

    Returns:
        float64 [N], on the CPU, bit for bit the same on each rank.
    """
    ranks = ranks or Ranks()
    device = next(model.parameters()).device
    found = torch.zeros(len(rows), dtype=torch.float64)
    passes = math.ceil(len(rows) / (batch_size * ranks.world_size))
    size = math.ceil(len(rows) / (passes * ranks.world_size)) if passes else 0
    # Every pass of every rank has the same number of rows: other sizes take other compiled versions, and a sharded
    # model needs every rank in every pass. The last row is repeated to fill the passes.
    for numbers in torch.arange(passes * size * ranks.world_size).split(size)[ranks.rank :: ranks.world_size]:
        ranks.mark()
        with autocast or nullcontext():
            losses_BT = token_losses(model, rows[numbers.clamp(max=len(rows) - 1)].to(device, non_blocking=True))
        ranks.mark()  # from here this thread waits for the device
        new = numbers[numbers < len(rows)]
        found[new] = losses_BT.double().mean(dim=1).cpu()[: len(new)]
    return ranks.sum_on_host(found)
