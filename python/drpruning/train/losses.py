"""Next-token losses, one number a token; training and evaluation use the same."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def token_losses(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each next token.

    Args:
        model: A causal model of transformers, or a masked one.
        tokens_BT: int64 ids, rows of T tokens.

    Returns:
        float32 [B, T - 1], nats; entry t is the loss of token t + 1 given those up to t.
    """
    logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1]
    targets_BT = tokens_BT[:, 1:]
    losses = functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten().to(logits_BTV.device), reduction="none"
    )
    return losses.view(targets_BT.shape)


@torch.no_grad()
def mean_loss(
    model: nn.Module, rows: Tensor, *, batch_size: int, autocast: AbstractContextManager[Any] | None = None
) -> float:
    """Mean loss over all rows, nats per token, accumulated in float64.

    Args:
        model: The model, already in the mode it should be measured in.
        rows: int64 [N, T] on the CPU.
        batch_size: Rows per forward pass.
        autocast: Context for mixed precision, if any.
    """
    device = next(model.parameters()).device
    total = 0.0
    for batch in rows.split(batch_size):
        with autocast or nullcontext():
            losses = token_losses(model, batch.to(device, non_blocking=True))
        total += float(losses.double().sum())
    return total / (rows.shape[0] * (rows.shape[1] - 1))
