"""A run as the quickstart would leave it, made of formulas, for the tests of the report."""

import math
import random
from pathlib import Path

from drpruning.records import (
    Evaluated,
    Incident,
    JsonlSink,
    Kept,
    ModelMeasured,
    Record,
    RunEnded,
    RunStarted,
    StageEnded,
    StageStarted,
    StepTaken,
)

DOMAINS = ["python", "cpp", "math", "ml_docs", "stubs", "readme", "licences"]
RATIO = dict(zip(DOMAINS, [0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02], strict=True))
BASE = dict(zip(DOMAINS, [2.41, 1.87, 2.98, 2.77, 1.42, 2.63, 0.91], strict=True))
SOURCE = {"layers": 6, "hidden": 128, "heads": 8, "kv_heads": 4, "intermediate": 384}
TARGET = {"layers": 4, "hidden": 96, "heads": 4, "kv_heads": 2, "intermediate": 256}
LEFT = {
    "drpruning": [0.29, 0.22, 0.26, 0.25, 0.19, 0.28, 0.34],
    "constant": [0.21, 0.24, 0.48, 0.46, 0.51, 0.63, 0.92],
}
TOKENS = 2048


def synthetic(strategy: str = "drpruning", domains: list[str] = DOMAINS) -> list[Record]:
    """Return the records of a run like the quickstart: losses jump in pruning and fall in recovery."""
    rng = random.Random(strategy)
    renamed = dict(zip(DOMAINS, domains, strict=True))
    excess = dict(zip(DOMAINS, LEFT[strategy], strict=True))
    after = {name: BASE[name] + 2.2 * excess[name] + 0.4 + 0.2 * at for at, name in enumerate(DOMAINS)}
    final = {name: BASE[name] + excess[name] for name in DOMAINS}

    def named(losses: dict[str, float]) -> dict[str, float]:
        return {renamed[name]: value for name, value in losses.items()}

    def model(name: str, parameters: int, shape: dict[str, int], losses: dict[str, float]) -> ModelMeasured:
        return ModelMeasured(model=name, parameters=parameters, shape=shape, losses=named(losses))

    records: list[Record] = [
        RunStarted(
            name="quickstart",
            recipe_hash="3f9ac2d1",
            strategy=strategy,
            seed=17,
            domains=domains,
            reference_ratio=named(RATIO),
            rho=0.1 if strategy == "drpruning" else None,
            environment={"python": "3.11.9", "torch": "2.6.0", "threads": "2", "platform": "Linux x86_64"},
        ),
        model("base", 1_838_000, SOURCE, BASE),
    ]
    ratio = dict(RATIO)
    for stage, steps in (("prune", 150), ("continue", 250)):
        records.append(
            StageStarted(
                stage=stage, steps=steps, tokens_per_step=TOKENS, parameters=1_838_000, shape=SOURCE, target=TARGET
            )
        )
        for step in range(steps + 1):
            at = step / steps
            if stage == "prune":
                rise = {name: (after[name] - BASE[name]) * (1 - math.exp(-4 * at)) for name in DOMAINS}
                losses = {name: BASE[name] + rise[name] + 0.25 * math.sin(math.pi * at) for name in DOMAINS}
            else:
                losses = {
                    name: final[name] + (after[name] - final[name]) * math.exp(-4.5 * at) * (1 - at) for name in DOMAINS
                }
            if step:
                ramp = min(1.0, at / 0.5)
                goal = {"layer": 2 / 6, "head": 0.5, "intermediate": 1 / 3, "hidden": 0.25}
                masks = stage == "prune"
                records.append(
                    StepTaken(
                        stage=stage,
                        step=step,
                        tokens=step * TOKENS,
                        loss=sum(RATIO[name] * losses[name] for name in DOMAINS) + rng.gauss(0, 0.06),
                        learning_rate=1e-3 * (1 - at),
                        grad_norm=1.0 + rng.random(),
                        tokens_per_second=6800 + rng.gauss(0, 250) - (700 if masks else 0),
                        expected={
                            kind: max(
                                0.0, value * ramp * (0.93 + 0.07 * at) - 0.12 * value * math.sin(9 * at) * (1 - at)
                            )
                            for kind, value in goal.items()
                        }
                        if masks
                        else None,
                        scheduled={kind: value * ramp for kind, value in goal.items()} if masks else None,
                        multipliers={
                            kind: [0.4 * math.sin(4 * at) * (1 + value), 10 + 2 * at * value]
                            for kind, value in goal.items()
                        }
                        if masks
                        else None,
                    )
                )
            if step % 10 == 0:
                over = {name: losses[name] - BASE[name] for name in DOMAINS}
                middle = sum(over.values()) / len(over)
                lean = {name: ratio[name] * math.exp(4 * (over[name] - middle)) for name in DOMAINS}
                q = {name: value / sum(lean.values()) for name, value in lean.items()}
                far = 0.5 * sum((q[name] - ratio[name]) ** 2 / ratio[name] for name in DOMAINS)
                back = min(1.0, math.sqrt(0.1 / far)) if far else 1.0
                if strategy == "constant":
                    back = 0.0
                q = {name: ratio[name] + back * (q[name] - ratio[name]) for name in DOMAINS}
                moved = {
                    name: min(2 * RATIO[name], max(RATIO[name] / 2, 0.9 * ratio[name] + 0.1 * q[name]))
                    for name in DOMAINS
                }
                ratio = {name: value / sum(moved.values()) for name, value in moved.items()}
                records.append(
                    Evaluated(
                        stage=stage,
                        step=step,
                        tokens=step * TOKENS,
                        parameters=1_500_000.0,
                        losses=named(losses),
                        weights=named(q),
                        reference_ratio=named(ratio),
                        reference_loss=named({name: BASE[name] + 0.1 * (1 - at) for name in DOMAINS}),
                        excess_loss=named(over),
                        divergence=back**2 * far,
                    )
                )
        work = {"training": 1e7 * steps * TOKENS, "teacher": 1e7 * steps * TOKENS / 2 if stage == "continue" else 0.0}
        records.append(
            StageEnded(
                stage=stage,
                steps=steps,
                tokens=steps * TOKENS,
                seconds=steps * 0.31,
                charged_flops=sum(work.values()),
                flops={**work, "evaluation": 5e9},
            )
        )
        if stage == "prune":
            records.append(
                Kept(
                    source=SOURCE,
                    target=TARGET,
                    layers=[0, 1, 3, 5],
                    hidden=sorted(rng.sample(range(128), 96)),
                    heads=[sorted(rng.sample(range(4), 2)) for _ in range(4)],
                    intermediate=[sorted(rng.sample(range(384), 256)) for _ in range(4)],
                    target_met=dict.fromkeys(TARGET, True),
                )
            )
            records.append(model("pruned", 947_000, TARGET, after))
    records += [
        Incident(what="resumed", detail="resumed from checkpoint 100", stage="continue", step=100),
        model("recovered", 947_000, TARGET, final),
        RunEnded(seconds=124.0),
    ]
    return records


def write_run(folder: Path, records: list[Record], recipe: str | None = "name: quickstart\nseed: 17\n") -> Path:
    folder.mkdir(parents=True)
    sink = JsonlSink(folder / "metrics.jsonl")
    for record in records:
        sink.write(record)
    sink.close()
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe)
    return folder
