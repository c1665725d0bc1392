"""Strategies and static mixtures in a simulated training whose losses follow real curves.

    git clone https://github.com/yegcjs/mixinglaws
    python -m benches.mixture_world --mixinglaws mixinglaws --out benches/mixture_world.json

The law of mixtures is fitted to the public curves of Data Mixing Laws (Ye et al. 2024): 42 runs of 70M parameters on
mixtures of RedPajama's seven domains, at 10 or 11 points of each run. It gives the loss of each domain for any amounts
of tokens, which makes a simulation: every strategy sees losses with noise, chooses weights, and the amounts grow.
Updates between evaluations and probes take place as in training; the text of probes is part of the run.

As in pruning, a run starts from a model that has lost most of what it learned: amounts of a tenth of a base run on the
reference ratio. The reference losses are those of the base. The run has three tenths of the base's tokens.

A static mixture reaches any final amounts, and in this law the order of tokens does not matter. So the best static
mixture for a trade of worst excess against weighted mean, found with the true law, is a bound for every strategy: the
figures show how near each comes without knowing the law, and without small runs.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.mixture.world import Progress, simulate

from drpruning.files import write_text
from drpruning.mixture import (
    ADO,
    ODM,
    Aioli,
    ChiSquareDRO,
    CVaR,
    DoReMi,
    DRPruning,
    GroupDRO,
    Observation,
    ShearedLoading,
    Strategy,
)
from drpruning.mixture.static import static_mixture
from drpruning.swarm import MixtureLaw, Swarm, best_mixture, fit_law

# The order of the shares in the public files is not documented; it follows from the base mixture of RedPajama, and the
# fitted usefulness of each domain agrees: each loss below falls most with its own domain.
DOMAINS = ("commoncrawl", "c4", "github", "arxiv", "books", "stackexchange", "wikipedia")
TARGETS = ("Pile-CC", "OpenWebText2", "Github", "ArXiv", "Books3", "StackExchange", "Wikipedia_en")
RATIO = (0.668, 0.168, 0.047, 0.043, 0.043, 0.016, 0.015)
BASE_STEPS = 30_000
START, RUN = 0.1, 0.3
EVALUATIONS, STEPS, TOKENS = 30, 3000, 10**9
NOISE, STEP_NOISE = 0.01, 0.1
"""Standard deviation of a held-out loss, and of the training loss of a domain in a step, nats per token."""
SEEDS = 5
Vector = NDArray[np.float64]

STRATEGIES: dict[str, Strategy] = {
    "sheared": ShearedLoading(),
    "group_dro": GroupDRO(),
    "cvar": CVaR(),
    "chi_square": ChiSquareDRO(),
    "drpruning": DRPruning(),
    "drpruning, predictions replace": DRPruning(predictions="replace"),
    "drpruning, rho 0.02": DRPruning(rho=0.02),
    "drpruning, noise 0": DRPruning(noise=0.0),
    "ado": ADO(),
    "doremi": DoReMi(),
    "odm": ODM(),
    "odm, published": ODM.published(),
    "aioli": Aioli(),
    "aioli, eta 10": Aioli(eta=10.0),
}
WITHOUT_NOISE: dict[str, Strategy] = {
    "aioli, no noise": Aioli(),
    "aioli, eta 10, no noise": Aioli(eta=10.0),
    "aioli, eta 100, no noise": Aioli(eta=100.0),
}
"""With the same rows at each evaluation, the noise of a real loss is largely the same at both ends of a probe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixinglaws", type=Path, required=True, help="a clone of yegcjs/mixinglaws")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args()
    curves = read_curves(options.mixinglaws / "data" / "RedPajama" / "70M.txt")
    print(json.dumps({"held_out_error": held_out_error(curves)}))
    world = World(fit_law(curves.swarm, resamples=0, folds=0).law)

    rows: list[dict[str, Any]] = []

    def add(kind: str, name: str, results: Sequence[Vector]) -> None:
        excess = np.stack(results)
        row = {
            "kind": kind,
            "name": name,
            "worst": round(float(excess.max(axis=1).mean()), 4),
            "mean": round(float(excess.mean()), 4),
            "weighted": round(float((excess @ world.ratio).mean()), 4),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)

    for name, mixture in static_mixtures(world).items():
        add("static", name, [world.excess(world.start + RUN * mixture)])
    for name, strategy in STRATEGIES.items():
        add("strategy", name, [world.run(strategy, seed) for seed in range(SEEDS)])
    for name, strategy in WITHOUT_NOISE.items():
        add("strategy", name, [world.run(strategy, 0, noise=0.0)])
    if options.out:
        found = {"held_out_error": held_out_error(curves), "rows": rows}
        write_text(options.out, json.dumps(found, indent=1) + "\n")


class Curves:
    """Losses of all runs at all points, and which run each row is of."""

    def __init__(self, swarm: Swarm, run: NDArray[np.intp]) -> None:
        self.swarm, self.run = swarm, run


def read_curves(path: Path) -> Curves:
    """Read every point up to :data:`BASE_STEPS` steps: lines of model path (shares, then step), data path and loss."""
    losses: dict[tuple[tuple[float, ...], int], dict[str, float]] = {}
    for line in path.read_text().splitlines():
        model, text, loss = line.split("\t")
        run, at = model.split("/")[-2:]
        if at.isdigit() and 1000 <= int(at) <= BASE_STEPS:
            mixture = tuple(float(share) for share in run.split("_")[-1].split("-")[1:])
            losses.setdefault((mixture, int(at)), {})[text.rsplit(".", 2)[-2]] = float(loss)
    points = [point for point, each in losses.items() if set(TARGETS) <= set(each)]
    runs = sorted({mixture for mixture, _ in points})
    values = [[losses[point][target] for target in TARGETS] for point in points]
    swarm = Swarm.of(
        DOMAINS, [mixture for mixture, _ in points], TARGETS, values, tokens=[steps for _, steps in points]
    )
    return Curves(swarm, np.array([runs.index(mixture) for mixture, _ in points]))


def held_out_error(curves: Curves, parts: int = 7) -> dict[str, float]:
    """Return the root mean square error of each loss on runs that the law was not fitted on, nats per token."""
    part = np.random.default_rng(0).permutation(curves.run.max() + 1) % parts
    errors = np.zeros_like(curves.swarm.losses)
    for number in range(parts):
        held_out = part[curves.run] == number
        law = fit_law(_rows(curves.swarm, ~held_out), resamples=0, folds=0).law
        errors[held_out] = law.losses(curves.swarm.amounts[held_out]) - curves.swarm.losses[held_out]
    return {target: round(float(np.sqrt((errors[:, number] ** 2).mean())), 4) for number, target in enumerate(TARGETS)}


def _rows(swarm: Swarm, chosen: NDArray[np.bool_]) -> Swarm:
    rows = np.flatnonzero(chosen)
    return Swarm.of(swarm.domains, swarm.mixtures[rows], swarm.targets, swarm.losses[rows], tokens=swarm.tokens[rows])


class World:
    """A training run that follows the law: the state is the amount of each domain's tokens, in parts of a base run."""

    def __init__(self, law: MixtureLaw) -> None:
        self.law = law
        self.ratio = np.array(RATIO) / sum(RATIO)
        self.start = START * self.ratio
        self.reference = law.losses(self.ratio)

    def excess(self, amounts: Vector) -> Vector:
        """Return the losses above those of the base, nats per token."""
        return self.law.losses(amounts) - self.reference

    def run(self, strategy: Strategy, seed: int, noise: float = NOISE) -> Vector:
        """Return the excess losses at the end of a run under ``strategy``, whose evaluations have this noise."""
        rng, step_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        named = lambda values: dict(zip(DOMAINS, map(float, values), strict=True))  # noqa: E731
        state = strategy.init(DOMAINS, named(self.ratio), reference_loss=named(self.reference))

        def observe(now: Progress) -> Observation:
            losses = self.law.losses(self.amounts(now.consumed))
            seen, training = losses + noise * rng.standard_normal(len(DOMAINS)) if now.evaluated else None, {}
            if isinstance(strategy, ODM) and now.step:
                found = (losses + self.law.losses(self.amounts(now.before))) / 2
                training = named(found + STEP_NOISE * step_rng.standard_normal(len(DOMAINS)))
            return Observation(
                step=now.step,
                tokens=TOKENS * now.step // STEPS,
                params=7e7,
                losses={} if seen is None else named(seen),
                final_tokens=TOKENS,
                domain_tokens=dict.fromkeys(DOMAINS, TOKENS),
                consumed={domain: round(tokens) for domain, tokens in zip(DOMAINS, now.consumed, strict=True)},
                standard_errors=dict.fromkeys(DOMAINS, noise),
                training_losses=training,
            )

        consumed, _ = simulate(strategy, state, observe, steps=STEPS, eval_every=STEPS // EVALUATIONS, tokens=TOKENS)
        return self.excess(self.amounts(consumed))

    def amounts(self, consumed: Vector) -> Vector:
        """Return the amounts of text in parts of a base run, after a number of tokens of this run."""
        return self.start + RUN * consumed / TOKENS


def static_mixtures(world: World) -> dict[str, Vector]:
    """Return static mixtures by name, those found with the true law among them."""
    sizes = dict(zip(DOMAINS, world.ratio, strict=True))
    found = {name: np.array(list(static_mixture(name, sizes).values())) for name in ("natural", "uniform")}
    for power in (0.75, 0.5, 0.25):
        found[f"temperature:{power}"] = np.array(list(static_mixture(f"temperature:{power}", sizes).values()))
    shifted = _Shifted(world.law, world.start)
    for rho in (0.0, 0.1, 0.5, 2.0, 5.0, 10.0, 20.0, math.inf):
        best = best_mixture(
            [shifted], prior=world.ratio, target_weights=world.ratio, reference_loss=world.reference, rho=rho
        )
        found[f"best, rho {rho:g}"] = best.mixture
    return found


class _Shifted(MixtureLaw):
    """The law as a function of the static mixture of the run that starts at ``start``."""

    def __init__(self, law: MixtureLaw, start: Vector) -> None:
        super().__init__(law.form, law.domains, law.domains, law.parameters)
        object.__setattr__(self, "start", start)

    def losses(self, mixtures: Vector) -> Vector:
        return super().losses(self.start + RUN * mixtures)

    def gradients(self, mixture: Vector) -> Vector:
        return RUN * super().gradients(self.start + RUN * mixture)


if __name__ == "__main__":
    main()
