"""Next-token losses, one number a token; training and evaluation use the same."""

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
from drpruning.train.execution import execution_of
from drpruning.train.ranks import Ranks


def token_losses(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each next token.

    Args:
        model: A causal model of transformers, or a masked one; :func:`drpruning.train.execution.prepare` says how its
            losses are computed and whether attention stays within documents, or else logits are, for all tokens.
        tokens_BT: int64 ids, rows of T tokens.

    Returns:
        float32 [B, T - 1], nats; entry t is the loss of token t + 1 given those up to t.
    """
    execution = execution_of(model)
    inputs = execution.inputs(tokens_BT)
    targets_BT = tokens_BT[:, 1:]
    if execution.linear_losses is None:
        with execution.known_documents():
            logits_BTV = model(**inputs, use_cache=False).logits.view(*tokens_BT.shape, -1)[:, :-1]
        losses = functional.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets_BT.flatten().to(logits_BTV.device), reduction="none"
        )
        return losses.view(targets_BT.shape)
    compute = execution.linear_losses

    def losses_of(hidden: Tensor) -> Tensor:
        hidden_BTD = hidden.view(*tokens_BT.shape, -1)[:, :-1]
        return compute(hidden_BTD.flatten(0, 1), output_weight(model), targets_BT.flatten().to(hidden.device))

    with instead_of_logits(model, losses_of), execution.known_documents():
        found: Tensor = model(**inputs, use_cache=False).logits
    return found.view(targets_BT.shape)


@contextmanager
def instead_of_logits(model: nn.Module, compute: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context the model's output layer returns ``compute`` of what it is given.

    So the loss is computed inside the model's own forward pass, where a sharded model has its weights at hand.
    """
    head = output_layer(model)
    head.forward = compute
    try:
        yield
    finally:
        del head.forward  # the one of its class is in place again


def output_layer(model: nn.Module) -> Any:
    """The layer that makes logits."""
    inner: Any = model.model if isinstance(model, MaskedModel) else model
    return inner.get_output_embeddings()


def output_weight(model: nn.Module) -> Tensor:
    """Its weight [V, D]; where closed units are left out, of the open ones."""
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
    """Mean loss of each row, nats per token, accumulated in float64.

    Args:
        model: The model, already in the mode it should be measured in.
        rows: int64 [N, T] on the CPU, on every rank all of them.
        batch_size: Rows per forward pass and rank.
        autocast: Context for mixed precision, if any.
        ranks: Each takes its part of the rows; all get the losses of all rows.

    Returns:
        float64 [N], on the CPU, bit for bit the same on each rank.
    """
    ranks = ranks or Ranks()
    device = next(model.parameters()).device
    found = torch.zeros(len(rows), dtype=torch.float64)
    passes = math.ceil(len(rows) / (batch_size * ranks.world_size))
    size = math.ceil(len(rows) / (passes * ranks.world_size)) if passes else 0
    # Every pass of every rank has as many rows: other sizes are other versions to a compiler, and a sharded model needs
    # every rank in every pass. What is too many are repetitions of the last row.
    for numbers in torch.arange(passes * size * ranks.world_size).split(size)[ranks.rank :: ranks.world_size]:
        ranks.mark()
        with autocast or nullcontext():
            losses_BT = token_losses(model, rows[numbers.clamp(max=len(rows) - 1)].to(device, non_blocking=True))
        ranks.mark()  # now this thread waits for the device
        new = numbers[numbers < len(rows)]
        found[new] = losses_BT.double().mean(dim=1).cpu()[: len(new)]
    return ranks.sum_on_host(found)
