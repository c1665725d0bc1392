"""Kill quickstart runs with SIGKILL at random moments, resume them, and compare the final weights bit for bit.

    python benches/crash_recovery.py                 # 30 kills in 3 runs
    python benches/crash_recovery.py --kills 100 --runs 10 --seed 1

The runs have all stages and the model shape of the quickstart, but fewer steps. Each run has a separate cache, so it
also trains its base model. Kills are uniform over the records of the undisturbed run, each after a random delay of up
to a tenth of a second: in a step, an evaluation, a checkpoint, an export.
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
    "pretrain.steps=10", "pretrain.eval_every=5", "prune.steps=10", "prune.eval_every=3",
    "continue.steps=10", "continue.eval_every=3", "training.checkpoint_every=2",
    "training.eval_tokens=256", "training.final_eval_tokens=256", "also_run=[]",
)  # fmt: skip


def train_until_killed(recipe: str, folder: str, cache: str) -> None:
    """Run in a child process: start the run, or resume it."""
    import yaml

    from drpruning.recipes import parse_recipe
    from drpruning.train.run import train

    os.environ["DRPRUNING_CACHE"] = cache
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    train(parse_recipe(yaml.safe_load(recipe)), Path(folder), resume=True)


def run(config: RunConfig, folder: Path, corpora: Path, moments: list[tuple[int, float]]) -> list[str]:
    """Train in ``folder``, killed at each of ``moments``; return the kind of the last record before each kill."""
    cache = folder.with_suffix(".cache")
    cache.mkdir()
    (cache / "corpora").symlink_to(corpora)
    records = folder / "metrics.jsonl"
    killed_at = []
    for at, delay in [*moments, (-1, 0.0)]:
        process = CONTEXT.Process(target=train_until_killed, args=(config.to_yaml(), str(folder), str(cache)))
        process.start()
        num_records = max(at, records.read_bytes().count(b"\n") + 1 if records.exists() else 0)
        while process.is_alive() and (
            at < 0 or not records.exists() or records.read_bytes().count(b"\n") < num_records
        ):
            time.sleep(0.001)
        if at >= 0:
            time.sleep(delay)
            process.kill()
        process.join()
        if process.exitcode == 0:  # also if the run finished before the kill
            break
        assert process.exitcode == -signal.SIGKILL, process.exitcode
        if at >= 0:
            last = records.read_text().splitlines()[-1]
            killed_at.append(last.split('"kind":"')[1].split('"')[0])
    return killed_at


def weights_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "export" / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--kills", type=int, default=30)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()

    from drpruning.files import cache_folder
    from drpruning.prepare.recipe_corpus import open_corpus

    config = load_recipe("quickstart", SHORT)
    open_corpus(config)
    corpora = cache_folder().absolute() / "corpora"
    generator = random.Random(options.seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        run(config, Path(scratch) / "whole", corpora, [])
        whole = (Path(scratch) / "whole" / "metrics.jsonl").read_bytes().count(b"\n")
        print(f"undisturbed: {whole} records, {time.perf_counter() - began:.0f} s", flush=True)
        equal, done = 0, Counter[str]()
        for number in range(options.runs):
            count = options.kills // options.runs
            moments = [(at, generator.uniform(0, 0.1)) for at in sorted(generator.sample(range(1, whole - 1), count))]
            folder = Path(scratch) / f"run-{number}"
            kinds = run(config, folder, corpora, moments)
            same = weights_sha256(folder) == weights_sha256(Path(scratch) / "whole")
            equal += len(kinds) if same else 0
            done.update(kinds)
            print(f"run {number}: {len(kinds)} kills, weights {'equal' if same else 'DIFFER'}", flush=True)
    print(f"{equal} of {done.total()} kills with the same final weights; kinds of the last records: {dict(done)}")


if __name__ == "__main__":
    main()
