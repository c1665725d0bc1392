"""Held-out loss per domain, on the same rows every time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drpruning.corpus import Corpus
from drpruning.pruning import MaskedModel
from drpruning.train.losses import mean_loss
from drpruning.train.ranks import Ranks


@dataclass(frozen=True)
class Evaluator:
    """Measures a model on fixed held-out rows.

    Args:
        rows: int64 [N, seq_len] per domain.
        batch_size: Rows per forward pass.
    """

    rows: dict[str, Tensor]
    batch_size: int

    @classmethod
    def from_corpus(
        cls, corpus: Corpus, domains: list[str], *, seq_len: int, tokens: int, batch_size: int
    ) -> Evaluator:
        """The first held-out rows of each domain, at most ``tokens`` tokens of each."""
        rows = {
            domain: torch.from_numpy(corpus.eval_rows(domain, seq_len=seq_len, max_tokens=tokens)) for domain in domains
        }
        return cls(rows=rows, batch_size=batch_size)

    def losses(
        self, model: nn.Module, autocast: AbstractContextManager[Any] | None = None, ranks: Ranks | None = None
    ) -> dict[str, float]:
        """Loss per domain, nats per token; a masked model is measured at its present expected size.

        With several ranks each takes its part of the rows, and every one learns all losses.

        The model's mode and masks are as before when this returns.
        """
        training = model.training
        model.eval()
        try:
            if isinstance(model, MaskedModel):
                with model.fixed_masks(model.deterministic_masks(model.expected_sizes())):
                    return self._losses(model, autocast, ranks or Ranks())
            return self._losses(model, autocast, ranks or Ranks())
        finally:
            model.train(training)

    def _losses(self, model: nn.Module, autocast: AbstractContextManager[Any] | None, ranks: Ranks) -> dict[str, float]:
        return {
            domain: mean_loss(model, rows, batch_size=self.batch_size, autocast=autocast, ranks=ranks)
            for domain, rows in self.rows.items()
        }
