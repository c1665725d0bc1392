"""Wrong choices without a model: the true continuations of similar passages, dealt out so that guessing is chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from drpruning.evaluation.benchmark.generator import GeneratedChoices, TokenUsage, WrongChoice, draw_seed, shuffled
from drpruning.evaluation.benchmark.neighbors import Neighbors
from drpruning.evaluation.benchmark.passages import Passage


@dataclass(frozen=True)
class Offline:
    """Passages in groups of similar ones; each gets the continuations of the others of its group as wrong choices.

    So each continuation is the right choice once and a wrong one in every other item of its group. A model that does
    not look at the first half prefers the same continuation in all of them and is right exactly once: chance is chance,
    whatever the lengths, the layout or how likely a text is by itself. Items are made group by group.

    Args:
        neighbors: Similar passages by domain.
        choices: Of an item: passages of a group.
        seed: Of the draws.
        num_neighbors: How many of the most similar passages a group is drawn from; a smaller number is harder.
    """

    kind: ClassVar[str] = "offline"
    neighbors: Mapping[str, Neighbors]
    choices: int
    seed: int
    num_neighbors: int
    num_parallel: int = 1

    @cached_property
    def groups(self) -> dict[str, list[list[Passage]]]:
        """The groups of each domain."""
        return {
            domain: found.groups(self.choices, self.num_neighbors, self.seed)
            for domain, found in self.neighbors.items()
        }

    @cached_property
    def group_of(self) -> dict[str, list[Passage]]:
        """The group of each passage that has one, by the passage's name."""
        return {item.name: group for groups in self.groups.values() for group in groups for item in group}

    def settings(self) -> dict[str, Any]:
        """See :class:`~drpruning.evaluation.benchmark.generator.Generator`."""
        return {"kind": self.kind, "num_neighbors": self.num_neighbors}

    def order(self, passages: Sequence[Passage]) -> list[Passage]:
        """Group by group, then those without a group."""
        grouped = [item for group in self.groups[passages[0].domain] for item in group]
        alone = [item for item in passages if item.name not in self.group_of]
        return [*grouped, *shuffled(alone, self.seed)]

    def expected(self, passage: Passage, count: int) -> TokenUsage:
        """Return no usage: nothing is requested."""
        return TokenUsage()

    def make(self, passage: Passage, count: int) -> GeneratedChoices:
        """See :class:`~drpruning.evaluation.benchmark.generator.Generator`."""
        group = self.group_of.get(passage.name)
        if group is None:
            return GeneratedChoices(dropped="no group of similar passages is left for it")
        others = [item for item in group if item is not passage][:count]
        group_name = f"{draw_seed(self.seed, *sorted(item.name for item in group)):016x}"
        return GeneratedChoices(
            [WrongChoice(item.second, {"passage": item.name}) for item in others], notes={"group": group_name}
        )
