"""Losses of models on the held-out text of a corpus, one model after the other, on the same documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.evaluation.document_losses import DocumentLosses, document_losses
from drpruning.evaluation.held_out_text import HeldOutText, held_out_text
from drpruning.evaluation.models import Ids, NamedModel, which_ids
from drpruning.hf.models import load
from drpruning.hf.tokenizers import corpus_tokenizer, model_tokenizer
from drpruning.intervals import Difference, DomainResamples, ResampledRatios

Measure = Literal["loss", "perplexity", "bits_per_byte"]
LONGEST_DEFAULT = 1024
"""Tokens of a window if the training length is unknown; a model with fewer positions uses those."""

ProgressCallback = Callable[[str, str], None]
"""Called before each domain is measured, with the model's name and the domain."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How models read the held-out text.

    Attributes:
        seq_len: Tokens that a model reads at once.
        stride: Tokens between windows, see :func:`~drpruning.evaluation.windows.document_windows`.
        packed: Whether to read rows as in training, see :func:`~drpruning.evaluation.windows.packed_windows`; this
            needs the corpus's ids.
        max_tokens: Maximum number of tokens of each domain, counted in the corpus's tokens; None: all.
        batch_size: Rows of ``seq_len`` tokens in a forward pass; None: as many as memory for logits allows.
        device: Where to compute.
        dtype: Type of weights and computation.
    """

    seq_len: int
    stride: int | None = None
    packed: bool = False
    max_tokens: int | None = None
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class ModelLosses:
    """The losses of one model on each domain.

    Args:
        model: The model's name and path.
        parameters: Number of parameters, tied ones counted once.
        ids: Whether the model read the corpus's ids, or text encoded by its own tokenizer.
        domains: Losses on the documents of each domain.
    """

    model: NamedModel
    parameters: int
    ids: Ids
    domains: dict[str, DocumentLosses]

    def values(self, measure: Measure) -> dict[str, float]:
        """Return ``loss`` (nats per token), ``perplexity`` or ``bits_per_byte`` of each domain."""
        return {name: float(getattr(losses, measure)) for name, losses in self.domains.items()}

    def average(self, measure: Measure) -> float:
        """Return the mean over domains, each counted alike; for perplexity the geometric mean, exp of the mean loss."""
        if measure == "perplexity":
            mean = self.average("loss")
            return math.exp(mean) if mean < 700 else math.inf
        return statistics.fmean(self.values(measure).values())

    def worst(self, measure: Measure) -> tuple[str, float]:
        """Return the domain with the highest value, and that value."""
        values = self.values(measure)
        name = max(values, key=lambda domain: -math.inf if math.isnan(values[domain]) else values[domain])
        return name, values[name]


@dataclass(frozen=True)
class ModelDifference:
    """One model minus another, paired document by document, with intervals over groups of documents.

    Attributes:
        domains: The difference in each domain.
        average: The difference of the means over domains.
        largest: The domain with the largest difference, and that difference with an interval for all domains together.
    """

    domains: dict[str, Difference]
    average: Difference
    largest: tuple[str, Difference]


def model_difference(
    first: ModelLosses, other: ModelLosses, measure: Literal["loss", "bits_per_byte"]
) -> ModelDifference:
    """Return ``other`` minus ``first``.

    Nats per token only compare between models that were measured on the same ids. Intervals of bits per byte are
    unknown (NaN) if bytes are.
    """
    share = np.array([1 / len(first.domains)])
    parts = {}
    generator = np.random.default_rng(0)
    for name, losses in first.domains.items():
        nats, weights = other.domains[name].nats - losses.nats, losses.tokens
        if measure == "bits_per_byte":
            if losses.sizes is None:
                unknown = {name: Difference(math.nan, math.nan) for name in first.domains}
                return ModelDifference(unknown, Difference(math.nan, math.nan), next(iter(unknown.items())))
            scored = losses.tokens.sum() / losses.lengths.sum()  # below 1 for packed rows
            nats, weights = nats / math.log(2) / scored, losses.sizes
        parts[name] = (DomainResamples(weights, losses.groups, generator), nats[None], share)
    domains = {
        name: ResampledRatios.of([(resamples, values, np.ones(1))]).difference()
        for name, (resamples, values, _) in parts.items()
    }
    largest = max(domains, key=lambda name: domains[name].value)
    together = replace(domains[largest], selected_from=len(domains))
    return ModelDifference(domains, ResampledRatios.of(list(parts.values())).difference(), (largest, together))


def evaluate_models(
    models: Sequence[NamedModel],
    corpus: Corpus,
    settings: EvaluationSettings,
    *,
    domains: Sequence[str] | None = None,
    on_progress: ProgressCallback = lambda model, domain: None,
) -> Iterator[ModelLosses]:
    """Measure each model on the same held-out documents; yield its losses, then free it.

    A model whose tokenizer differs from the corpus's is measured on the same text, encoded by its own tokenizer: bits
    per byte then compare, nats per token do not.

    Args:
        models: The models, measured in this order.
        corpus: The corpus with the held-out text.
        settings: How the text is read.
        domains: The domains to measure; None: all.
        on_progress: Called before each domain of each model.

    Raises:
        ConfigError: A model does not exist, does not fit the corpus, or has fewer positions than ``seq_len``.
        CorpusError: A domain has no held-out text.
    """
    domains = list(corpus.domains if domains is None else domains)
    own_tokenizer = corpus_tokenizer(corpus)
    shared: dict[str, HeldOutText] = {}
    for model in models:
        network = load(model.path, settings.dtype).to(settings.device).eval()
        check_positions(model, network.config, settings.seq_len)
        vocabulary = int(network.get_input_embeddings().weight.shape[0])
        tokenizer = model_tokenizer(model.path)
        ids = which_ids(model, vocabulary, tokenizer, own_tokenizer, corpus)
        if settings.packed and ids == "own":
            raise ConfigError(
                f"--packed needs the corpus's token ids, and the model {model.name!r} has another tokenizer",
                "Leave out --packed.",
            )
        measured = {}
        for domain in domains:
            on_progress(model.name, domain)
            if ids == "own":
                start = tokenizer.bos_token_id
                text = held_out_text(corpus, domain, max_tokens=settings.max_tokens, tokenizer=tokenizer, start=start)
            else:
                if domain not in shared:
                    start = None if own_tokenizer is None else own_tokenizer.bos_token_id
                    row_len = settings.seq_len if settings.packed else None
                    shared[domain] = held_out_text(
                        corpus, domain, max_tokens=settings.max_tokens, row_len=row_len, start=start
                    )
                text = shared[domain]
            measured[domain] = document_losses(
                network,
                text,
                seq_len=settings.seq_len,
                stride=settings.stride,
                packed=settings.packed,
                batch_size=settings.batch_size,
            )
        parameters = sum(weights.numel() for weights in network.parameters())
        del network  # before the next model is loaded: two models may not fit into memory
        yield ModelLosses(model, parameters, ids, measured)


def default_length(models: Sequence[NamedModel]) -> int:
    """Return the number of tokens that all models can read at once, at most ``LONGEST_DEFAULT``."""
    from transformers import AutoConfig  # noqa: PLC0415

    longest = LONGEST_DEFAULT
    for model in models:
        try:
            config = AutoConfig.from_pretrained(model.path, trust_remote_code=False)
        except (OSError, ValueError):
            continue  # loading the model raises the error
        longest = min(longest, positions_of(config) or longest)
    return longest


def check_positions(model: NamedModel, config: Any, seq_len: int) -> None:
    """Check that a model can read ``seq_len`` tokens.

    Raises:
        ConfigError: The model has fewer positions.
    """
    positions = positions_of(config)
    if positions is not None and seq_len > positions:
        raise ConfigError(
            f"seq_len is {seq_len}; the model {model.name!r} has {positions} positions", "Give a smaller --seq-len."
        )


def positions_of(config: Any) -> int | None:
    """Return how many tokens a model can read at once; None if its configuration does not state it."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
