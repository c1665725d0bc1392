"""Filter items by models: a strong model should answer them, a weak model should not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.evaluation.benchmark.items import Item
from drpruning.evaluation.document_losses import summed_nats
from drpruning.evaluation.windows import Windows

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class ChoiceNats:
    """Negative log-likelihood of each choice of an item in nats, float64 ``[choices]``.

    Args:
        after: Of the choices after the context.
        alone: Of the choices without the context.
    """

    after: NDArray[np.float64]
    alone: NDArray[np.float64]


@dataclass(frozen=True)
class ScoringModel:
    """A model that scores choices.

    Args:
        name: Name in the provenance.
        model: A causal model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
    """

    name: str
    model: Any
    tokenizer: Any

    def read(self, items: Sequence[Item]) -> list[ChoiceNats]:
        """Score the choices of each item after the context, and alone."""
        alone = [replace(item, context="") for item in items]
        return [ChoiceNats(*nats) for nats in zip(self.nats(items), self.nats(alone), strict=True)]

    def nats(self, items: Sequence[Item]) -> list[NDArray[np.float64]]:
        """Return the negative log-likelihood of each choice after its context, in nats: float64 ``[choices]`` per item.

        Context and choice are tokenized together, and the tokens after the context's belong to the choice, as in
        lm-evaluation-harness.
        """
        first = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if first is None else first
        tokens: list[NDArray[np.int64]] = []
        table: list[tuple[int, int, int]] = []
        at = 0
        for item in items:
            contexts = self._ids([item.context])[0]
            for whole in self._ids([item.context + choice for choice in item.choices]):
                ids = [start, *whole]
                skip = min(len(contexts), len(whole) - 1)
                table.append((at, len(whole), skip))
                tokens.append(np.array(ids, dtype=np.int64))
                at += len(ids)
        windows = Windows(
            tokens=np.concatenate(tokens),
            owner=np.repeat(np.arange(len(tokens)), list(map(len, tokens))),
            table=np.array(table, dtype=np.int64),
        )
        nats = summed_nats(self.model, windows, len(tokens), BATCH_TOKENS, None)
        return np.split(nats, np.cumsum([len(item.choices) for item in items])[:-1])

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return encoded


@dataclass(frozen=True)
class Judge:
    """Decide which items to keep.

    A model answers an item correctly if the context raises the log-likelihood of the right choice more than that of any
    other (``acc_mutual_info``). By likelihood alone (``acc``, ``acc_norm``) most items would be kept because the right
    choice is likely by itself, and a model that ignores the context would answer them.

    Args:
        strong: Model that must choose the right choice.
        weak: Model that must not.
        max_bits_per_byte: Largest loss of the strong model on the right choice, in bits per byte: text with a larger
            loss is noise, or unrelated to its context. None: no limit.
        min_margin: Bits by which the context must raise the strong model's log-likelihood of the right choice more than
            that of every other choice.
    """

    strong: ScoringModel | None = None
    weak: ScoringModel | None = None
    max_bits_per_byte: float | None = None
    min_margin: float = 0.0

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the decision, JSON-able."""
        return {
            "strong": None if self.strong is None else self.strong.name,
            "weak": None if self.weak is None else self.weak.name,
            "max_bits_per_byte": self.max_bits_per_byte,
            "min_margin": self.min_margin,
        }

    def judge(self, items: Sequence[Item]) -> list[tuple[str | None, dict[str, Any]]]:
        """Return, for each item, why it is dropped (None: it is kept), and the models' scores."""
        reasons: list[str | None] = [None] * len(items)
        notes: list[dict[str, Any]] = [{} for _ in items]
        if not items:
            return []
        if self.strong is not None:
            for at, (item, reading) in enumerate(zip(items, self.strong.read(items), strict=True)):
                bits, margin = _bits_per_byte(item, reading), _margin(item, reading)
                notes[at]["strong"] = {"bits_per_byte": round(bits, 4), "margin": round(margin, 4)}
                if margin <= self.min_margin:
                    reasons[at] = "the strong model answers it wrongly"
                elif self.max_bits_per_byte is not None and bits > self.max_bits_per_byte:
                    reasons[at] = "the strong model has a high loss on the right choice"
        left = [at for at, reason in enumerate(reasons) if reason is None]
        if self.weak is not None and left:
            for at, reading in zip(left, self.weak.read([items[at] for at in left]), strict=True):
                margin = _margin(items[at], reading)
                notes[at]["weak"] = {"margin": round(margin, 4)}
                if margin > 0:
                    reasons[at] = "the weak model answers it correctly"
        return list(zip(reasons, notes, strict=True))


def _margin(item: Item, reading: ChoiceNats) -> float:
    """Return by how many bits the context raises the right choice more than the best other choice."""
    gain = (reading.alone - reading.after) / math.log(2)
    return float(gain[item.label] - np.delete(gain, item.label).max())


def _bits_per_byte(item: Item, reading: ChoiceNats) -> float:
    size = len(item.choices[item.label].encode("utf-8", errors="surrogatepass"))
    return float(reading.after[item.label] / math.log(2) / size)
