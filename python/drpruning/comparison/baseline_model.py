"""A row that is not trained: a finished model, measured on the text on which the runs' models are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from drpruning.config import EvaluateConfig, RunConfig
from drpruning.corpus import Corpus
from drpruning.evaluation.document_losses import document_losses
from drpruning.evaluation.held_out_text import held_out_text, row_documents
from drpruning.evaluation.model_losses import check_positions
from drpruning.evaluation.models import NamedModel, model_tokenizer, which_ids
from drpruning.evaluation.tasks import find_tasks
from drpruning.pruning.loading import load
from drpruning.train.device import choose_device
from drpruning.train.source import corpus_tokenizer


def measure_model(source: str, config: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """Losses by document, and scores on the recipe's tasks, of a finished model.

    A model with the corpus's tokenizer is measured on the rows on which the runs' models are. One with a tokenizer of
    its own reads the text that the rows hold, each document by itself; its loss on a document counts for the corpus's
    tokens of it, so that nats per token are of the same text and compare with the others.

    Args:
        source: Folder, or name on the hub.
        config: The recipe: text, length of rows, precision, device, tasks.
        corpus: The recipe's.

    Returns:
        ``model``, ``parameters``, ``ids`` (``corpus``, ``unchecked`` or ``own``), ``corpus`` (its fingerprint),
        ``losses`` by domain in nats per token of the corpus, ``documents`` as
        :func:`~drpruning.comparison.documents.document_losses` gives them, and ``tasks``.

    Raises:
        ConfigError: The model does not exist, does not fit the corpus, or has fewer positions than a row.
        CorpusError: The corpus names no end token.
    """
    training, seq_len = config.training, config.data.seq_len
    device = choose_device(training.device)
    model = load(source).to(device).eval()
    check_positions(NamedModel(source, source), model.config, seq_len)
    ours, theirs = corpus_tokenizer(corpus), model_tokenizer(source)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    ids = which_ids(NamedModel(source, source), vocabulary, theirs, ours, corpus)
    own = theirs if ids == "own" else None
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.dtype == "bfloat16")
    documents = {domain: _documents(model, own, corpus, domain, config, autocast) for domain in config.domains}
    return {
        "model": source,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "ids": ids,
        "corpus": corpus.fingerprint,
        "losses": {domain: sum(found["nats"]) / sum(found["tokens"]) for domain, found in documents.items()},
        "documents": documents,
        "tasks": _scores(model, theirs or ours, config.evaluate),
    }


def _documents(
    model: Any, own: Any, corpus: Corpus, domain: str, config: RunConfig, autocast: AbstractContextManager[Any]
) -> dict[str, list[float]]:
    """Of each document of the measured rows, how many tokens the runs' models predict, and the nats they cost."""
    seq_len, training = config.data.seq_len, config.training
    start = None if own is None else own.bos_token_id
    most = training.measurement_tokens
    text = held_out_text(corpus, domain, max_tokens=most, row_len=seq_len, tokenizer=own, start=start)
    packed = own is None and not config.data.document_mask
    batch = training.evaluation_batch_size
    losses = document_losses(model, text, seq_len=seq_len, packed=packed, batch_size=batch, autocast=autocast)
    owners = row_documents(corpus, domain, seq_len, max_tokens=most)
    documents, lengths = np.unique(owners, return_counts=True)
    predicted = np.bincount(np.searchsorted(documents, owners[:, 1:].ravel()), minlength=len(documents))
    nats = losses.nats * (1.0 if packed else predicted / lengths)
    kept = predicted > 0
    return {"tokens": predicted[kept].tolist(), "nats": [round(value, 6) for value in nats[kept].tolist()]}


def _scores(model: Any, tokenizer: Any, settings: EvaluateConfig) -> dict[str, dict[str, float]]:
    if not settings.tasks:
        return {}
    scores = find_tasks(settings.tasks).score(model, tokenizer, limit=settings.limit, batch_size=settings.batch_size)
    return {score.task: score.metrics for score in scores}
