"""The loss of a model on each held-out document, and what follows from it for a domain."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from drpruning.errors import SolverError
from drpruning.evaluation.held_out_text import HeldOutText
from drpruning.evaluation.windows import Windows, document_windows, packed_windows
from drpruning.pruning.host_copy import send
from drpruning.train.execution import Execution

IGNORED = -100  # the target that cross-entropy leaves out: its loss is 0
LOGIT_BYTES = 1 << 28
"""Of one batch, float32: what is held twice at once while losses are computed; more rows are no faster on a CPU."""


@dataclass(frozen=True)
class DocumentLosses:
    """Losses of one model on the held-out documents of one domain.

    Args:
        nats: float64 ``[documents]``, negative log-likelihood summed over a document's scored tokens.
        tokens: int64 ``[documents]``, how many those are.
        lengths: int64 ``[documents]``, how many tokens the documents have; packed rows leave out some of them.
        sizes: int64 ``[documents]``, UTF-8 bytes of the documents; None where they are not known.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64] | None

    @property
    def loss(self) -> float:
        """Nats per token: every token counts alike, whichever document and batch it was in."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinite where that is too large to write."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text, which compares across tokenizers; NaN where bytes are not known.

        The end token is paid for and has no bytes. Tokens that packed rows leave out are taken to cost as much as the
        others.
        """
        if self.sizes is None or not self.sizes.sum():
            return math.nan
        return self.loss / math.log(2) * float(self.lengths.sum() / self.sizes.sum())

    @property
    def loss_error(self) -> float:
        """Standard error of the loss over documents, as of a ratio of two means (Cochran 1977, 6.4)."""
        return ratio_error(self.nats, self.tokens)


def ratio_error(values: NDArray[np.float64], weights: NDArray[np.int64]) -> float:
    """Standard error of ``sum(values) / sum(weights)`` over independent documents; NaN for fewer than two.

    Linearised: the residuals ``values - ratio * weights`` have mean zero, and their spread is that of the ratio.

    >>> round(ratio_error(np.array([1.0, 3.0]), np.array([1, 1])), 6)
    1.0
    """
    count = len(values)
    if count < 2:
        return math.nan
    residuals = values - values.sum() / weights.sum() * weights
    return float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / weights.sum())


def document_losses(
    model: nn.Module,
    text: HeldOutText,
    *,
    seq_len: int,
    stride: int | None = None,
    packed: bool = False,
    batch_size: int | None = None,
    autocast: AbstractContextManager[Any] | None = None,
) -> DocumentLosses:
    """Measures a causal model on every document.

    Args:
        model: A causal model of transformers, in the mode it should be measured in.
        text: What to measure on.
        seq_len: Tokens the model reads at once.
        stride: See :func:`~drpruning.evaluation.windows.document_windows`.
        packed: Rows as in training instead, :func:`~drpruning.evaluation.windows.packed_windows`.
        batch_size: Rows of ``seq_len`` tokens in a forward pass; None: as many as give 256 MiB of float32 logits.
        autocast: Context for mixed precision, if any.

    Raises:
        ConfigError: ``seq_len`` or ``stride`` is out of range.
        SolverError: The loss of a document is not finite.
    """
    windows = packed_windows(text, seq_len) if packed else document_windows(text, seq_len, stride)
    documents = len(text.documents)
    nats = summed_nats(model, windows, documents, _batch_tokens(model, seq_len, batch_size), autocast)
    if not np.isfinite(nats).all():
        raise SolverError(
            f"the loss of document {int(np.flatnonzero(~np.isfinite(nats))[0])} is not finite",
            "Use float32, or a seq_len that the model was trained for.",
        )
    return DocumentLosses(
        nats=nats,
        tokens=windows.scored(documents),
        lengths=np.array([len(ids) for ids in text.documents], dtype=np.int64),
        sizes=text.sizes,
    )


@torch.no_grad()
def summed_nats(
    model: nn.Module,
    windows: Windows,
    documents: int,
    batch_tokens: int,
    autocast: AbstractContextManager[Any] | None,
) -> NDArray[np.float64]:
    """Nats of each document, summed in float64 on the device; the host waits for the device once, at the end."""
    device = next(model.parameters()).device
    nats = torch.zeros(documents, dtype=torch.float64, device=device)
    for rows in windows.batches(batch_tokens):
        inputs_BT, targets_BT, owners_BT = (send(part, device) for part in _padded(windows, rows))
        with autocast or nullcontext(), Execution().known_documents():  # transformers would compare positions
            losses_BT = target_losses(model, inputs_BT, targets_BT)
        nats.index_add_(0, owners_BT.flatten(), losses_BT.flatten().double())
    return nats.cpu().numpy()


def target_losses(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """float32 loss of each target in nats, [B, T]; 0 where the target is ``IGNORED``.

    Rows are filled up on the right, where a causal model does not look, so no attention mask is needed.
    """
    logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
    losses = functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets_BT)


def _padded(windows: Windows, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and targets of a batch, and the document of each target (0 where it is ``IGNORED``), [B, T] each."""
    longest = int(rows[:, 1].max())
    inputs = np.zeros((len(rows), longest), dtype=np.int64)
    targets = np.full((len(rows), longest), IGNORED, dtype=np.int64)
    owners = np.zeros((len(rows), longest), dtype=np.int64)
    for at, (start, length, skip) in enumerate(rows):
        inputs[at, :length] = windows.tokens[start : start + length]
        targets[at, skip:length] = windows.tokens[start + 1 + skip : start + 1 + length]
        owners[at, skip:length] = windows.owner[start + 1 + skip : start + 1 + length]
    return torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(owners)


def _batch_tokens(model: Any, seq_len: int, batch_size: int | None) -> int:
    if batch_size is not None:
        return batch_size * seq_len
    return max(seq_len, LOGIT_BYTES // (4 * int(model.config.get_text_config().vocab_size)))
