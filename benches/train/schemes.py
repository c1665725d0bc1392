"""What narrow weights and moments cost in loss: a small model trained with each from the same start on the same rows.

    python benches/train/schemes.py [--steps 200] [--seeds 2]

Forward and backward are bfloat16 in all. Printed: held-out loss after the stage, mean over domains and seeds, its
difference to float32 weights and moments, and bytes for each parameter of weight, gradient, moments and low half.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import mean

from transformers.utils import logging

from drpruning.prepare.recipe_corpus import open_corpus
from drpruning.recipes import load_recipe
from drpruning.records import Evaluated, read_records
from drpruning.train.run import train

SCHEMES = {
    ("float32", "float32"): "16",
    ("float32", "bfloat16"): "12",
    ("bfloat16+low16", "bfloat16"): "10",
    ("bfloat16+low16", "int8"): "8.06",
    ("bfloat16", "bfloat16"): "8",
    ("bfloat16", "int8"): "6.06",
}


def final_loss(settings: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DRPRUNING_CACHE"] = f"{folder}/cache"  # so that the base is trained, not found
        train(load_recipe("quickstart", settings), Path(folder) / "run")
        records = [each for each in read_records(Path(folder) / "run" / "metrics.jsonl") if isinstance(each, Evaluated)]
    return mean([each for each in records if each.stage == "pretrain"][-1].losses.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    logging.disable_progress_bar()
    settings = [
        f"pretrain.steps={given.steps}", f"pretrain.eval_every={given.steps}", "prune.steps=1", "continue.steps=1",
        "model.architecture.layers=2", "model.architecture.hidden=64", "model.architecture.heads=4",
        "model.architecture.kv_heads=2", "model.architecture.intermediate=192", "data.seq_len=64",
        "prune.target={layers: 1}", "training.dtype=bfloat16", "training.cross_entropy=chunked",
        "training.final_eval_tokens=64", "training.checkpoint_every=100000", "also_run=[]",
    ]  # fmt: skip
    corpus = open_corpus(load_recipe("quickstart"))  # built before the cache moves
    settings.append(f"data.corpus={corpus.folder}")
    exact = []
    print(f"{'weights':<16}{'moments':<10}{'bytes':>6}{'loss':>9}{'difference':>12}{'(each seed)':>24}")
    for (weights, moments), size in SCHEMES.items():
        scheme = [*settings, f"training.weight_format={weights}", f"training.optimizer_state_format={moments}"]
        losses = [final_loss([*scheme, f"seed={seed}"]) for seed in range(given.seeds)]
        exact = exact or losses
        apart = [one - other for one, other in zip(losses, exact, strict=True)]
        each = ", ".join(f"{difference:+.4f}" for difference in apart)
        print(f"{weights:<16}{moments:<10}{size:>6}{mean(losses):>9.4f}{mean(apart):>+12.4f}{each:>24}", flush=True)


if __name__ == "__main__":
    main()
