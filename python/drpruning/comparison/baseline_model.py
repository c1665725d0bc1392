"""A baseline model: a row of the comparison that is not trained, measured on the same text as the runs' models."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from drpruning.comparison.results import DocumentSums
from drpruning.config import RunConfig, TaskEvalConfig
from drpruning.corpus import Corpus
from drpruning.evaluation.document_losses import document_losses
from drpruning.evaluation.held_out_text import held_out_text, row_documents
from drpruning.evaluation.model_losses import check_positions
from drpruning.evaluation.models import NamedModel, which_ids
from drpruning.evaluation.tasks import find_tasks
from drpruning.hf.models import load
from drpruning.hf.tokenizers import corpus_tokenizer, model_tokenizer
from drpruning.train.device import choose_device


def measure_baseline(source: str, config: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """Measure losses by document, and scores on the recipe's tasks, of a baseline model.

    A model with the corpus's tokenizer is measured on the same rows as the runs' models. A model with another tokenizer
    reads the text of these rows, each document separately; its loss on a document is divided by the corpus's number of
    tokens, so that nats per token are of the same text and compare with the other rows of the table.

    Args:
        source: Folder, or name on the hub.
        config: The recipe, with text, row length, precision, device and tasks.
        corpus: The recipe's corpus.

    Returns:
        ``model``, ``parameters``, ``ids`` (``corpus``, ``unchecked`` or ``own``), ``corpus`` (its fingerprint),
        ``losses`` by domain in nats per token of the corpus, ``documents`` as
        :class:`~drpruning.comparison.results.DocumentSums` by domain, and ``tasks``.

    Raises:
        ConfigError: The model does not exist, does not fit the corpus, or has fewer positions than a row.
        CorpusError: The corpus names no end token.
    """
    training, seq_len = config.training, config.data.seq_len
    device = choose_device(training.device)
    model = load(source).to(device).eval()
    check_positions(NamedModel(source, source), model.config, seq_len)
    corpus_own, model_own = corpus_tokenizer(corpus), model_tokenizer(source)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    ids = which_ids(NamedModel(source, source), vocabulary, model_own, corpus_own, corpus)
    tokenizer = model_own if ids == "own" else None
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.dtype == "bfloat16")
    documents = {domain: _documents(model, tokenizer, corpus, domain, config, autocast) for domain in config.domains}
    return {
        "model": source,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "ids": ids,
        "corpus": corpus.fingerprint,
        "losses": {domain: sum(sums.nats) / sum(sums.tokens) for domain, sums in documents.items()},
        "documents": {domain: sums.model_dump() for domain, sums in documents.items()},
        "tasks": _task_metrics(model, model_own or corpus_own, config.task_eval),
    }


def _documents(
    model: Any, tokenizer: Any, corpus: Corpus, domain: str, config: RunConfig, autocast: AbstractContextManager[Any]
) -> DocumentSums:
    """Return, for each document of the measured rows, the tokens that the runs' models predict, and their nats."""
    seq_len, training = config.data.seq_len, config.training
    start = None if tokenizer is None else tokenizer.bos_token_id
    max_tokens = training.final_eval_tokens
    text = held_out_text(corpus, domain, max_tokens=max_tokens, row_len=seq_len, tokenizer=tokenizer, start=start)
    packed = tokenizer is None and not config.data.document_mask
    batch = training.eval_batch_size
    losses = document_losses(model, text, seq_len=seq_len, packed=packed, batch_size=batch, autocast=autocast)
    owners = row_documents(corpus, domain, seq_len, max_tokens=max_tokens)
    documents, lengths = np.unique(owners, return_counts=True)
    predicted = np.bincount(np.searchsorted(documents, owners[:, 1:].ravel()), minlength=len(documents))
    nats = losses.nats * (1.0 if packed else predicted / lengths)
    return DocumentSums.of(predicted, nats, losses.groups)


def _task_metrics(model: Any, tokenizer: Any, settings: TaskEvalConfig) -> dict[str, dict[str, float]]:
    if not settings.tasks:
        return {}
    scores = find_tasks(settings.tasks).score(model, tokenizer, limit=settings.limit, batch_size=settings.batch_size)
    return {score.task: score.metrics for score in scores}
