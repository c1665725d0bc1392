"""Losses of a model by held-out document: what tells chance in the choice of test text from a difference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from drpruning.corpus import Corpus
from drpruning.evaluation.held_out_text import row_documents
from drpruning.train.losses import token_losses

Documents = dict[str, dict[str, list[float]]]
"""By domain ``tokens`` and ``nats``: for each document how many tokens were predicted, and their summed loss."""


@torch.no_grad()
def document_losses(
    model: nn.Module,
    corpus: Corpus,
    domains: Sequence[str],
    *,
    seq_len: int,
    tokens: int,
    batch_size: int,
    autocast: AbstractContextManager[Any] | None = None,
) -> Documents:
    """Measures the rows that :class:`ModelMeasured` is measured on, summed by document.

    A document may lie in several rows, which need not follow each other: it counts as one. Without an end token in the
    corpus each row counts as a document.

    Args:
        model: A causal model, in evaluation mode.
        corpus: Has the held-out text.
        domains: Which.
        seq_len: Tokens in a row.
        tokens: At most so many of each domain.
        batch_size: Rows in a forward pass.
        autocast: Context for mixed precision, if any.

    Returns:
        For each domain, documents in the order of the text; sums over them give the domain's mean loss.
    """
    device = next(model.parameters()).device
    found: Documents = {}
    for domain in domains:
        rows = corpus.eval_rows(domain, seq_len=seq_len, max_tokens=tokens)
        parts = []
        for batch in torch.from_numpy(rows).split(batch_size):
            with autocast or nullcontext():
                losses = token_losses(model, batch.to(device))
            parts.append(losses.double().cpu().numpy())
        nats = np.concatenate(parts)
        owners = row_documents(corpus, domain, seq_len, max_tokens=tokens)[:, 1:]
        _, place, predicted = np.unique(owners, return_inverse=True, return_counts=True)
        sums = np.bincount(place.ravel(), weights=nats.ravel())
        found[domain] = {"tokens": predicted.tolist(), "nats": [round(value, 6) for value in sums.tolist()]}
    return found
