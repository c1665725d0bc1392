"""What makes wrong choices of a passage: the protocol, and what it gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from drpruning.evaluation.benchmark.passages import Passage


@dataclass(frozen=True)
class WrongChoice:
    """A wrong choice.

    Args:
        text: What stands where the second half would; white space at its beginning does not count.
        source: Where it came from, JSON-able.
    """

    text: str
    source: dict[str, Any]


@dataclass(frozen=True)
class TokenUsage:
    """What wrong choices cost at an endpoint."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True)
class GeneratedChoices:
    """What a generator made of a passage.

    Args:
        wrong: The wrong choices; fewer than wanted where it failed.
        dropped: Why the passage cannot be an item, or None.
        failed: Whether that is because the generator did not work, rather than because the passage is not good.
        notes: More about the item, JSON-able.
        spent: What it cost.
    """

    wrong: list[WrongChoice] = field(default_factory=list)
    dropped: str | None = None
    failed: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    spent: TokenUsage = TokenUsage()


class Generator(Protocol):
    """Makes wrong choices; the same passage and seed give the same ones, as far as that is in its power."""

    @property
    def num_parallel(self) -> int:
        """How many passages to work on at the same time, in threads."""

    def settings(self) -> dict[str, Any]:
        """All that decides what it makes, JSON-able; a build that is resumed must agree on it."""

    def order(self, passages: Sequence[Passage]) -> list[Passage]:
        """The passages of a domain in the order in which they are to be tried."""

    def expected(self, passage: Passage, count: int) -> TokenUsage:
        """What :meth:`make` is expected to cost."""

    def make(self, passage: Passage, count: int) -> GeneratedChoices:
        """Wrong choices for one passage."""


def shuffled(passages: Sequence[Passage], seed: int) -> list[Passage]:
    """The passages in an order that depends on their names and the seed alone."""
    return sorted(passages, key=lambda item: draw_seed(seed, item.name, "passages"))


def draw_seed(seed: int, *names: str) -> int:
    """A 63-bit seed from a seed and names; equal inputs give equal seeds everywhere."""
    digest = hashlib.blake2b("/".join((str(seed), *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
