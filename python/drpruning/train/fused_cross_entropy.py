"""Fused linear cross-entropy: the loss of each token from the last hidden states, without logits of all tokens.

Logits of T tokens over a vocabulary of V are the largest tensor of a small model's training step: 4 rows of 4096 tokens
over a vocabulary of 32,000 take 2.1 GB in float32, and a plain cross-entropy holds three such tensors. Here they exist
for a chunk of tokens at a time, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from drpruning.errors import ConfigError, MissingExtraError, install_command

CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Hidden states [N, D], weight of the output layer [V, D], int64 targets [N] -> float32 losses [N], nats."""

CHUNK_BYTES = {"cuda": 2**28, "cpu": 2**25}
"""Bytes of float32 logits in a chunk: on a GPU enough for full speed of the products, on a CPU 256 tokens of a
vocabulary of 32,000; fewer are slower (``benches/train/loss.py``)."""


def select_cross_entropy(kind: str, chunk: int | None = None) -> CrossEntropy:
    """Return the implementation that a recipe names in ``training.cross_entropy``.

    Args:
        kind: ``chunked``, ``torch`` or ``liger``; all return the same losses within rounding.
        chunk: Tokens in a chunk; None: by the device and the vocabulary.

    Raises:
        ConfigError: This torch has no ``linear_cross_entropy``.
        MissingExtraError: liger-kernel is not installed.
    """
    match kind:
        case "chunked":
            return partial(chunked_cross_entropy, chunk=chunk)
        case "torch":
            if not hasattr(functional, "linear_cross_entropy"):
                raise ConfigError(
                    f"training.cross_entropy torch: torch {torch.__version__} has no linear_cross_entropy",
                    "Use a newer torch, or --set training.cross_entropy=chunked.",
                )
            return partial(torch_cross_entropy, chunk=chunk)
        case "liger":
            return _liger_losses()
        case _:
            raise ConfigError(f"unknown cross-entropy {kind!r}; expected chunked, torch or liger")


def chunked_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk: int | None = None
) -> Tensor:
    """Return the negative log-likelihood of each target, computed in chunks of tokens, forward and backward.

    The backward pass recomputes the logits of a chunk, from the saved log-sum-exp: one product more, 1/3 of the output
    layer's work. The weight's gradient is summed over chunks in float32.

    Args:
        hidden_ND: Inputs of the output layer, float32 or bfloat16.
        weight_VD: Its weight.
        targets_N: int64 ids.
        chunk: Tokens in a chunk; None: :data:`CHUNK_BYTES` by the device.

    Returns:
        float32 [N], nats.

    Example:
        >>> hidden, weight = torch.randn(5, 8), torch.randn(11, 8)
        >>> targets = torch.tensor([0, 10, 3, 3, 7])
        >>> plain = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
        >>> torch.allclose(chunked_cross_entropy(hidden, weight, targets, chunk=2), plain, atol=1e-5)
        True
    """
    hidden_ND, weight_VD = operands(hidden_ND, weight_VD)
    losses: Tensor = _ChunkedLosses.apply(hidden_ND, weight_VD, targets_N, chunk or chunk_size(hidden_ND, weight_VD))
    return losses


def operands(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both operands in the dtype in which ``functional.linear`` would multiply them."""
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    return hidden_ND.to(dtype), weight_VD.to(dtype)


def chunk_size(hidden_ND: Tensor, weight_VD: Tensor) -> int:
    """Return the tokens in a chunk by :data:`CHUNK_BYTES` of the device: a multiple of 64, at least 64."""
    most = CHUNK_BYTES.get(hidden_ND.device.type, CHUNK_BYTES["cuda"]) // (4 * weight_VD.shape[0])
    return max(64, most // 64 * 64)


def add_products(
    slopes_NV: Tensor, hidden_ND: Tensor, weight_VD: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
) -> None:
    """Write the gradient of a chunk's inputs to the output layer, and add that of its weights, for those not None.

    Args:
        slopes_NV: Gradients of the logits, in the dtype of the weights.
        hidden_ND: The inputs of the chunk.
        weight_VD: The weights.
        grad_hidden: As ``hidden_ND``.
        grad_weight: As ``weight_VD``, in float32.
    """
    if grad_hidden is not None:
        torch.mm(slopes_NV, weight_VD, out=grad_hidden)
    if grad_weight is not None:
        if grad_weight.dtype == slopes_NV.dtype:
            grad_weight.addmm_(slopes_NV.T, hidden_ND)
        else:
            grad_weight += slopes_NV.T @ hidden_ND


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            losses, sums = [], []
            for hidden, targets in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True):
                logits = functional.linear(hidden, weight_VD).float()
                total = torch.logsumexp(logits, dim=-1)
                losses.append(total - logits.gather(-1, targets[:, None]).squeeze(-1))
                sums.append(total)
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, torch.cat(sums))
        ctx.chunk = chunk
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, sums_N = ctx.saved_tensors
        grad_N = grad_outputs[0].float()
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(hidden_ND), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                hidden, grad = hidden_ND[part], grad_N[part, None]
                slopes = functional.linear(hidden, weight_VD).float().sub_(sums_N[part, None]).exp_().mul_(grad)
                slopes.scatter_add_(-1, targets_N[part, None], -grad)
                slopes = slopes.to(weight_VD.dtype)
                add_products(slopes, hidden, weight_VD, None if grad_hidden is None else grad_hidden[part], grad_weight)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype), None, None


def torch_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk: int | None = None) -> Tensor:
    """Return the same as :func:`chunked_cross_entropy` by ``torch.nn.functional.linear_cross_entropy`` of newer torch.

    Its operands are converted to float32, since its losses have their dtype, and three digits are too few for a record.
    Its automatic chunks are more than twice as slow on a CPU as ours.
    """
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk or chunk_size(hidden_ND, weight_VD))
    with torch.autocast(hidden_ND.device.type, enabled=False):
        losses: Tensor = functional.linear_cross_entropy(
            hidden_ND.float(), weight_VD.float(), targets_N, reduction="none", options=options
        )
    return losses


def _liger_losses() -> CrossEntropy:
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import (  # noqa: PLC0415 - an extra
            LigerFusedLinearCrossEntropyFunction,
        )
    except ImportError as error:
        raise MissingExtraError(
            "`training.cross_entropy: liger` needs liger-kernel, which is not installed",
            f"{install_command('liger-kernel')}, or use --set training.cross_entropy=chunked.",
        ) from error

    def losses(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        # The backward pass scales by the first gradient: correct where all tokens have the same, as for a mean
        found = LigerFusedLinearCrossEntropyFunction.apply(
            *operands(hidden_ND, weight_VD), targets_N, None, None, -100, 0.0, 0.0, "none"
        )
        result: Tensor = found[0] if isinstance(found, tuple) else found
        return result.float()

    return losses
