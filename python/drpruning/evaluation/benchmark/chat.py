"""Wrong choices by a chat model: it rates the link of two halves, corrupts the first, and continues the corruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from drpruning.errors import EndpointError
from drpruning.evaluation.benchmark.endpoint import CHARACTERS_PER_TOKEN, Endpoint
from drpruning.evaluation.benchmark.generator import GeneratedChoices, TokenUsage, WrongChoice, draw_seed, shuffled
from drpruning.evaluation.benchmark.passages import Passage, cut

PROMPT = """Here is a passage in two halves.

First half:
<<<
{first}
>>>

Second half:
<<<
{second}
>>>

1. How firmly does the second half follow from the first? Rate it from 1 (unrelated) to 5 (it follows causally).
2. Write {count} corrupted versions of the first half: same style and length, but one fact or step in each is changed,
   so that the second half no longer follows.
3. For each corrupted version write its natural continuation, in the style and format of the second half and about
   {length} characters long. It must not fit the original first half.

Answer with JSON only: {{"linked": 4, "wrong": [{{"first": "...", "second": "..."}}]}}, with {count} entries in "wrong".
"""
PARSE_TRIES = 3  # answers that cannot be parsed, after which the passage counts as failed


@dataclass(frozen=True)
class Chat:
    """A chat endpoint writes the wrong choices.

    Args:
        endpoint: The chat endpoint.
        seed: Sent with each request; an endpoint that supports it answers the same again.
        temperature: Temperature of the sampling.
        min_linked: Passages whose halves have a lower rating (1 to 5) are dropped.
        num_parallel: Number of concurrent requests.
    """

    kind: ClassVar[str] = "openai"
    endpoint: Endpoint
    seed: int
    temperature: float = 0.8
    min_linked: int = 3
    num_parallel: int = 4

    def settings(self) -> dict[str, Any]:
        """See :class:`~drpruning.evaluation.benchmark.generator.Generator`."""
        return {
            "kind": self.kind,
            "url": self.endpoint.url,
            "model": self.endpoint.model,
            "temperature": self.temperature,
            "min_linked": self.min_linked,
        }

    def order(self, passages: Sequence[Passage]) -> list[Passage]:
        """See :class:`~drpruning.evaluation.benchmark.generator.Generator`."""
        return shuffled(passages, self.seed)

    def expected(self, passage: Passage, count: int) -> TokenUsage:
        """Return the cost of one request with an answer of the requested length."""
        prompt_chars = len(prompt(passage, count))
        answer_chars = 40 + count * (40 + len(passage.first) + len(passage.second))
        return TokenUsage(1, round(prompt_chars / CHARACTERS_PER_TOKEN), round(answer_chars / CHARACTERS_PER_TOKEN))

    def make(self, passage: Passage, count: int) -> GeneratedChoices:
        """See :class:`~drpruning.evaluation.benchmark.generator.Generator`.

        Raises:
            ConfigError: The endpoint refuses requests.
        """
        spent, problem = TokenUsage(), ""
        for attempt in range(PARSE_TRIES):
            seed = draw_seed(self.seed, passage.name, str(attempt))
            try:
                answer = self.endpoint.complete(prompt(passage, count), temperature=self.temperature, seed=seed)
            except EndpointError as error:
                return GeneratedChoices(dropped=error.message, failed=True, spent=spent)
            spent += answer.spent
            try:
                linked, pairs = read_answer(answer.text, count)
            except ValueError as error:
                problem = str(error)
                continue
            if linked < self.min_linked:
                return GeneratedChoices(dropped="the halves are not linked", notes={"linked": linked}, spent=spent)
            length = len(passage.second.strip())
            wrong = [
                WrongChoice(cut(second.strip(), length), {"corrupted": first, "model": self.endpoint.model})
                for first, second in pairs
            ]
            return GeneratedChoices(wrong, notes={"linked": linked}, spent=spent)
        return GeneratedChoices(dropped=f"the answer cannot be parsed: {problem}", failed=True, spent=spent)


def prompt(passage: Passage, count: int) -> str:
    """Return the prompt for a passage."""
    second = passage.second.strip()
    return PROMPT.format(first=passage.first.strip(), second=second, count=count, length=len(second))


def read_answer(text: str, count: int) -> tuple[int, list[tuple[str, str]]]:
    """Parse an answer; return the rating, and each corrupted first half with its continuation.

    Raises:
        ValueError: The answer is not the requested JSON; the message has the reason.
    """
    begin, end = text.find("{"), text.rfind("}")
    try:
        body = json.loads(text[begin : end + 1])
        linked = int(body["linked"])
        pairs = [(item["first"], item["second"]) for item in body["wrong"]]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not the requested JSON ({type(error).__name__})") from error
    if not all(isinstance(part, str) and part.strip() for pair in pairs for part in pair):
        raise ValueError("a corrupted half or its continuation is empty or not text")
    if any("\ud800" <= character <= "\udfff" for pair in pairs for part in pair for character in part):
        raise ValueError("unpaired surrogate")
    if len(pairs) < count:
        raise ValueError(f"{len(pairs)} wrong choices, expected {count}")
    return linked, pairs[:count]
