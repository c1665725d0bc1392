"""Losses of three domains as strategies observe them."""

from collections.abc import Mapping
from typing import Any

from drpruning.mixture import Observation, State, Strategy, Update

DOMAINS = ["web", "code", "books"]
RATIO = {"web": 0.7, "code": 0.2, "books": 0.1}
FINAL = 100_000


def observe(losses: Mapping[str, float], tokens: int = 50_000, **more: Any) -> Observation:
    facts = {"domain_tokens": dict.fromkeys(DOMAINS, 50_000), "consumed": dict.fromkeys(DOMAINS, tokens // 3)}
    more = {"step": tokens // 100, "tokens": tokens, "params": 1e6, "final_tokens": FINAL, **facts, **more}
    return Observation(losses=losses, **more)


def losses(*values: float) -> dict[str, float]:
    return dict(zip(DOMAINS, values, strict=True))


def run(strategy: Strategy, state: State, table: list[Observation]) -> tuple[State, list[Update]]:
    updates = []
    for observation in table:
        state, update = strategy.update(state, observation)
        updates.append(update)
    return state, updates


def curve_table(points: int = 20) -> list[Observation]:
    """Three domains on known curves; the second falls most slowly towards its end."""
    tokens = [FINAL * (k + 1) // points for k in range(points)]
    rows = [losses(2 + 9 * t**-0.4, 1 + 3 * t**-0.15, 3 + 9 * t**-0.5) for t in tokens]
    return [observe(row, t, training_losses=row) for row, t in zip(rows, tokens, strict=True)]
