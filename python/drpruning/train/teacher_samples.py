"""Random samples of a teacher's next-token distributions, and the student's cross-entropy against them.

A sample has n draws: token i gets an integer count c_i with sum n and expectation n p_i, and c_i / n is an unbiased
estimate of the teacher's probability p_i. The cross-entropy

    H(c / n, q) = -sum_i (c_i / n) log q_i

is linear in the counts, so its gradient in the student's logits is, in expectation, that of KL(p || q). A truncation to
the likeliest tokens is biased. Source: Anshumann et al. (2025), "Sparse Logit Sampling", arXiv 2503.16870, whose draws
are independent; these are systematic (Kitagawa 1996): one uniform number u places the n points (j + u) / n in the
cumulative distribution. Each count is then n p_i rounded down or up, and its variance at most 1/4 instead of
n p_i (1 - p_i).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from drpruning.train.fused_cross_entropy import add_products, chunk_size, operands
from drpruning.train.losses import output_weight, replace_logits
from drpruning.train.model_runtime import runtime_of

CHUNK_ELEMENTS = {"cuda": 2**26, "cpu": 2**22}
"""Probabilities whose cumulative sums exist at once: 0.5 GB and 32 MB of float64."""
TOKENS = 1024
"""Tokens whose float32 logits exist at once where the model's own output layer computes them."""


def uniform_numbers(seed: int, domain: str, row: int, count: int) -> NDArray[np.float64]:
    """Return the uniform numbers in [0, 1) of the positions of a row: a function of the arguments alone (Philox).

    Args:
        seed: Seed of the stored teacher.
        domain: Name of the domain.
        row: Number of the row in its domain.
        count: Number of positions.

    Example:
        >>> uniform_numbers(0, "web", 7, 3).tolist() == uniform_numbers(0, "web", 7, 5)[:3].tolist()
        True
    """
    key = hashlib.blake2b(f"{seed}/{domain}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=np.frombuffer(key, "<u8"), counter=[0, 0, row, 0])
    return (bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample(
    logits_NV: Tensor, uniforms_N: Tensor, draws: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a systematic sample from each distribution.

    Args:
        logits_NV: Logits.
        uniforms_N: float64 numbers in [0, 1), one for each distribution.
        draws: Number of draws n.
        temperature: Temperature of the softmax.

    Returns:
        Number of tokens with a count of each distribution, int64 [N]; their ids, int64, and their counts, int64, one
        distribution after another, ids ascending.

    Example:
        >>> lengths, ids, counts = sample(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0.3]).double(), 4)
        >>> lengths.tolist(), ids.tolist(), counts.tolist()
        ([3], [0, 1, 2], [2, 1, 1])
    """
    lengths, ids, counts = [], [], []
    size = max(1, CHUNK_ELEMENTS.get(logits_NV.device.type, CHUNK_ELEMENTS["cuda"]) // logits_NV.shape[-1])
    for logits, uniforms in zip(logits_NV.split(size), uniforms_N.split(size), strict=True):
        sums = functional.softmax(logits.float() / temperature, dim=-1).cumsum(-1, dtype=torch.float64)
        sums /= sums[:, -1:].clone()  # the last is one, so that all n points are below it
        points = sums.mul_(draws).sub_(uniforms[:, None]).ceil_().long()  # points below each sum
        found = points.diff(dim=-1, prepend=points.new_zeros(len(points), 1))
        places = found.nonzero()
        lengths.append(torch.bincount(places[:, 0], minlength=len(found)))
        ids.append(places[:, 1])
        counts.append(found[places[:, 0], places[:, 1]])
    return torch.cat(lengths), torch.cat(ids), torch.cat(counts)


def pad_samples(lengths_N: Tensor, ids_M: Tensor, counts_M: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Return ids, int64 [N, K], and probabilities, float32 [N, K], of a result of :func:`sample`, padded with zeros."""
    places = torch.arange(int(lengths_N.max()), device=ids_M.device) < lengths_N[:, None]
    ids_NK = ids_M.new_zeros(places.shape)
    probabilities_NK = torch.zeros(places.shape, device=ids_M.device)
    ids_NK[places] = ids_M
    probabilities_NK[places] = counts_M.float() / draws
    return ids_NK, probabilities_NK


def sampled_losses(
    student: nn.Module, tokens_BT: Tensor, ids_NK: Tensor, probabilities_NK: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the next-token loss and the cross-entropy against samples of the teacher, of each token.

    Args:
        student: A masked model, or a pruned one; logits of all tokens exist only where its runtime has no chunked
            cross-entropy.
        tokens_BT: int64 ids, rows of T tokens.
        ids_NK: int64 ids of each token's sample, N = B (T - 1).
        probabilities_NK: float32; 0 for padding.
        temperature: Temperature of the softmax of the second.

    Returns:
        float32 [N] each, nats; the second at the temperature, times its square.
    """
    runtime, shape_BT = runtime_of(student), tokens_BT.shape
    inputs, targets_N = runtime.inputs(tokens_BT), tokens_BT[:, 1:].flatten()
    if runtime.cross_entropy is None:
        with runtime.known_documents():
            logits_NV = student(**inputs, use_cache=False).logits.view(*shape_BT, -1)[:, :-1].flatten(0, 1)
        parts = [
            checkpoint(_of_logits, *part, temperature, use_reentrant=False)
            for part in zip(
                *(each.split(TOKENS) for each in (logits_NV, targets_N, ids_NK, probabilities_NK)), strict=True
            )
        ]
        losses, divergences = (torch.cat(each) for each in zip(*parts, strict=True))
        return losses, divergences

    def both(hidden: Tensor) -> Tensor:
        hidden_ND = hidden.view(*shape_BT, -1)[:, :-1].flatten(0, 1)
        hidden_ND, weight_VD = operands(hidden_ND, output_weight(student))
        size = runtime.chunk or chunk_size(hidden_ND, weight_VD)
        found: Tensor = _ChunkedDistillation.apply(
            hidden_ND, weight_VD, targets_N, ids_NK, probabilities_NK, temperature, size
        )
        return found

    with replace_logits(student, both), runtime.known_documents():
        found: Tensor = student(**inputs, use_cache=False).logits
    losses, divergences = found.view(2, -1).unbind()
    return losses, divergences


def _of_logits(
    logits_NV: Tensor, targets_N: Tensor, ids_NK: Tensor, probabilities_NK: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = logits_NV.float()
    losses = functional.cross_entropy(logits, targets_N, reduction="none")
    scaled = logits / temperature
    drawn = scaled.gather(-1, ids_NK).masked_fill(probabilities_NK == 0, 0)  # a padded id can have a logit of -inf
    divergences = scaled.logsumexp(-1) - (drawn * probabilities_NK).sum(-1)
    return losses, temperature**2 * divergences


class _ChunkedDistillation(torch.autograd.Function):
    """Both losses from the last hidden states, [2, N], in chunks of tokens; the backward pass recomputes the logits.

    As :func:`drpruning.train.fused_cross_entropy.chunked_cross_entropy`, with one product more in the backward pass. At
    temperature 1 both losses share one softmax.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        ids_NK: Tensor,
        probabilities_NK: Tensor,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            losses, sums = [], []
            for start in range(0, len(hidden_ND), chunk):
                part = slice(start, start + chunk)
                logits = functional.linear(hidden_ND[part], weight_VD).float()
                own = logits.gather(-1, targets_N[part, None]).squeeze(-1)
                drawn = (logits.gather(-1, ids_NK[part]) * probabilities_NK[part]).sum(-1)
                total = torch.logsumexp(logits, dim=-1)
                warm = total if temperature == 1 else torch.logsumexp(logits.div_(temperature), dim=-1)
                divergences = temperature**2 * warm - temperature * drawn
                losses.append(torch.stack([total - own, divergences]))
                sums.append(torch.stack([total, warm]))
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, ids_NK, probabilities_NK, torch.cat(sums, dim=1))
        ctx.temperature, ctx.chunk = temperature, chunk
        return torch.cat(losses, dim=1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, ids_NK, probabilities_NK, sums_2N = ctx.saved_tensors
        grads_2N, temperature = grad_outputs[0].float(), ctx.temperature
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(hidden_ND), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                hidden = hidden_ND[part]
                own, drawn = grads_2N[0, part, None], temperature * grads_2N[1, part, None]
                logits = functional.linear(hidden, weight_VD).float()
                if temperature == 1:
                    slopes = logits.sub_(sums_2N[0, part, None]).exp_().mul_(own + drawn)
                else:
                    warm = (logits / temperature).sub_(sums_2N[1, part, None]).exp_().mul_(drawn)
                    slopes = logits.sub_(sums_2N[0, part, None]).exp_().mul_(own).add_(warm)
                slopes.scatter_add_(-1, targets_N[part, None], -own)
                slopes.scatter_add_(-1, ids_NK[part], probabilities_NK[part] * -drawn)
                slopes = slopes.to(weight_VD.dtype)
                add_products(slopes, hidden, weight_VD, None if grad_hidden is None else grad_hidden[part], grad_weight)
        gradient = None if grad_weight is None else grad_weight.to(weight_VD.dtype)
        return grad_hidden, gradient, None, None, None, None, None
