"""The runtime of a model: attention kernel, activation checkpointing, compilation and cross-entropy.

These settings change speed and memory, not the result, except ``data.document_mask``, which restricts attention to
documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import masking_utils

from drpruning.config import DataConfig, TrainingConfig
from drpruning.errors import ConfigError, MissingExtraError
from drpruning.hf.models import build_on_meta
from drpruning.pruning import MaskedModel
from drpruning.pruning.masked_modules import mask_module
from drpruning.pruning.sparse_forward import mark_dynamic
from drpruning.train.compiling import compile_blocks
from drpruning.train.flex_attention import NAME as DOCUMENTS
from drpruning.train.flex_attention import document_blocks, unsupported_reason
from drpruning.train.fused_cross_entropy import CrossEntropy, select_cross_entropy
from drpruning.train.model_structure import decoder_blocks, has_plain_head

DOCUMENT_FUNCTION = "find_packed_sequence_indices"
"""The function of transformers' ``masking_utils`` that finds the documents of a row."""
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Packages of the kernels that take documents as one long row with their ends, not as a mask over rows."""


@dataclass(frozen=True)
class ModelRuntime:
    """The settings with which :func:`drpruning.train.losses.token_losses` runs a model.

    Args:
        cross_entropy: Computes losses from the last hidden states; None: from the logits of all tokens.
        end_token: Id at the end of a document, where attention stays within documents; otherwise None.
        attention: Name of the attention function, as in the recipe.
        chunk: Tokens of which logits exist at once, where the recipe has a number.
    """

    cross_entropy: CrossEntropy | None = None
    end_token: int | None = None
    attention: str = "auto"
    chunk: int | None = None

    def inputs(self, tokens_BT: Tensor) -> dict[str, Any]:
        """Return the arguments of the forward pass for ``tokens_BT``.

        Rows become one long row where the kernel takes documents so. FlashAttention takes their ends, whose number the
        host needs: this synchronises with the device once in a forward pass. Other kernels do not.
        """
        if self.end_token is None and self.attention != "flex_attention":
            return {"input_ids": tokens_BT}
        positions_BT = document_positions(tokens_BT, self.end_token)
        if self.attention not in ("flex_attention", *PACKAGES):
            return {"input_ids": tokens_BT, "position_ids": positions_BT}
        positions_1N = positions_BT.view(1, -1)
        first_N = positions_1N[0] == 0
        flat = {"input_ids": tokens_BT.view(1, -1), "position_ids": positions_1N}
        if self.attention == "flex_attention":
            return {**flat, "attention_mask": document_blocks(first_N.cumsum(0))}
        ends = mark_dynamic(pad(first_N.nonzero()[:, 0].int(), (0, 1), value=tokens_BT.numel()))
        longest = tokens_BT.shape[1]  # a bound is enough
        return {**flat, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}

    @contextmanager
    def known_documents(self) -> Iterator[None]:
        """Pass the documents of each row to transformers, within the context.

        transformers' own function compares positions in each forward pass, which synchronises with the device.
        """

        def documents_of(positions_BT: Tensor) -> Tensor | None:
            """Return the index of each token's document, [B, T]; None for one document a row."""
            if self.end_token is None:
                return None
            return (torch.diff(positions_BT, prepend=positions_BT[:, :1] - 1, dim=-1) != 1).cumsum(-1)

        original = getattr(masking_utils, DOCUMENT_FUNCTION, None)
        if original is None:
            yield
            return
        setattr(masking_utils, DOCUMENT_FUNCTION, documents_of)
        try:
            yield
        finally:
            setattr(masking_utils, DOCUMENT_FUNCTION, original)


def prepare(model: Any, training: TrainingConfig, data: DataConfig | None = None, end_token: int | None = None) -> None:
    """Set the runtime of ``model`` by a recipe.

    Args:
        model: A causal model of transformers, or a masked one.
        training: The recipe's section: attention, activation checkpointing, compilation, cross-entropy.
        data: The recipe's section: whether attention stays within documents; None: it does not.
        end_token: Id at the end of a document.

    Raises:
        ConfigError: The kernel does not support this model.
        MissingExtraError: A package is missing.
    """
    inner = model.model if isinstance(model, MaskedModel) else model
    masking = data is not None and data.document_mask
    attention = choose_attention(inner.config, training, data, inner.device.type)
    set_attention(inner, attention)
    if training.activation_checkpointing != "none":
        checkpoint_activations(decoder_blocks(inner), training.activation_checkpointing)
    if training.compile:
        compile_blocks(decoder_blocks(inner))
    kind = training.cross_entropy
    if kind == "auto":
        kind = "chunked" if has_plain_head(build_on_meta(inner.config)) else "plain"
    model.runtime = ModelRuntime(
        cross_entropy=None if kind == "plain" else select_cross_entropy(kind, training.cross_entropy_chunk),
        end_token=end_token if masking else None,
        attention=attention,
        chunk=training.cross_entropy_chunk,
    )


def choose_attention(config: Any, training: TrainingConfig, data: DataConfig | None, device: str) -> str:
    """Return the recipe's attention function; for ``auto`` FlexAttention within documents on a GPU, or else SDPA.

    SDPA takes documents as a mask of all pairs of tokens, for which it has no flash kernel: a slower one computes the
    whole square instead of half. FlexAttention computes the blocks with tokens of a document.

    Args:
        config: transformers configuration of the model.
        training: The recipe's section.
        data: The recipe's section.
        device: Type of the device.
    """
    if training.attention != "auto" or data is None or not data.document_mask or training.deterministic:
        return training.attention
    reason = unsupported_reason(config, device=device, dtype=training.dtype, seq_len=data.seq_len)
    return "auto" if reason else "flex_attention"


def runtime_of(model: nn.Module) -> ModelRuntime:
    """Return the runtime set by :func:`prepare`, or the default."""
    found = getattr(model, "runtime", None)
    return found if isinstance(found, ModelRuntime) else ModelRuntime()


def set_attention(model: Any, kernel: str) -> None:
    """Set transformers' attention function of that name, for FlexAttention ours; ``auto`` changes nothing."""
    if kernel == "auto":
        return
    try:
        model.set_attn_implementation(DOCUMENTS if kernel == "flex_attention" else kernel)
    except ImportError as error:
        raise MissingExtraError(
            f"training.attention {kernel} cannot be used: {str(error).strip().splitlines()[0]}",
            "Install the package it names, or use --set training.attention=sdpa.",
        ) from error
    except ValueError as error:
        raise ConfigError(f"training.attention {kernel}: {str(error).strip().splitlines()[0]}") from error


def checkpoint_activations(blocks: Iterable[nn.Module], kind: str) -> None:
    """Make blocks recompute their forward pass in the backward pass: all of it, or all but matrix products.

    Args:
        blocks: Decoder blocks.
        kind: ``full``, or ``selective``, which keeps the outputs of :func:`expensive_operations`.
    """
    for block in blocks:
        mask_module(block, CheckpointedBlock, keeps=SELECTIVE if kind == "selective" else None)


class CheckpointedBlock(nn.Module):
    """A decoder block whose forward pass is recomputed in the backward pass.

    transformers checkpoints blocks too, in some versions around their ``__call__`` and so around a compiled block. The
    operations to keep are invisible there, and ``selective`` becomes ``full``. This class is inside the compiled code
    and inside FSDP2's hooks, in every version.
    """

    keeps: Callable[[], Any] | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block's forward pass."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        contexts: dict[str, Any] = {} if self.keeps is None else {"context_fn": self.keeps}
        return checkpoint(super().forward, *args, use_reentrant=False, **contexts, **kwargs)


def expensive_operations() -> list[Any]:
    """Return the operations whose results selective checkpointing keeps: matrix products and attention."""
    aten = torch.ops.aten
    return [
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.higher_order.flex_attention,
    ]


KEPT = frozenset(expensive_operations())


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = partial(create_selective_checkpoint_contexts, _policy)


def document_positions(tokens_BT: Tensor, end_token: int | None) -> Tensor:
    """Return each token's position in its document, from 0, without a synchronisation; a row begins with a document.

    Without an ``end_token`` a row is a document.

    These are the ``position_ids`` of :func:`drpruning.document_boundaries`, from which transformers makes masks within
    documents.

    Example:
        >>> document_positions(torch.tensor([[5, 6, 0, 7], [8, 9, 5, 0]]), end_token=0).tolist()
        [[0, 1, 2, 0], [0, 1, 2, 3]]
    """
    places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    first_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    if end_token is not None:
        first_BT[:, 1:] = tokens_BT[:, :-1] == end_token
    starts_BT = torch.where(first_BT, places_T, 0).cummax(dim=1).values
    return places_T - starts_BT
