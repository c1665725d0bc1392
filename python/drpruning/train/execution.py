"""How a model is run, which changes its speed and memory and not what it computes: kernels, recomputing, the loss.

One thing does change what it computes: with ``data.document_mask`` attention stays within documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import masking_utils

from drpruning.config import DataConfig, TrainingConfig
from drpruning.errors import ConfigError, MissingExtraError
from drpruning.pruning import MaskedModel
from drpruning.pruning.modules import mask_module
from drpruning.train.any_model import can_be_masked, decoder_blocks, ends_with_head, without_storage
from drpruning.train.compiling import compile_blocks
from drpruning.train.linear_losses import LinearLosses, linear_losses

LOOKS_AT_POSITIONS = "find_packed_sequence_indices"
"""What of transformers' ``masking_utils`` finds the documents in a row."""
FLATTENED = ("flash_attention_2", "flash_attention_3")
"""Kernels that take documents as one long row with their ends, not as a mask over rows."""


@dataclass(frozen=True)
class Execution:
    """How :func:`drpruning.train.losses.token_losses` runs a model.

    Args:
        linear_losses: Computes losses from the last hidden states; None: from logits of all tokens.
        end_token: Id at the end of a document, where attention stays within documents.
        flatten: Whether the rows of a batch are given as one.
    """

    linear_losses: LinearLosses | None = None
    end_token: int | None = None
    flatten: bool = False

    def inputs(self, tokens_BT: Tensor) -> dict[str, Tensor]:
        """The arguments of the forward pass for ``tokens_BT``."""
        if self.end_token is None:
            return {"input_ids": tokens_BT}
        positions_BT = document_positions(tokens_BT, self.end_token)
        if self.flatten:
            return {"input_ids": tokens_BT.view(1, -1), "position_ids": positions_BT.view(1, -1)}
        return {"input_ids": tokens_BT, "position_ids": positions_BT}

    @contextmanager
    def told(self) -> Iterator[None]:
        """Within the context transformers takes our word for whether a row holds several documents.

        Else it looks at the positions in each forward pass, and waits for the device to see them.
        """

        def as_told(positions_BT: Tensor) -> Tensor | None:
            """Numbers of the documents, [B, T], in place of transformers' function of that name; None for one a row."""
            if self.end_token is None:
                return None
            return (torch.diff(positions_BT, prepend=positions_BT[:, :1] - 1, dim=-1) != 1).cumsum(-1)

        looking = getattr(masking_utils, LOOKS_AT_POSITIONS, None)
        if looking is None:
            yield
            return
        setattr(masking_utils, LOOKS_AT_POSITIONS, as_told)
        try:
            yield
        finally:
            setattr(masking_utils, LOOKS_AT_POSITIONS, looking)


def prepare(model: Any, training: TrainingConfig, data: DataConfig | None = None, end_token: int | None = None) -> None:
    """Makes ``model`` run as a recipe says.

    Args:
        model: A causal model of transformers, or a masked one.
        training: Names the attention kernel, what is computed twice to save memory, whether blocks are compiled, and
            how losses are computed.
        data: Says whether attention stays within documents; missing: it does not.
        end_token: Id at the end of a document.

    Raises:
        ConfigError: The kernel does not work with this model.
        MissingExtraError: A package is missing.
    """
    inner = model.model if isinstance(model, MaskedModel) else model
    if training.attention != "auto":
        set_attention(inner, training.attention)
    if training.activation_checkpointing != "none":
        checkpoint_activations(decoder_blocks(inner), training.activation_checkpointing)
    if training.compile:
        compile_blocks(decoder_blocks(inner))
    masking = data is not None and data.document_mask
    kind = training.loss
    if kind == "auto":
        chunks = can_be_masked(inner.config) or ends_with_head(without_storage(inner.config))
        kind = "chunked" if chunks else "plain"
    model.execution = Execution(
        linear_losses=None if kind == "plain" else linear_losses(kind, training.loss_chunk),
        end_token=end_token if masking else None,
        flatten=training.attention in FLATTENED,
    )


def check_execution(training: TrainingConfig, data: DataConfig, end_token: int | None) -> None:
    """Finds out whether :func:`prepare` can do what is asked for, without a model.

    Raises:
        ConfigError: The corpus names no end token for ``data.document_mask``, or this torch lacks something.
        MissingExtraError: A package is missing.
    """
    if data.document_mask and end_token is None:
        raise ConfigError(
            "data.document_mask needs to know where documents end, and the corpus names no end token",
            "Prepare the corpus with a tokenizer that has one.",
        )
    if training.loss not in ("auto", "plain"):
        linear_losses(training.loss)
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(training.attention)
    if package is not None and find_spec(package) is None:
        raise MissingExtraError(
            f"`training.attention: {training.attention}` needs the package {package}",
            "Install FlashAttention for your GPU, or use --set training.attention=sdpa.",
        )


def execution_of(model: nn.Module) -> Execution:
    """What :func:`prepare` has set, or that nothing was."""
    found = getattr(model, "execution", None)
    return found if isinstance(found, Execution) else Execution()


def set_attention(model: Any, kernel: str) -> None:
    """Uses transformers' attention function of that name."""
    try:
        model.set_attn_implementation(kernel)
    except ImportError as error:
        raise MissingExtraError(
            f"training.attention {kernel} cannot be used: {str(error).strip().splitlines()[0]}",
            "Install what it names, or use --set training.attention=sdpa.",
        ) from error
    except ValueError as error:
        raise ConfigError(f"training.attention {kernel}: {str(error).strip().splitlines()[0]}") from error


def checkpoint_activations(blocks: Iterable[nn.Module], kind: str) -> None:
    """Make blocks compute their forward pass a second time in the backward pass: all of it, or all but products.

    Args:
        blocks: Decoder blocks.
        kind: ``full``, or ``selective``, which keeps the outputs of :func:`expensive_operations`.
    """
    for block in blocks:
        mask_module(block, CheckpointedBlock, keeps=SELECTIVE if kind == "selective" else None)


class CheckpointedBlock(nn.Module):
    """A decoder block that is computed a second time in the backward pass.

    transformers checkpoints blocks too, in some versions around their ``__call__`` and so around a compiled block. There
    the operations to keep are not seen, and ``selective`` becomes ``full``. This lies inside what is compiled, and
    inside FSDP2's hooks, in every version.
    """

    keeps: Callable[[], Any] | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's forward pass."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        extra = {} if self.keeps is None else {"context_fn": self.keeps}
        return checkpoint(super().forward, *args, use_reentrant=False, **extra, **kwargs)


def expensive_operations() -> list[Any]:
    """What selective checkpointing keeps: matrix products and attention; norms, rotations and activations are cheap."""
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


def document_positions(tokens_BT: Tensor, end_token: int) -> Tensor:
    """Each token's place in its document, 0 for the first; a row begins with a document. Does not wait for the device.

    The same as ``position_ids`` of :func:`drpruning.document_boundaries`. transformers makes masks within documents
    from them.

    Example:
        >>> document_positions(torch.tensor([[5, 6, 0, 7], [8, 9, 5, 0]]), end_token=0).tolist()
        [[0, 1, 2, 0], [0, 1, 2, 3]]
    """
    places_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    first_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    first_BT[:, 1:] = tokens_BT[:, :-1] == end_token
    starts_BT = torch.where(first_BT, places_T, 0).cummax(dim=1).values
    return places_T - starts_BT
