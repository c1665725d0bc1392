"""The protocol of generators of wrong choices, and its results."""

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
        text: Text in the place of the second half; leading white space is ignored.
        source: Provenance, JSON-able.
    """

    text: str
    source: dict[str, Any]


@dataclass(frozen=True)
class TokenUsage:
    """Requests and tokens used at an endpoint."""

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
    """The result of a generator for one passage.

    Args:
        wrong: The wrong choices; fewer than requested if it failed.
        dropped: Why the passage cannot be an item, or None.
        failed: Whether the reason is a failure of the generator, and not the passage.
        notes: Additional provenance, JSON-able.
        spent: Requests and tokens used.
    """

    wrong: list[WrongChoice] = field(default_factory=list)
    dropped: str | None = None
    failed: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    spent: TokenUsage = TokenUsage()


class Generator(Protocol):
    """Generates wrong choices; where the generator can, the same passage and seed give the same choices."""

    @property
    def num_parallel(self) -> int:
        """Number of passages to process concurrently, in threads."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the choices, JSON-able; they must be equal when a build is resumed."""

    def order(self, passages: Sequence[Passage]) -> list[Passage]:
        """Return the passages of a domain in the order in which they are tried."""

    def expected(self, passage: Passage, count: int) -> TokenUsage:
        """Estimate the usage of :meth:`make`."""

    def make(self, passage: Passage, count: int) -> GeneratedChoices:
        """Generate wrong choices for one passage."""


def shuffled(passages: Sequence[Passage], seed: int) -> list[Passage]:
    """Return the passages in an order that depends only on their names and the seed."""
    return sorted(passages, key=lambda item: draw_seed(seed, item.name, "passages"))


def draw_seed(seed: int, *names: str) -> int:
    """Return a 63-bit seed from a seed and names; equal inputs give equal seeds on every machine."""
    digest = hashlib.blake2b("/".join((str(seed), *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
