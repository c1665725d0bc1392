"""What models think of items: a strong one should answer them, a weak one should not."""

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
    """What a model thinks of an item: negative log-likelihood of each choice in nats, float64 ``[choices]``.

    Args:
        after: After the context.
        alone: Without it.
    """

    after: NDArray[np.float64]
    alone: NDArray[np.float64]


@dataclass(frozen=True)
class ScoringModel:
    """A model that reads choices.

    Args:
        name: What provenance calls it.
        model: A causal model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
    """

    name: str
    model: Any
    tokenizer: Any

    def read(self, items: Sequence[Item]) -> list[ChoiceNats]:
        """Each item, its choices after the context and alone."""
        alone = [replace(item, context="") for item in items]
        return [ChoiceNats(*nats) for nats in zip(self.nats(items), self.nats(alone), strict=True)]

    def nats(self, items: Sequence[Item]) -> list[NDArray[np.float64]]:
        """Negative log-likelihood of each choice after its context, in nats: float64 ``[choices]`` for each item.

        Context and choice are split into tokens together, and those beyond the context's own belong to the choice, as
        in lm-evaluation-harness.
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
    """Which items to keep.

    A model answers an item right if its first half tells more of the right continuation than of any other
    (``acc_mutual_info``). By likelihood alone (``acc``, ``acc_norm``) most items would be kept because the right
    continuation is likely by itself, and a model that ignores the first half would do well on them.

    Args:
        strong: Must choose the right continuation.
        weak: Must not.
        max_bits_per_byte: Most bits per byte that the strong model may need for the right continuation: beyond it the text is
            noise, or has nothing to do with its first half. None: any.
        min_margin: To the strong model the first half must tell more of the right continuation than of every other by
            more than so many bits.
    """

    strong: ScoringModel | None = None
    weak: ScoringModel | None = None
    max_bits_per_byte: float | None = None
    min_margin: float = 0.0

    def settings(self) -> dict[str, Any]:
        """All that decides, JSON-able."""
        return {
            "strong": None if self.strong is None else self.strong.name,
            "weak": None if self.weak is None else self.weak.name,
            "max_bits_per_byte": self.max_bits_per_byte,
            "min_margin": self.min_margin,
        }

    def judge(self, items: Sequence[Item]) -> list[tuple[str | None, dict[str, Any]]]:
        """For each item why it is dropped, or None; and what the models thought of it."""
        reasons: list[str | None] = [None] * len(items)
        notes: list[dict[str, Any]] = [{} for _ in items]
        if not items:
            return []
        if self.strong is not None:
            for at, (item, reading) in enumerate(zip(items, self.strong.read(items), strict=True)):
                bits, margin = _bits_per_byte(item, reading), _margin(item, reading)
                notes[at]["strong"] = {"bits_per_byte": round(bits, 4), "margin": round(margin, 4)}
                if margin <= self.min_margin:
                    reasons[at] = "the strong model does not answer it"
                elif self.max_bits_per_byte is not None and bits > self.max_bits_per_byte:
                    reasons[at] = "the strong model is surprised by the right choice"
        left = [at for at, reason in enumerate(reasons) if reason is None]
        if self.weak is not None and left:
            for at, reading in zip(left, self.weak.read([items[at] for at in left]), strict=True):
                margin = _margin(items[at], reading)
                notes[at]["weak"] = {"margin": round(margin, 4)}
                if margin > 0:
                    reasons[at] = "the weak model answers it"
        return list(zip(reasons, notes, strict=True))


def _margin(item: Item, reading: ChoiceNats) -> float:
    """Bits by which the first half tells more of the right choice than of the next one."""
    told = (reading.alone - reading.after) / math.log(2)
    return float(told[item.label] - np.delete(told, item.label).max())


def _bits_per_byte(item: Item, reading: ChoiceNats) -> float:
    size = len(item.choices[item.label].encode("utf-8", errors="surrogatepass"))
    return float(reading.after[item.label] / math.log(2) / size)
