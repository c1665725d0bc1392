"""The loss of a model on each held-out document, and what follows from it for a domain.

Every measurement by document goes through :func:`sum_by_document`: documents in windows (:func:`document_losses`), rows
as training evaluates them (:func:`row_document_losses`), and texts laid out by the caller (:func:`summed_nats`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from drpruning.corpus import Corpus, Split
from drpruning.errors import SolverError
from drpruning.evaluation.held_out_text import HeldOutText, document_groups, row_documents
from drpruning.evaluation.windows import Windows, document_windows, packed_windows
from drpruning.intervals import ratio_standard_error
from drpruning.pruning.async_copy import copy_to_device
from drpruning.train.losses import token_losses
from drpruning.train.model_runtime import ModelRuntime

IGNORED = -100
"""Target that cross-entropy ignores: its loss is 0."""
LOGIT_BYTES = 1 << 28
"""float32 logits of one batch, which exist twice while losses are computed; more rows are no faster on a CPU."""

Autocast = AbstractContextManager[Any] | None
"""Context for mixed precision, if any."""


@dataclass(frozen=True)
class DocumentLosses:
    """Losses of one model on the held-out documents of one domain.

    Args:
        nats: float64 ``[documents]``, negative log-likelihood summed over a document's scored tokens.
        tokens: int64 ``[documents]``, number of scored tokens.
        lengths: int64 ``[documents]``, number of tokens of the documents; packed rows omit some of them.
        sizes: int64 ``[documents]``, UTF-8 bytes of the documents; None if they are unknown.
        groups: int64 ``[documents]``, group of each document, the unit of standard errors; None: each document is a
            group.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sizes: NDArray[np.int64] | None
    groups: NDArray[np.int64] | None = None

    @property
    def num_groups(self) -> int:
        """Number of groups of documents."""
        return len(self.nats) if self.groups is None else len(np.unique(self.groups))

    @property
    def loss(self) -> float:
        """Nats per token: every token counts alike, in whichever document and batch it was."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; infinite above the range of a float."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text, which compares across tokenizers; NaN if the bytes are unknown.

        The loss of the end token counts, although the end token has no bytes. Tokens that packed rows omit are assumed
        to have the mean loss.
        """
        if self.sizes is None or not self.sizes.sum():
            return math.nan
        return self.loss / math.log(2) * float(self.lengths.sum() / self.sizes.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of the loss over groups of documents, as of a ratio of two means."""
        return ratio_standard_error(self.nats, self.tokens, self.groups)


def document_losses(
    model: nn.Module,
    text: HeldOutText,
    *,
    seq_len: int,
    stride: int | None = None,
    packed: bool = False,
    batch_size: int | None = None,
    autocast: Autocast = None,
) -> DocumentLosses:
    """Measure a causal model on every document.

    Args:
        model: A causal model of transformers, in the mode in which it is measured.
        text: The documents.
        seq_len: Tokens that the model reads at once.
        stride: See :func:`~drpruning.evaluation.windows.document_windows`.
        packed: Whether to read rows as in training instead, :func:`~drpruning.evaluation.windows.packed_windows`.
        batch_size: Rows of ``seq_len`` tokens in a forward pass; None: as many as give 256 MiB of float32 logits.
        autocast: Context for mixed precision, if any.

    Raises:
        ConfigError: ``seq_len`` or ``stride`` is out of range.
        SolverError: The loss of a document is not finite.
    """
    windows = packed_windows(text, seq_len) if packed else document_windows(text, seq_len, stride)
    documents = len(text.documents)
    nats = summed_nats(model, windows, documents, _batch_tokens(model, seq_len, batch_size), autocast)
    _check_finite(nats)
    return DocumentLosses(
        nats=nats,
        tokens=windows.scored(documents),
        lengths=np.array([len(ids) for ids in text.documents], dtype=np.int64),
        sizes=text.sizes,
        groups=text.groups,
    )


def row_document_losses(
    model: nn.Module,
    corpus: Corpus,
    domain: str,
    *,
    seq_len: int,
    max_tokens: int,
    batch_size: int,
    autocast: Autocast = None,
    split: Split = "test",
) -> DocumentLosses:
    """Measure a model on held-out rows as training lays them out, summed by document.

    A document that spans several rows counts as one. Without an end token in the corpus each row is a document.

    Args:
        model: A causal model that :func:`drpruning.train.model_runtime.prepare` has set up, in evaluation mode.
        corpus: The corpus with the held-out text.
        domain: One of its domains.
        seq_len: Tokens in a row.
        max_tokens: Maximum number of tokens.
        batch_size: Rows in a forward pass.
        autocast: Context for mixed precision, if any.
        split: ``test``, the rows of a run's final measurements, or ``validation``, those of its evaluations.

    Returns:
        Losses of the documents with at least one predicted token, in the order of the text. The sums over them give the
        domain's mean loss of :class:`~drpruning.records.ModelMeasured`.

    Raises:
        SolverError: The loss of a document is not finite.
    """
    rows = torch.from_numpy(corpus.held_out_rows(domain, seq_len, max_tokens, split))
    numbers = row_documents(corpus, domain, seq_len, max_tokens=max_tokens, split=split)[:, 1:]
    documents, owners, tokens = np.unique(numbers, return_inverse=True, return_counts=True)
    owners_BT = torch.from_numpy(owners.reshape(numbers.shape))
    nats = sum_by_document(_row_losses(model, rows, owners_BT, batch_size, autocast), len(tokens), _device(model))
    _check_finite(nats)
    groups = document_groups(corpus, domain, documents, split)
    return DocumentLosses(nats=nats, tokens=tokens, lengths=tokens, sizes=None, groups=groups)


def _check_finite(nats: NDArray[np.float64]) -> None:
    if not np.isfinite(nats).all():
        raise SolverError(
            f"the loss of document {int(np.flatnonzero(~np.isfinite(nats))[0])} is not finite",
            "Use float32, or a seq_len that the model was trained for.",
        )


def summed_nats(
    model: nn.Module, windows: Windows, documents: int, batch_tokens: int, autocast: Autocast
) -> NDArray[np.float64]:
    """Return the nats of each document in ``windows``, float64 ``[documents]``."""
    return sum_by_document(_window_losses(model, windows, batch_tokens, autocast), documents, _device(model))


@torch.no_grad()
def sum_by_document(
    batches: Iterable[tuple[Tensor, Tensor]], documents: int, device: torch.device
) -> NDArray[np.float64]:
    """Sum losses by document in float64 on the device; the host waits for the device once, at the end.

    Args:
        batches: float32 ``[B, T]`` loss of each token, and int64 ``[B, T]`` number of its document, on ``device``.
            Without gradients: the forward pass may run when a batch is taken.
        documents: Number of documents.
        device: Where the sums are computed.

    Returns:
        float64 ``[documents]``, nats.
    """
    nats = torch.zeros(documents, dtype=torch.float64, device=device)
    for losses_BT, owners_BT in batches:
        nats.index_add_(0, owners_BT.flatten(), losses_BT.flatten().double())
    return nats.cpu().numpy()


def target_losses(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the loss of each target in nats, float32 ``[B, T]``; 0 where the target is ``IGNORED``.

    Rows are padded on the right, where a causal model does not attend, so no attention mask is needed.
    """
    logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
    losses = functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets_BT)


def _window_losses(
    model: nn.Module, windows: Windows, batch_tokens: int, autocast: Autocast
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the losses of each batch of windows, and the document of each."""
    device = _device(model)
    for rows in windows.batches(batch_tokens):
        inputs_BT, targets_BT, owners_BT = (copy_to_device(part, device) for part in _padded(windows, rows))
        with autocast or nullcontext(), ModelRuntime().known_documents():  # or transformers would compare positions
            losses_BT = target_losses(model, inputs_BT, targets_BT)
        yield losses_BT, owners_BT


def _row_losses(
    model: nn.Module, rows_NT: Tensor, owners_NT: Tensor, batch_size: int, autocast: Autocast
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the losses of each batch of rows, and the document of each."""
    device = _device(model)
    for rows_BT, owners_BT in zip(rows_NT.split(batch_size), owners_NT.split(batch_size), strict=True):
        with autocast or nullcontext():
            losses_BT = token_losses(model, rows_BT.to(device))
        yield losses_BT, owners_BT.to(device)


def _padded(windows: Windows, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs and targets of a batch, and the document of each target (0 where ``IGNORED``), ``[B, T]`` each."""
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


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
