"""Our loop compared with Hugging Face's Trainer: same model, data, batch, optimizer and thread, in turns.

    python benches/train/trainer.py [--rounds 3] [--steps 20]

Both train the quickstart's base in float32 with fused AdamW, clipping and a cosine. A step is from the end of one to
the end of the next, with everything in it: loading, recording or logging. Of each round the median step counts, of the
rounds the median ratio. CPU time is printed next to wall time, since only CPU time compares on a shared machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from drpruning import DomainSampler
from drpruning.config import RunConfig
from drpruning.prepare.recipe_corpus import open_corpus
from drpruning.recipes import load_recipe
from drpruning.records import Record, StepTaken
from drpruning.train.base_model import build
from drpruning.train.preflight import check_recipe
from drpruning.train.run import train

Times = list[tuple[float, float]]


class Clock:
    """Notes clock and CPU time at the end of each step of the first stage, and the share of waiting for data."""

    def __init__(self) -> None:
        self.times: Times = []
        self.waits: list[float] = []

    def write(self, record: Record) -> None:
        if isinstance(record, StepTaken) and record.stage == "pretrain":
            self.times.append((time.perf_counter(), time.process_time()))
            assert record.loader_wait is not None
            self.waits.append(
                record.loader_wait * record.tokens_per_second / sum((record.domain_tokens or {}).values())
            )


def ours(config: RunConfig) -> tuple[Times, float]:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DRPRUNING_CACHE"] = f"{folder}/cache"  # so that the base is trained, not found
        train(config, Path(folder) / "run", watchers=[clock])
    return clock.times, median(clock.waits)


class Rows(IterableDataset[dict[str, torch.Tensor]]):
    """Rows of the same corpus, one at a time, as Trainer expects them."""

    def __init__(self, sampler: DomainSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.sampler:
            for row in torch.from_numpy(batch.tokens):
                yield {"input_ids": row, "labels": row}


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.times: Times = []

    def on_step_end(self, *arguments: object, **keywords: object) -> None:
        self.times.append((time.perf_counter(), time.process_time()))


def theirs(config: RunConfig) -> Times:
    stage = config.stage("pretrain")
    corpus = open_corpus(config)
    even = dict.fromkeys(corpus.domains, 1.0)
    sampler = DomainSampler(corpus, even, seq_len=config.data.seq_len, batch_size=stage.batch_size, prefetch=0)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=stage.steps, per_device_train_batch_size=stage.batch_size,
            learning_rate=stage.learning_rate, lr_scheduler_type="cosine", warmup_steps=2, optim="adamw_torch_fused",
            adam_beta2=0.95, weight_decay=0.0, max_grad_norm=1.0, logging_steps=10, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, dataloader_num_workers=0,
        )  # fmt: skip
        trainer = Trainer(
            model=build(check_recipe(config, corpus), 0), args=arguments, train_dataset=Rows(sampler),
            callbacks=[watch],
        )  # fmt: skip
        trainer.train()
    return watch.times


def steps(times: Times) -> tuple[float, float]:
    """Median seconds of a step, by the clock and of the CPU; the first two warm up."""
    pairs = list(pairwise(times[1:]))
    return median(b[0] - a[0] for a, b in pairs), median(b[1] - a[1] for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = [
        f"pretrain.steps={given.steps}", f"pretrain.eval_every={given.steps}", "prune.steps=1", "continue.steps=1",
        "training.eval_tokens=128", "training.final_eval_tokens=128", "training.checkpoint_every=100000",
        "also_run=[]",
    ]  # fmt: skip
    plain = load_recipe("quickstart", settings)
    corpus = open_corpus(plain)  # built before the cache moves
    settings.append(f"data.corpus={corpus.folder}")
    ways = {
        kind: load_recipe("quickstart", [*settings, f"training.cross_entropy={kind}"]) for kind in ("plain", "chunked")
    }
    tokens = plain.stage("pretrain").batch_size * plain.data.seq_len
    seen: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (*ways, "Trainer")}
    waits = []
    for _ in range(given.rounds):
        for kind, config in ways.items():
            times, wait = ours(config)
            seen[kind].append(steps(times))
            waits.append(wait)
        seen["Trainer"].append(steps(theirs(ways["plain"])))
    print(f"{'':<18}{'tokens/s':>10}{'CPU ms/step':>13}{'speed / Trainer: clock':>24}{'CPU':>7}")
    for kind, rounds in seen.items():
        ratios = [
            median(other[which] / mine[which] for mine, other in zip(rounds, seen["Trainer"], strict=True))
            for which in (0, 1)
        ]
        clock, cpu = median(each[0] for each in rounds), median(each[1] for each in rounds)
        print(f"{kind:<18}{tokens / clock:>10,.0f}{cpu * 1e3:>13,.0f}{ratios[0]:>24.2f}{ratios[1]:>7.2f}")
    print(f"waiting for the batch: {median(waits):.2%} of a step")


if __name__ == "__main__":
    main()
