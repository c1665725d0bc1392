"""Held-out loss of each domain with its standard error, on the same rows of a split every time."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drpruning.corpus import Corpus, Split
from drpruning.pruning import MaskedModel
from drpruning.pruning.sizes import evaluated_sizes
from drpruning.train.distributed.ranks import Ranks
from drpruning.train.losses import row_losses

MOST_PARTS = 64
"""Parts of the test rows whose losses are recorded: enough for Student's t, and small in ``metrics.jsonl``."""


@dataclass(frozen=True)
class HeldOutLosses:
    """The losses of one model on the held-out rows of each domain.

    Args:
        rows: Mean loss of each row, nats per token: float64 [N] per domain.
    """

    rows: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """Return the loss of each domain, nats per token; rows have the same length, so all tokens weigh the same."""
        return {domain: float(losses.mean()) for domain, losses in self.rows.items()}

    def part_means(self, most: int = MOST_PARTS) -> dict[str, list[float]]:
        """Return the means over at most ``most`` equal parts of consecutive rows, nats per token to six digits.

        Rows of one document are consecutive, so parts depend less on each other than rows do (batch means).

        Example:
            >>> HeldOutLosses({"web": torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float64)}).part_means(2)
            {'web': [2.0, 6.0]}
        """
        return {
            domain: [round(float(part.mean()), 6) for part in losses.tensor_split(min(most, len(losses)))]
            for domain, losses in self.rows.items()
        }

    def standard_errors(self, reference: HeldOutLosses | None = None) -> dict[str, float]:
        """Return the standard error of each mean, or of its difference to ``reference``, paired row by row.

        Rows are assumed independent. Rows of one document are not, so the error is slightly too small. It is NaN for a
        single row.

        Args:
            reference: Losses of another model, or of an earlier step, on the same rows.

        Example:
            >>> rows = torch.tensor([1.0, 3.0], dtype=torch.float64)
            >>> first, later = HeldOutLosses({"web": rows}), HeldOutLosses({"web": rows + 1})
            >>> later.standard_errors(), later.standard_errors(first)
            ({'web': 1.0}, {'web': 0.0})
        """
        differences = {
            domain: losses if reference is None else losses - reference.rows[domain]
            for domain, losses in self.rows.items()
        }
        return {
            domain: float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            for domain, values in differences.items()
        }


@dataclass(frozen=True)
class Validator:
    """Measures the losses of models on fixed held-out rows.

    Args:
        rows: Tokens, int64 [N, seq_len] per domain.
        batch_size: Rows per forward pass.
    """

    rows: dict[str, Tensor]
    batch_size: int

    @classmethod
    def from_corpus(
        cls, corpus: Corpus, domains: list[str], *, seq_len: int, tokens: int, batch_size: int, split: Split
    ) -> Validator:
        """Read held-out rows of a split, at most ``tokens`` tokens of each domain, see :meth:`Corpus.held_out_rows`."""
        return cls(
            rows={domain: torch.from_numpy(corpus.held_out_rows(domain, seq_len, tokens, split)) for domain in domains},
            batch_size=batch_size,
        )

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of each domain's rows."""
        return {domain: rows.numel() for domain, rows in self.rows.items()}

    def validate(
        self, model: nn.Module, autocast: AbstractContextManager[Any] | None = None, ranks: Ranks | None = None
    ) -> HeldOutLosses:
        """Return the losses of ``model``; a masked model is measured at its :func:`evaluated_sizes`.

        Each rank computes a part of the rows, and all return all losses. The model's mode and masks are restored.
        """
        training = model.training
        model.eval()
        try:
            if isinstance(model, MaskedModel):
                with model.fixed_masks(model.deterministic_masks(evaluated_sizes(model))):
                    return self._validate(model, autocast, ranks)
            return self._validate(model, autocast, ranks)
        finally:
            model.train(training)

    def losses(
        self, model: nn.Module, autocast: AbstractContextManager[Any] | None = None, ranks: Ranks | None = None
    ) -> dict[str, float]:
        """Return the means of :meth:`validate`."""
        return self.validate(model, autocast, ranks).means()

    def _validate(
        self, model: nn.Module, autocast: AbstractContextManager[Any] | None, ranks: Ranks | None
    ) -> HeldOutLosses:
        return HeldOutLosses(
            {
                domain: row_losses(model, rows, batch_size=self.batch_size, autocast=autocast, ranks=ranks)
                for domain, rows in self.rows.items()
            }
        )
