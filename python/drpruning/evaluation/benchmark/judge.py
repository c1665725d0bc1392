"""What models think of items: a strong one should answer them, a weak one should not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drpruning.evaluation.benchmark.items import Item
from drpruning.evaluation.losses import summed_nats
from drpruning.evaluation.windows import Windows

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Reader:
    """A model that reads choices.

    Args:
        name: What provenance calls it.
        model: A causal model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
    """

    name: str
    model: Any
    tokenizer: Any

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

    Args:
        strong: Must choose the right continuation, by log-likelihood per character (``acc_norm``).
        weak: Must not.
        max_bits: Most bits per byte that the strong model may need for the right continuation: beyond it the text is
            noise, or has nothing to do with its first half. None: any.
        min_margin: The strong model must prefer the right continuation to every other by so many bits per character.
    """

    strong: Reader | None = None
    weak: Reader | None = None
    max_bits: float | None = None
    min_margin: float = 0.0

    def settings(self) -> dict[str, Any]:
        """All that decides, JSON-able."""
        return {
            "strong": None if self.strong is None else self.strong.name,
            "weak": None if self.weak is None else self.weak.name,
            "max_bits": self.max_bits,
            "min_margin": self.min_margin,
        }

    def judge(self, items: Sequence[Item]) -> list[tuple[str | None, dict[str, Any]]]:
        """For each item why it is dropped, or None; and what the models thought of it."""
        reasons: list[str | None] = [None] * len(items)
        notes: list[dict[str, Any]] = [{} for _ in items]
        if not items:
            return []
        if self.strong is not None:
            for at, (item, nats) in enumerate(zip(items, self.strong.nats(items), strict=True)):
                bits, margin = _bits(item, nats), _margin(item, nats)
                notes[at]["strong"] = {"bits_per_byte": round(bits, 4), "margin": round(margin, 4)}
                if margin <= self.min_margin:
                    reasons[at] = "the strong model does not answer it"
                elif self.max_bits is not None and bits > self.max_bits:
                    reasons[at] = "the strong model is surprised by the right choice"
        left = [at for at, reason in enumerate(reasons) if reason is None]
        if self.weak is not None and left:
            for at, nats in zip(left, self.weak.nats([items[at] for at in left]), strict=True):
                margin = _margin(items[at], nats)
                notes[at]["weak"] = {"margin": round(margin, 4)}
                if margin > 0:
                    reasons[at] = "the weak model answers it"
        return list(zip(reasons, notes, strict=True))


def _margin(item: Item, nats: NDArray[np.float64]) -> float:
    """Bits per character by which the right choice is likelier than the likeliest wrong one."""
    bits = nats / math.log(2) / [len(choice) for choice in item.choices]
    return float(np.delete(bits, item.label).min() - bits[item.label])


def _bits(item: Item, nats: NDArray[np.float64]) -> float:
    size = len(item.choices[item.label].encode("utf-8", errors="surrogatepass"))
    return float(nats[item.label] / math.log(2) / size)
