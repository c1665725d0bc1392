"""Models measured on the held-out text of a corpus, one after the other, on the same documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.evaluation.document_losses import DocumentLosses, document_losses, ratio_error
from drpruning.evaluation.held_out_text import HeldOutText, held_out_text
from drpruning.evaluation.models import Ids, NamedModel, model_tokenizer, which_ids
from drpruning.pruning.loading import load
from drpruning.train.source import corpus_tokenizer

Measure = Literal["loss", "perplexity", "bits_per_byte"]
LONGEST_DEFAULT = 1024
"""Tokens of a window where nothing says what a model was trained on; a model with fewer positions takes those."""

Watch = Callable[[str, str], None]
"""Told before each domain is measured: the model's name, the domain."""


@dataclass(frozen=True)
class ModelLosses:
    """What a model lost on each domain.

    Args:
        model: Which one.
        parameters: How many it has, tied ones once.
        ids: Whether it was measured on the corpus's ids or on text encoded by its own tokenizer.
        domains: Losses on each domain's documents.
    """

    model: NamedModel
    parameters: int
    ids: Ids
    domains: dict[str, DocumentLosses]

    def values(self, measure: Measure) -> dict[str, float]:
        """``loss`` (nats per token), ``perplexity`` or ``bits_per_byte`` of each domain."""
        return {name: float(getattr(losses, measure)) for name, losses in self.domains.items()}

    def average(self, measure: Measure) -> float:
        """Mean over domains, each counting alike; of perplexities the geometric one, exp of the mean loss."""
        if measure == "perplexity":
            mean = self.average("loss")
            return math.exp(mean) if mean < 700 else math.inf
        return statistics.fmean(self.values(measure).values())

    def worst(self, measure: Measure) -> tuple[str, float]:
        """The domain with the highest value, and that value."""
        values = self.values(measure)
        name = max(values, key=lambda domain: -math.inf if math.isnan(values[domain]) else values[domain])
        return name, values[name]


@dataclass(frozen=True)
class Difference:
    """One model's value minus another's on the same documents; ``error`` is its standard error over documents."""

    value: float
    error: float


def difference(first: DocumentLosses, other: DocumentLosses, measure: Literal["loss", "bits_per_byte"]) -> Difference:
    """``other`` minus ``first``, paired document by document.

    Nats per token only compare between models that were measured on the same ids.
    """
    nats = other.nats - first.nats
    if measure == "loss":
        return Difference(other.loss - first.loss, ratio_error(nats, first.tokens))
    value = other.bits_per_byte - first.bits_per_byte
    if first.sizes is None:
        return Difference(value, math.nan)
    scored = first.tokens.sum() / first.lengths.sum()  # below 1 for packed rows
    return Difference(value, ratio_error(nats / math.log(2) / scored, first.sizes))


def evaluate_models(
    models: Sequence[NamedModel],
    corpus: Corpus,
    *,
    domains: Sequence[str] | None = None,
    seq_len: int | None = None,
    stride: int | None = None,
    packed: bool = False,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    watch: Watch = lambda model, domain: None,
) -> Iterator[ModelLosses]:
    """Measures each model on the same held-out documents; yields one when it is done, and forgets it.

    A model whose tokenizer is not the corpus's is measured on the same text, encoded by its own: bits per byte then
    compare, nats per token do not.

    Args:
        models: Which ones.
        corpus: Where the text is.
        domains: Which of its domains; None: all.
        seq_len: Tokens a model reads at once; None: the positions of the model that has fewest, at most 1024.
        stride: Between windows, see :func:`~drpruning.evaluation.windows.document_windows`.
        packed: Rows as in training, see :func:`~drpruning.evaluation.windows.packed_windows`; needs the corpus's ids.
        max_tokens: Of each domain, at most, counted in the corpus's tokens.
        batch_size: Rows of ``seq_len`` tokens in a forward pass; None: as many as memory for logits allows.
        device: Where to compute; None: the CPU.
        dtype: Of weights and computation.
        watch: Told of progress.

    Raises:
        ConfigError: A model does not exist, does not fit the corpus, or has fewer positions than ``seq_len``.
        CorpusError: A domain has no held-out text.
    """
    wanted = list(corpus.domains if domains is None else domains)
    length = seq_len or default_length(models)
    ours = corpus_tokenizer(corpus)
    shared: dict[str, HeldOutText] = {}
    for model in models:
        network = load(model.path, dtype).to(device or "cpu").eval()
        check_positions(model, network.config, length)
        vocabulary = int(network.get_input_embeddings().weight.shape[0])
        theirs = model_tokenizer(model.path)
        ids = which_ids(model, vocabulary, theirs, ours, corpus)
        if packed and ids == "own":
            raise ConfigError(
                f"packed rows are rows of the corpus's ids; the model {model.name!r} has a tokenizer of its own",
                "Leave out --packed.",
            )
        measured = {}
        for domain in wanted:
            watch(model.name, domain)
            if ids == "own":
                text = held_out_text(corpus, domain, max_tokens=max_tokens, tokenizer=theirs, start=theirs.bos_token_id)
            else:
                if domain not in shared:
                    start = None if ours is None else ours.bos_token_id
                    shared[domain] = held_out_text(
                        corpus, domain, max_tokens=max_tokens, row_len=length if packed else None, start=start
                    )
                text = shared[domain]
            measured[domain] = document_losses(
                network, text, seq_len=length, stride=stride, packed=packed, batch_size=batch_size
            )
        parameters = sum(weights.numel() for weights in network.parameters())
        del network  # before the next one is loaded: two may not fit into memory
        yield ModelLosses(model, parameters, ids, measured)


def default_length(models: Sequence[NamedModel]) -> int:
    """Tokens that all of these models can read at once, at most ``LONGEST_DEFAULT``."""
    from transformers import AutoConfig  # noqa: PLC0415

    longest = LONGEST_DEFAULT
    for model in models:
        try:
            config = AutoConfig.from_pretrained(model.path)
        except (OSError, ValueError):
            continue  # loading the model says what is wrong
        longest = min(longest, positions_of(config) or longest)
    return longest


def check_positions(model: NamedModel, config: Any, seq_len: int) -> None:
    """Makes sure that a model can read ``seq_len`` tokens.

    Raises:
        ConfigError: It has fewer positions.
    """
    positions = positions_of(config)
    if positions is not None and seq_len > positions:
        raise ConfigError(
            f"seq_len is {seq_len}; the model {model.name!r} has {positions} positions", "Give a smaller --seq-len."
        )


def positions_of(config: Any) -> int | None:
    """How many tokens a model can read at once, where its configuration says so."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
