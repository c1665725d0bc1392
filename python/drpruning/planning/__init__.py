"""What a small model will be and cost, before anything is spent. Loads neither torch nor transformers."""

from drpruning.planning.cards import CARDS, Card, card_of
from drpruning.planning.inference import Serving, cache_bytes_per_token, decode_seconds
from drpruning.planning.model_shape import KNOWN, ModelShape, read_shape
from drpruning.planning.propose import Budget, Candidate, propose

__all__ = [
    "CARDS",
    "KNOWN",
    "Budget",
    "Candidate",
    "Card",
    "ModelShape",
    "Serving",
    "cache_bytes_per_token",
    "card_of",
    "decode_seconds",
    "propose",
    "read_shape",
]
