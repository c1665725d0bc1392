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
from torch.nn.functional import pad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import masking_utils

from drpruning.config import DataConfig, TrainingConfig
from drpruning.errors import ConfigError, MissingExtraError
from drpruning.hf.models import build_on_meta
from drpruning.pruning import MaskedModel
from drpruning.pruning.masked_modules import mask_module
from drpruning.pruning.sparse_forward import mark_dynamic
from drpruning.train.any_model import can_be_masked, decoder_blocks, ends_with_head
from drpruning.train.compiling import compile_blocks
from drpruning.train.deterministic import check_deterministic
from drpruning.train.flex import NAME as DOCUMENTS
from drpruning.train.flex import document_blocks, obstacle
from drpruning.train.linear_losses import LinearLosses, linear_losses

LOOKS_AT_POSITIONS = "find_packed_sequence_indices"
"""What of transformers' ``masking_utils`` finds the documents in a row."""
PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Of the kernels that take documents as one long row with their ends, not as a mask over rows."""


@dataclass(frozen=True)
class Execution:
    """How :func:`drpruning.train.losses.token_losses` runs a model.

    Args:
        linear_losses: Computes losses from the last hidden states; None: from logits of all tokens.
        end_token: Id at the end of a document, where attention stays within documents.
        attention: The name of the attention function, as in the recipe.
    """

    linear_losses: LinearLosses | None = None
    end_token: int | None = None
    attention: str = "auto"

    def inputs(self, tokens_BT: Tensor) -> dict[str, Any]:
        """The arguments of the forward pass for ``tokens_BT``.

        Rows become one long row where the kernel takes documents as such. FlashAttention takes their ends, whose number
        the host must know: this waits for the device, once in a forward pass. All else does not.
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
        """Give transformers the documents of each row, for the time of the context.

        By itself transformers compares positions in each forward pass, which waits for the device.
        """

        def documents_of(positions_BT: Tensor) -> Tensor | None:
            """Numbers of the documents, [B, T], in place of transformers' function of that name; None for one a row."""
            if self.end_token is None:
                return None
            return (torch.diff(positions_BT, prepend=positions_BT[:, :1] - 1, dim=-1) != 1).cumsum(-1)

        looking = getattr(masking_utils, LOOKS_AT_POSITIONS, None)
        if looking is None:
            yield
            return
        setattr(masking_utils, LOOKS_AT_POSITIONS, documents_of)
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
    masking = data is not None and data.document_mask
    attention = choose_attention(inner.config, training, data, inner.device.type)
    set_attention(inner, attention)
    if training.activation_checkpointing != "none":
        checkpoint_activations(decoder_blocks(inner), training.activation_checkpointing)
    if training.compile:
        compile_blocks(decoder_blocks(inner))
    kind = training.loss
    if kind == "auto":
        chunks = can_be_masked(inner.config) or ends_with_head(build_on_meta(inner.config))
        kind = "chunked" if chunks else "plain"
    model.execution = Execution(
        linear_losses=None if kind == "plain" else linear_losses(kind, training.loss_chunk),
        end_token=end_token if masking else None,
        attention=attention,
    )


def choose_attention(config: Any, training: TrainingConfig, data: DataConfig | None, device: str) -> str:
    """Return the recipe's attention function; for ``auto`` FlexAttention within documents on a GPU, or else SDPA.

    SDPA takes documents as a mask of all pairs of tokens, for which it has no flash kernel: a slower one computes the
    whole square instead of half. FlexAttention computes the blocks that a document reaches.

    Args:
        config: Of the model.
        training: The recipe's section.
        data: The recipe's section.
        device: Type of the device.
    """
    if training.attention != "auto" or data is None or not data.document_mask or training.deterministic:
        return training.attention
    hindered = obstacle(config, device=device, dtype=training.dtype, seq_len=data.seq_len)
    return "auto" if hindered else "flex_attention"


def check_execution(
    training: TrainingConfig, data: DataConfig, end_token: int | None, config: Any = None, device: str = "cpu"
) -> None:
    """Finds out whether :func:`prepare` can do what is asked for, without a model.

    Args:
        training: The recipe's section.
        data: The recipe's section.
        end_token: Id at the end of a document.
        config: Of the model, to check its attention.
        device: Type of the device that trains.

    Raises:
        ConfigError: The corpus names no end token for ``data.document_mask``, this torch lacks something, the
            attention function does not go with model, device or type, or cuBLAS is set to give other bits each time.
        MissingExtraError: A package is missing.
    """
    check_deterministic(training.deterministic)
    if data.document_mask and end_token is None:
        raise ConfigError(
            "data.document_mask needs to know where documents end, and the corpus names no end token",
            "Prepare the corpus with a tokenizer that has one.",
        )
    if training.loss not in ("auto", "plain"):
        linear_losses(training.loss)
    package = PACKAGES.get(training.attention)
    if package is not None and find_spec(package) is None:
        raise MissingExtraError(
            f"`training.attention: {training.attention}` needs the package {package}",
            "Install FlashAttention for your GPU, or use --set training.attention=sdpa.",
        )
    if config is None:
        return
    hindered = None
    if training.attention == "flex_attention":
        hindered = obstacle(config, device=device, dtype=training.dtype, seq_len=data.seq_len)
    elif package is not None and (device != "cuda" or training.dtype != "bfloat16"):
        hindered = f"needs a GPU and training.dtype bfloat16, got {device} and {training.dtype}"
    if hindered is not None:
        raise ConfigError(f"training.attention {training.attention} {hindered}", "Use --set training.attention=sdpa.")


def execution_of(model: nn.Module) -> Execution:
    """What :func:`prepare` has set, or that nothing was."""
    found = getattr(model, "execution", None)
    return found if isinstance(found, Execution) else Execution()


def set_attention(model: Any, kernel: str) -> None:
    """Uses transformers' attention function of that name, for FlexAttention ours; nothing for ``auto``."""
    if kernel == "auto":
        return
    try:
        model.set_attn_implementation(DOCUMENTS if kernel == "flex_attention" else kernel)
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

    transformers checkpoints blocks too, in some versions around their ``__call__`` and so around a compiled block.
    There the operations to keep are not seen, and ``selective`` becomes ``full``. This lies inside what is compiled,
    and inside FSDP2's hooks, in every version.
    """

    keeps: Callable[[], Any] | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's forward pass."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*args, **kwargs)
        contexts: dict[str, Any] = {} if self.keeps is None else {"context_fn": self.keeps}
        return checkpoint(super().forward, *args, use_reentrant=False, **contexts, **kwargs)


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


def document_positions(tokens_BT: Tensor, end_token: int | None) -> Tensor:
    """Each token's place in its document, 0 for the first; a row begins with a document. Does not wait for the device.

    Without an ``end_token`` a row is a document.

    The same as ``position_ids`` of :func:`drpruning.document_boundaries`. transformers makes masks within documents
    from them.

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
