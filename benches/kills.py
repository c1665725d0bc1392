"""Kills runs of the quickstart with SIGKILL at random moments and compares the weights they end with, bit for bit.

    python benches/kills.py                 # 30 kills in 3 runs
    python benches/kills.py --kills 100 --runs 10 --seed 1

The quickstart with all its stages and the model's shape, but fewer steps. Each run has a cache of its own, so that its
base is trained in it, too. Moments are uniform over the records of the undisturbed run, and a random part of a tenth of
a second after them: in a step, an evaluation, a checkpoint, an export.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from drpruning.config import RunConfig
from drpruning.recipes import load_recipe

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["drpruning.train.run", "transformers.models.llama.modeling_llama"])
SHORT = (
    "pretrain.steps=10", "pretrain.evaluate_every=5", "prune.steps=10", "prune.evaluate_every=3",
    "continue.steps=10", "continue.evaluate_every=3", "training.checkpoint_every=2",
    "training.evaluation_tokens=256", "training.measurement_tokens=256", "compare=[]",
)  # fmt: skip


def sitting(recipe: str, folder: str, cache: str) -> None:
    """What a child does: the run, from wherever it stands."""
    import yaml

    from drpruning.recipes import parse_recipe
    from drpruning.train.run import train

    os.environ["DRPRUNING_CACHE"] = cache
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    train(parse_recipe(yaml.safe_load(recipe)), Path(folder), resume=True)


def run(config: RunConfig, folder: Path, corpora: Path, moments: list[tuple[int, float]]) -> list[str]:
    """Trains in ``folder``, killed at each of ``moments``; returns what the newest record was of each time."""
    cache = folder.with_suffix(".cache")
    cache.mkdir()
    (cache / "corpora").symlink_to(corpora)
    records = folder / "metrics.jsonl"
    killed_at = []
    for at, delay in [*moments, (-1, 0.0)]:
        process = CONTEXT.Process(target=sitting, args=(config.to_yaml(), str(folder), str(cache)))
        process.start()
        wanted = max(at, records.read_bytes().count(b"\n") + 1 if records.exists() else 0)
        while process.is_alive() and (at < 0 or not records.exists() or records.read_bytes().count(b"\n") < wanted):
            time.sleep(0.001)
        if at >= 0:
            time.sleep(delay)
            process.kill()
        process.join()
        if process.exitcode == 0:  # also where it was quicker than the kill
            break
        assert process.exitcode == -signal.SIGKILL, process.exitcode
        if at >= 0:
            last = records.read_text().splitlines()[-1]
            killed_at.append(last.split('"kind":"')[1].split('"')[0])
    return killed_at


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "export" / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--kills", type=int, default=30)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()

    from drpruning.files import cache_folder
    from drpruning.train.preflight import open_corpus

    config = load_recipe("quickstart", SHORT)
    open_corpus(config)
    corpora = cache_folder().absolute() / "corpora"
    generator = random.Random(given.seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        run(config, Path(scratch) / "whole", corpora, [])
        whole = (Path(scratch) / "whole" / "metrics.jsonl").read_bytes().count(b"\n")
        print(f"undisturbed: {whole} records, {time.perf_counter() - began:.0f} s", flush=True)
        equal, done = 0, Counter[str]()
        for number in range(given.runs):
            count = given.kills // given.runs
            moments = [(at, generator.uniform(0, 0.1)) for at in sorted(generator.sample(range(1, whole - 1), count))]
            folder = Path(scratch) / f"run-{number}"
            kinds = run(config, folder, corpora, moments)
            same = weights(folder) == weights(Path(scratch) / "whole")
            equal += len(kinds) if same else 0
            done.update(kinds)
            print(f"run {number}: {len(kinds)} kills, weights {'equal' if same else 'DIFFER'}", flush=True)
    print(f"{equal} of {done.total()} kills with the same weights in the end; killed after records: {dict(done)}")


if __name__ == "__main__":
    main()
