"""Inputs of ``ancestors.json``, by rule, for make_ancestors.py and tests/conformance alike.

Random numbers are those of the minimal standard generator, ``x <- 48271 x mod (2^31 - 1)``, which any language
computes exactly. No package is needed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

MODULUS, MULTIPLIER = 2**31 - 1, 48271
SETTLING = 20  # numbers dropped, so that small seeds do not give small numbers

RECIPE = [0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15]
LANGUAGES = [0.277, 0.185, 0.130, 0.104, 0.091, 0.089, 0.067, 0.057]

TRAJECTORIES, STORED, EVALUATIONS = 200, 40, 30
EVERY, STEPS = 50, 1500  # an evaluation every 50 of 1,500 steps: the ratio moves from the sixth on

BLOCKS, HIDDEN, HEADS, INTERMEDIATE, VOCABULARY = 3, 16, 4, 20, 24
KEPT = {"layer": 2, "head": 3, "intermediate": 14, "hidden": 12}
SHAPES = {"layer": (BLOCKS,), "head": (BLOCKS, HEADS), "intermediate": (BLOCKS, INTERMEDIATE), "hidden": (HIDDEN,)}
KV_HEADS, KEPT_KV_HEADS = 2, 1  # of the tiny model with grouped heads: a Qwen2, with biases
WARMUP_STEPS = 640
MULTIPLIERS = {"layer": (1.5, 20.0), "head": (-0.75, 12.5), "intermediate": (4.0, 0.5), "hidden": (-2.25, 3.0)}
TOKENS = [[3, 17, 0, 9, 22, 5, 11, 3], [23, 1, 1, 14, 8, 19, 2, 6]]


def uniforms(seed: int, count: int) -> list[float]:
    """Numbers in (0, 1)."""
    state, found = seed, []
    for _ in range(SETTLING):
        state = state * MULTIPLIER % MODULUS
    for _ in range(count):
        state = state * MULTIPLIER % MODULUS
        found.append(state / MODULUS)
    return found


@dataclass(frozen=True)
class Trajectory:
    """What a run of dynamic weights starts from, and the losses of its evaluations, ``[30][n]``."""

    proportion: list[float]
    reference_loss: list[float]
    rho: float
    losses: list[list[float]]


def trajectory(index: int) -> Trajectory:
    """Generate trajectory ``index`` (0 to 199): ratios of recipes or random; end losses above and below references."""
    if index % 5 < 2:
        proportion = [RECIPE, LANGUAGES][index % 5]
    else:
        shares = [0.02 + u for u in uniforms(1000 + index, [0, 0, 2, 3, 12][index % 5])]
        proportion = [share / sum(shares) for share in shares]
    n = len(proportion)
    reference_loss = [round(1 + 1.5 * u, 4) for u in uniforms(2000 + index, n)]
    rate = [0.2 + u for u in uniforms(3000 + index, n)]
    fall = [0.2 + u for u in uniforms(4000 + index, n)]
    # Above all references; on both sides; all below at the end, where the public code scales the references
    lift = [(0.1, 0.4), (-0.1, 0.3), (-0.3, 0.2), (0.02, 0.03)][index % 4]
    end = [lift[0] + lift[1] * u for u in uniforms(5000 + index, n)]
    noise = uniforms(6000 + index, n * EVALUATIONS)
    losses = [
        [
            round(reference_loss[d] + end[d] + fall[d] * (k + 1) ** -rate[d] + 0.02 * (noise[k * n + d] - 0.5), 4)
            - (0.5 if index % 4 == 2 and k > EVALUATIONS // 2 else 0)
            for d in range(n)
        ]
        for k in range(EVALUATIONS)
    ]
    return Trajectory(proportion, reference_loss, 0.05 if index % 7 == 6 else 0.1, losses)


def steady() -> Trajectory:
    """Losses that never change, the largest domain 0.5 nats above its reference and the others 0.1: 80 evaluations."""
    n = len(RECIPE)
    return Trajectory(RECIPE, [2.0] * n, 0.1, [[2.5] + [2.1] * (n - 1)] * 80)


@dataclass(frozen=True)
class Curve:
    """Points of one domain: tokens, expected sparsities (empty outside of pruning), losses; and where it ends."""

    tokens: list[float]
    sparsity: list[float]
    losses: list[float]
    final: list[float]
    true_loss: float


def curve(index: int) -> Curve:
    """Generate curve ``index``: 0 to 5 at constant size, 6, 7 while pruning, 7 to 9 short; even without noise."""
    points = [20, 40, 60, 24, 32, 48, 40, 8, 5, 4][index]
    a, b, c, d = uniforms(7000 + index, 4)
    E, beta, gamma = 1.0 + 1.2 * a, 0.15 + 0.5 * b, 0.1 + 0.3 * c
    pruning = index in (6, 7)
    step = 2**20 * (1 + round(7 * d))
    tokens = [float(step * (k + 1)) for k in range(points)]
    sparsity = [round(0.05 + 0.55 * min(1, (k + 1) / (0.4 * points)), 4) for k in range(points)] if pruning else []
    final = [4 * tokens[-1]] + ([0.6] if pruning else [])

    def law(T: float, s: float) -> float:
        return E + (2.5 - 0.8 * a) * (T / tokens[0]) ** -beta * s**gamma

    noise = uniforms(8000 + index, points)
    scale = 0.01 if index % 2 else 0.0
    losses = [
        round(law(T, sparsity[k] if pruning else 1.0) + scale * (noise[k] - 0.5), 6) for k, T in enumerate(tokens)
    ]
    return Curve(tokens, sparsity, losses, final, law(final[0], final[1] if pruning else 1.0))


def reference_case() -> tuple[list[list[float]], list[list[float]]]:
    """Losses of three domains and what a law would predict at each evaluation: falling, rising, above and below."""
    losses = [[round(2.5 + 1.0 / k, 4), round(1.2 + 0.3 / k, 4), round(3.1 - 0.01 * k, 4)] for k in range(1, 31)]
    drawn = uniforms(12_345, 90)
    predictions = [
        [round(2.2 + 0.5 * drawn[k], 4), round(0.9 + 0.4 * drawn[30 + k], 4), round(2.9 + 0.3 * drawn[60 + k], 4)]
        for k in range(30)
    ]
    return losses, predictions


def log_alpha(kind: str) -> list[float]:
    """Locations of the tiny model's gates, flat: distinct, within the clamp [log 1e-2, log 1e2], four decimals."""
    seed = 9000 + len(kind)
    values = [round(-4.5 + 9 * u, 4) for u in uniforms(seed, math.prod(SHAPES[kind]))]
    assert all(a != b for a, b in pairwise(sorted(values)))
    return values


def noise(kind: str, *, binary: bool = False) -> list[float]:
    """Noise of the tiny model's gates; with ``binary`` every mask is 1 where log alpha is positive and else 0."""
    if binary:
        return [0.999 if value > 0 else 0.001 for value in log_alpha(kind)]
    return [round(0.02 + 0.96 * u, 4) for u in uniforms(9500 + len(kind), math.prod(SHAPES[kind]))]


def weight_shapes(*, grouped: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the parameter shapes of a tiny Llama, or Qwen2 if ``grouped``, by their names in transformers."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    shared = HIDDEN // HEADS * (KV_HEADS if grouped else HEADS)
    for block in range(BLOCKS):
        at = f"model.layers.{block}"
        for name, width in (("q", HIDDEN), ("k", shared), ("v", shared), ("o", HIDDEN)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (width, HIDDEN)
            if grouped and name != "o":
                shapes[f"{at}.self_attn.{name}_proj.bias"] = (width,)
        shapes |= {f"{at}.mlp.{name}_proj.weight": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def weights(name: str, *, grouped: bool = False) -> list[float]:
    """Generate the numbers of one parameter, flat: matrices in [-0.5, 0.5], gains and biases in [0.7, 1.3]."""
    shapes = weight_shapes(grouped=grouped)
    center, width = (1.0, 0.6) if len(shapes[name]) == 1 else (0.0, 1.0)
    drawn = uniforms(20_000 + 1000 * grouped + list(shapes).index(name), math.prod(shapes[name]))
    return [center + width * (u - 0.5) for u in drawn]
