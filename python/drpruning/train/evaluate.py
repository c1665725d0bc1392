"""Held-out loss per domain with its standard error, on the same rows every time."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drpruning.corpus import Corpus
from drpruning.pruning import MaskedModel
from drpruning.pruning.sizes import expected_sizes
from drpruning.train.losses import row_losses
from drpruning.train.ranks import Ranks


@dataclass(frozen=True)
class HeldOutLosses:
    """Losses of one model on the held-out rows of each domain.

    Args:
        rows: float64 [N] per domain: the mean loss of each row, nats per token.
    """

    rows: dict[str, Tensor]

    def means(self) -> dict[str, float]:
        """Loss per domain, nats per token; rows have the same length, so every token counts alike."""
        return {domain: float(losses.mean()) for domain, losses in self.rows.items()}

    def standard_errors(self, reference: HeldOutLosses | None = None) -> dict[str, float]:
        """Standard error of each mean, or of its difference to ``reference``, paired row by row.

        Rows count as independent; those that cut the same document are not, so the error is a little too small. It is
        NaN for a single row.

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
class Evaluator:
    """Measures a model on fixed held-out rows.

    Args:
        rows: int64 [N, seq_len] per domain.
        numbers: int64 [N] per domain, which held-out rows they are, ascending.
        batch_size: Rows per forward pass.
    """

    rows: dict[str, Tensor]
    numbers: dict[str, Tensor]
    batch_size: int

    @classmethod
    def from_corpus(
        cls, corpus: Corpus, domains: list[str], *, seq_len: int, tokens: int, batch_size: int
    ) -> Evaluator:
        """Held-out rows of each domain, at most ``tokens`` tokens of each, see :meth:`Corpus.eval_row_numbers`."""
        numbers = {domain: corpus.eval_row_numbers(domain, seq_len, tokens) for domain in domains}
        return cls(
            rows={
                domain: torch.from_numpy(corpus.read_rows(domain, found, seq_len, "eval"))
                for domain, found in numbers.items()
            },
            numbers={domain: torch.from_numpy(found) for domain, found in numbers.items()},
            batch_size=batch_size,
        )

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of each domain's rows."""
        return {domain: rows.numel() for domain, rows in self.rows.items()}

    def measure(
        self, model: nn.Module, autocast: AbstractContextManager[Any] | None = None, ranks: Ranks | None = None
    ) -> HeldOutLosses:
        """Losses of ``model``; a masked model is measured at its present expected size.

        With several ranks each takes its part of the rows, and every one gets all losses.

        The model's mode and masks are as before when this returns.
        """
        training = model.training
        model.eval()
        try:
            if isinstance(model, MaskedModel):
                with model.fixed_masks(model.deterministic_masks(expected_sizes(model))):
                    return self._measure(model, autocast, ranks)
            return self._measure(model, autocast, ranks)
        finally:
            model.train(training)

    def losses(
        self, model: nn.Module, autocast: AbstractContextManager[Any] | None = None, ranks: Ranks | None = None
    ) -> dict[str, float]:
        """The means of :meth:`measure`."""
        return self.measure(model, autocast, ranks).means()

    def choose(self, measured: HeldOutLosses, by: Evaluator) -> HeldOutLosses | None:
        """Losses on this evaluator's rows out of what another has ``measured``; None if it lacks one of the rows."""
        if not all(torch.isin(numbers, by.numbers[domain]).all() for domain, numbers in self.numbers.items()):
            return None
        return HeldOutLosses(
            {
                domain: measured.rows[domain][torch.searchsorted(by.numbers[domain], numbers)]
                for domain, numbers in self.numbers.items()
            }
        )

    def _measure(
        self, model: nn.Module, autocast: AbstractContextManager[Any] | None, ranks: Ranks | None
    ) -> HeldOutLosses:
        return HeldOutLosses(
            {
                domain: row_losses(model, rows, batch_size=self.batch_size, autocast=autocast, ranks=ranks)
                for domain, rows in self.rows.items()
            }
        )
