"""Attention within documents by torch's FlexAttention, which skips blocks of tokens without a common document.

The rows of a batch become one long row of documents with one mask. A compiled kernel has fixed numbers of heads, which
pruning masks change; so key/value heads are in the batch dimension here, whose size may vary:
query [kv_heads, group, N, head_dim], key and value [kv_heads, 1, N, head_dim].
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from drpruning.pruning.architectures import head_dim_of

NAME = "drpruning_documents"
"""Name of :func:`attend` in transformers."""
BLOCK = 128
"""Tokens of a block of the mask: FlexAttention's default, a multiple of its kernels' tiles."""
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Tested types. Others cap their scores, or have attention modules without ``num_key_value_groups``."""
MIN_HEAD_DIM = 16
"""Columns of the smallest tile of FlexAttention's kernels."""


def attend(
    module: Any,
    query_BHTK: Tensor,
    key_BGTK: Tensor,
    value_BGTK: Tensor,
    attention_mask: BlockMask | Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention in transformers' interface: by a mask of :func:`document_blocks`, otherwise by SDPA.

    So generation, and evaluation tools that pad rows, work too.

    Args:
        module: The attention module; its ``num_key_value_groups`` is the number of query heads to a key/value head.
        query_BHTK: [1, heads, N, head_dim].
        key_BGTK: [1, kv_heads, N, head_dim].
        value_BGTK: Likewise.
        attention_mask: The mask.
        scaling: Factor of the scores before the softmax.
        **kwargs: Arguments of other attention functions.

    Returns:
        [1, N, heads, head_dim], and None in place of the attention weights.
    """
    if not isinstance(attention_mask, BlockMask):
        result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query_BHTK, key_BGTK, value_BGTK, attention_mask, scaling=scaling, **kwargs
        )
        return result
    device = query_BHTK.device.type
    parts: tuple[Tensor, ...] = query_BHTK, key_BGTK, value_BGTK
    if torch.is_autocast_enabled(
        device
    ):  # autocast covers SDPA only; norms with float32 weights return float32 queries
        parts = tuple(each.to(torch.get_autocast_dtype(device)) for each in parts)
    query, key, value = (each.squeeze(0) for each in parts)
    group, (length, head_dim) = module.num_key_value_groups, query.shape[1:]
    attended = _kernel(device)(
        query.view(-1, group, length, head_dim),
        key[:, None],
        value[:, None],
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=group > 1,
    )
    return attended.reshape(1, -1, length, head_dim).transpose(1, 2).contiguous(), None


def _kernel(device: str) -> Any:
    """Return FlexAttention, compiled on a GPU unless the block around it is; uncompiled it materialises all scores."""
    return flex_attention if torch.compiler.is_compiling() or device == "cpu" else _compiled_kernel()


@cache
def _compiled_kernel() -> Any:
    return torch.compile(flex_attention)


def document_blocks(documents_N: Tensor) -> BlockMask:
    """Return the mask between blocks of tokens: causal, within documents. Does not synchronise with the device.

    Document indices ascend, so those of a block's first and last token suffice: no square of all tokens is built.

    Args:
        documents_N: Index of each token's document in one long row of tokens, ascending.
    """
    length, device = len(documents_N), documents_N.device
    number = math.ceil(length / BLOCK)
    # The padding of the last block belongs to no document, so that block is partly masked.
    filled = pad(documents_N, (0, number * BLOCK - length), value=torch.iinfo(torch.int32).max).view(number, BLOCK)
    first, last, places = filled[:, 0], filled[:, -1], torch.arange(number, device=device)
    before = places[:, None] > places
    entirely = before & (first == last[:, None])  # equal ends: all in between are equal
    partly = (before | torch.eye(number, dtype=torch.bool, device=device)) & (last >= first[:, None]) & ~entirely

    def mask(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return whether the token at ``query`` attends to that at ``key``."""
        return (query >= key) & (documents_N[query] == documents_N[key])

    return BlockMask.from_kv_blocks(
        *_key_block_lists(partly),
        *_key_block_lists(entirely),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask,
        seq_lengths=(length, length),
    )


def _key_block_lists(blocks_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each block of queries, the number of its blocks of keys, and all blocks of keys, its own first."""
    order = blocks_QK.byte().argsort(dim=-1, descending=True, stable=True)
    return blocks_QK.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]


def unsupported_reason(config: Any, *, device: str, dtype: str, seq_len: int) -> str | None:
    """Return why FlexAttention cannot train a model, as the end of a sentence; None if it can.

    Args:
        config: transformers configuration of the model.
        device: Type of the device.
        dtype: Dtype of the forward pass.
        seq_len: Tokens in a row.
    """
    if device != "cuda":
        return f"has no backward pass on {device}"
    if dtype != "bfloat16":
        return f"is not tested with training.dtype {dtype}, only with bfloat16"
    if config.model_type not in MODEL_TYPES:
        return f"is not tested with models of type {config.model_type!r}, only with {', '.join(MODEL_TYPES)}"
    head_dim, window = head_dim_of(config), getattr(config, "sliding_window", None)
    if head_dim < MIN_HEAD_DIM:
        return f"needs heads of at least {MIN_HEAD_DIM} units; the model's have {head_dim}"
    if window is not None and window < seq_len:
        return f"is not tested with a sliding window ({window}) below data.seq_len ({seq_len})"
    if getattr(config, "attention_dropout", 0.0):
        return f"has no dropout, and the model's attention_dropout is {config.attention_dropout}"
    return None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
