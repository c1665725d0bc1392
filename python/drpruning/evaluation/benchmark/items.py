"""Items of the benchmark: a context, choices of about equal length, which one is right, and where all came from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from drpruning.evaluation.benchmark.generator import GeneratedChoices, draw_seed
from drpruning.evaluation.benchmark.neighbors import alike
from drpruning.evaluation.benchmark.passages import Passage, cut


@dataclass(frozen=True)
class Item:
    """One question.

    Args:
        name: Name of its passage.
        context: The first half.
        choices: Continuations, each with its leading white space.
        label: Index of the right choice.
        provenance: Sources of the passage and of each wrong choice, and the models' scores.
    """

    name: str
    context: str
    choices: tuple[str, ...]
    label: int
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the item as JSON-able data: a line of the JSONL file."""
        return {
            "id": self.name,
            "context": self.context,
            "choices": list(self.choices),
            "label": self.label,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Item:
        """Return the item of a line."""
        return cls(body["id"], body["context"], tuple(body["choices"]), body["label"], body["provenance"])


def make_item(passage: Passage, made: GeneratedChoices, seed: int) -> Item | str:
    """Return an item, or the reason why there is none.

    All choices begin with the white space of the right one and are cut to the length of the shortest, so that neither
    length nor layout reveals the answer; the index of the right choice is random.
    """
    texts = [passage.second.strip(), *(wrong.text.strip() for wrong in made.wrong)]
    for at, text in enumerate(texts):
        if any(alike(text, other) for other in texts[:at]):
            return "two choices are nearly the same"
    shortest = min(map(len, texts))
    if shortest < len(texts[0]) / 2:
        return "a wrong choice is less than half as long"
    choices = [passage.lead + cut(text, shortest) for text in texts]
    order = list(range(len(choices)))
    random.Random(draw_seed(seed, passage.name, "order")).shuffle(order)  # noqa: S311 - not for secrets
    sources = [{"passage": passage.name, "right": True}, *(wrong.source for wrong in made.wrong)]
    return Item(
        name=passage.name,
        context=passage.first,
        choices=tuple(choices[at] for at in order),
        label=order.index(0),
        provenance={
            "domain": passage.domain,
            "document": passage.document,
            "start": passage.start,
            "choices": [sources[at] for at in order],
            **made.notes,
        },
    )
