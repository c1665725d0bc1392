"""Wrong choices by a local model: it continues a first half that ends like another passage."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from drpruning.evaluation.benchmark.generator import GeneratedChoices, TokenUsage, WrongChoice, draw_seed, shuffled
from drpruning.evaluation.benchmark.neighbors import Neighbors
from drpruning.evaluation.benchmark.passages import Passage, cut

SPARE = 1.5  # tokens to generate, relative to the right continuation: a model may use shorter tokens


@dataclass(frozen=True)
class Local:
    """A causal model of transformers writes the wrong choices.

    Args:
        name: Name of the model.
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        neighbors: Similar passages by domain.
        seed: Seed of the random choices.
        temperature: Temperature of the sampling.
        top_p: Cumulative probability of the tokens that are sampled from (nucleus sampling).
        num_neighbors: Number of similar passages from which an ending is drawn.
    """

    kind: ClassVar[str] = "local"
    name: str
    model: Any
    tokenizer: Any
    neighbors: Mapping[str, Neighbors]
    seed: int
    temperature: float = 0.8
    top_p: float = 0.95
    num_neighbors: int = 20
    num_parallel: int = 1

    def settings(self) -> dict[str, Any]:
        """See :class:`~drpruning.evaluation.benchmark.generator.Generator`."""
        return {
            "kind": self.kind,
            "model": self.name,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "num_neighbors": self.num_neighbors,
        }

    def order(self, passages: Sequence[Passage]) -> list[Passage]:
        """See :class:`~drpruning.evaluation.benchmark.generator.Generator`."""
        return shuffled(passages, self.seed)

    def expected(self, passage: Passage, count: int) -> TokenUsage:
        """Return no usage: a local model costs nothing."""
        return TokenUsage()

    def make(self, passage: Passage, count: int) -> GeneratedChoices:
        """See :class:`~drpruning.evaluation.benchmark.generator.Generator`."""
        draw = random.Random(draw_seed(self.seed, passage.name))  # noqa: S311 - not for secrets
        others = self.neighbors[passage.domain].ranked(passage)[: self.num_neighbors]
        if len(others) < count:
            return GeneratedChoices(dropped="too few similar passages")
        wrong = []
        for at, other in enumerate(draw.sample(others, count)):
            first = corrupted(passage.first, other.first)
            text = self._continued(first, passage.second, draw_seed(self.seed, passage.name, str(at)))
            source = {"corrupted": first, "ending_of": other.name, "model": self.name}
            wrong.append(WrongChoice(cut(text, len(passage.second.strip())), source))
        return GeneratedChoices(wrong)

    @torch.no_grad()
    def _continued(self, first: str, second: str, seed: int) -> str:
        ids = self.tokenizer(first, return_tensors="pt", add_special_tokens=False)["input_ids"]
        length = len(self.tokenizer(second, add_special_tokens=False)["input_ids"])
        torch.manual_seed(seed)
        device = next(self.model.parameters()).device
        whole = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=torch.ones_like(ids).to(device),
            do_sample=True,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0,
            max_new_tokens=max(8, round(SPARE * length)),
            pad_token_id=self.tokenizer.eos_token_id,
        )
        text: str = self.tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        return text.strip()


def corrupted(first: str, other: str) -> str:
    """Replace the second part of a first half by another's: it begins like the passage and leads to another topic.

    >>> corrupted("It rained all night. The river rose.", "We packed the car. The road was dry.")
    'It rained all night. was dry.'
    """
    middle = first.rfind(" ", 0, len(first) * 2 // 3)
    ending = other[len(other) * 2 // 3 :]
    begin = ending.find(" ")
    return first[: max(middle, 0)] + (ending[begin:] if begin >= 0 else ending)
