"""What a shape costs when it is used: weights, key/value cache, and a roofline for the time of a token.

Roofline (Williams et al. 2009): an operation takes as long as its memory traffic or its arithmetic, whichever is
longer. Decoding one token reads every weight once, except the embedding, of which it looks up a row, and the whole
key/value cache of each sequence. The sum over both is a lower bound: launches, sampling and communication come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drpruning.planning.cards import Card
from drpruning.pruning.architectures import head_dim_of


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How the small model will be used.

    Attributes:
        card: Where.
        batch: Sequences that are decoded together.
        context: Tokens of each that are in the cache.
        weight_bytes: Bytes per weight: 2 for bfloat16.
        cache_bytes: Bytes per entry of the cache.
    """

    card: Card
    batch: int = 1
    context: int = 4096
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0


def cache_bytes_per_token(config: Any, sizes: Mapping[str, int], bytes_per_entry: float = 2.0) -> float:
    """Bytes of key/value cache for each token: a key and a value per key/value head and layer.

    Args:
        config: Configuration of the source, for its head_dim.
        sizes: Shape by the names of :class:`drpruning.pruning.Target`.
        bytes_per_entry: 2 for bfloat16.

    Example:
        >>> from drpruning.planning.model_shape import read_shape
        >>> cache_bytes_per_token(read_shape("meta-llama/Llama-3.1-8B"), dict(layers=32, kv_heads=8))
        131072.0
    """
    return 2.0 * sizes["layers"] * sizes["kv_heads"] * head_dim_of(config) * bytes_per_entry


def decode_seconds(config: Any, sizes: Mapping[str, int], parameters: int, serving: Serving) -> float:
    """Seconds for the next token of each sequence, at the least.

    Args:
        config: Configuration of the source: vocabulary, head_dim, tied embeddings.
        sizes: Shape by the names of :class:`drpruning.pruning.Target`.
        parameters: Of that shape.
        serving: How it is used.

    Example:
        >>> from drpruning.planning.cards import card_of
        >>> from drpruning.planning.model_shape import read_shape
        >>> llama = read_shape("meta-llama/Llama-2-7b-hf")
        >>> sizes = dict(layers=32, hidden=4096, heads=32, kv_heads=32, intermediate=11008)
        >>> round(1e3 * decode_seconds(llama, sizes, 6738415616, Serving(card=card_of("H100"))), 2)
        4.59
    """
    card = serving.card
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * sizes["hidden"]
    weights = parameters - looked_up
    reading = weights * serving.weight_bytes / card.bandwidth
    multiplying = 2.0 * weights * serving.batch / card.peak
    cached = serving.batch * serving.context
    cache = cached * cache_bytes_per_token(config, sizes, serving.cache_bytes) / card.bandwidth
    attending = 4.0 * cached * sizes["layers"] * sizes["heads"] * head_dim_of(config) / card.peak
    return max(reading, multiplying) + max(cache, attending)
