"""Writes mixers.json: mixtures that the public code of ODM and Aioli computes, run unchanged.

    python tests/golden/make_mixers.py ODM_CHECKOUT AIOLI_CHECKOUT

The folders are checkouts of alon-albalak/online-data-mixing at edbfdad and of HazyResearch/aioli at a236112. Their
packages that are not needed are replaced by empty modules. ODM's classes are called with made-up losses. Aioli's whole
training loop runs on a made-up model: its losses are a function of the shares that it was trained on.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from make_ancestors import EmptyModule, load

PACKAGES = """
    dataset.instruction_dataset dataset.slimpj_dataset deepspeed evaluator.utils megatron.model.gpt2_model
    megatron.utils transformers.pytorch_utils transformers.trainer_pt_utils transformers.utils wandb
"""


def odm(utils: Any) -> list[dict[str, Any]]:
    """Return the probabilities of each class after each iteration, domains with losses for some of them."""
    found = []
    for name, arguments in (("SmoothedMeanWeightUpdater", {"smoothing_factor": 0.5}), ("Exp3WeightUpdater", {})):
        for domains, iterations, warmup in ((3, 12, 0), (7, 40, 5)):
            rng = np.random.default_rng(domains)
            names, start = [str(d) for d in range(domains)], rng.dirichlet(np.ones(domains)).tolist()
            updater = getattr(utils, name)(names, list(start), **arguments)
            rows = []
            for iteration in range(1, iterations + 1):
                drawn = np.flatnonzero(rng.random(domains) < 0.6) if iteration > 1 else np.arange(domains)
                drawn = drawn if drawn.size else np.array([0])
                losses = {names[d]: float(2 + d / 2 + rng.normal() / 4 - iteration / 40) for d in drawn}
                row: dict[str, Any] = {"losses": losses}
                if iteration > warmup:
                    row["weights"] = list(updater.group_update(list(losses), list(losses.values()), iteration))
                    row["exploration"] = [updater.prev_eps, updater.eps]
                    if name == "Exp3WeightUpdater":
                        row["rewards"] = list(updater._cumulative_estimated_reward.values())
                rows.append(row)
            found.append({"class": name, "start": start, "warmup": warmup, "rows": rows})
    return found


class MadeUpModel:
    """Losses ``1 + exp(-B x)`` of the amounts ``x`` trained on, which grow by the shares at each step."""

    def __init__(self, domains: int) -> None:
        rng = np.random.default_rng(100 + domains)
        self.rates = rng.uniform(-0.002, 0.01, (domains, domains)) + 0.02 * np.eye(domains)
        self.amounts, self.shares = np.zeros(domains), np.zeros(domains)
        self.events: list[tuple[str, list[float]]] = []

    def __call__(self, **batch: Any) -> Any:
        self.amounts = self.amounts + self.shares
        return SimpleNamespace(loss=torch.zeros((), requires_grad=True))

    def set_proportions(self, args: Any, weights: Any) -> None:
        self.shares = np.array(weights, dtype=float) / np.sum(weights)
        self.events.append(("mixture", self.shares.tolist()))

    def evaluate(self, *args: Any, do_not_log: bool = False, **kwargs: Any) -> pd.DataFrame:
        losses = 1 + np.exp(-self.rates @ self.amounts)
        self.events.append(("probed" if do_not_log else "started", losses.tolist()))
        return pd.DataFrame({"task_idx": np.arange(losses.size), "task_loss": losses})

    def ignore(self, *args: Any) -> list[Any]:
        return []

    train = zero_grad = parameters = ignore


def aioli(module: Any) -> list[dict[str, Any]]:
    """Return the losses that each round saw, the order of its probes, and the mixture that it chose."""
    module.tqdm = lambda steps: SimpleNamespace(update=lambda count: None)
    module.get_steps = lambda args: (10**9, args.max_steps)
    module.get_tokenized_val_dataset = module.save_model_and_optimizer = lambda *args: None
    idle = SimpleNamespace(step=lambda: None)
    module.create_optimizer_scheduler = lambda *args: (idle, idle)
    module.clip_grad_norm_ = lambda *args: None
    module.get_tokenized_train_dataset = lambda args, data, rows, **kwargs: rows
    tensor = SimpleNamespace(cuda=lambda: None)

    def batches(tokenizer: Any, rows: int, batch_size: int) -> Iterator[Any]:
        return ({"input_ids": tensor, "labels": tensor} for _ in range(rows // batch_size))

    module.get_train_dataloader = batches
    found = []
    for domains, settings in (
        (3, {"eta": 1.0, "ema": 0.1, "one_hot_factor": 0.75, "lp_rounds": 2, "lp_steps": 4}),
        (7, {"eta": 1.0, "ema": 0.1, "one_hot_factor": 0.75, "lp_rounds": 2, "lp_steps": 10}),
        (3, {"eta": 0.2, "ema": None, "one_hot_factor": 0.6, "lp_rounds": 1, "lp_steps": 4}),
        (2, {"eta": 5.0, "ema": 0.5, "one_hot_factor": 1, "lp_rounds": 4, "lp_steps": 3}),
    ):
        np.random.seed(domains)  # the generator that the public code draws from
        model, rounds = MadeUpModel(domains), 4
        probes = domains * settings["lp_rounds"]
        more = {"k": domains, "slice_list": [], "update_steps": 200, "max_steps": 200 * rounds, "batch_size": 8}
        unused = dict.fromkeys(
            ["graph_path", "aioli_prior", "break_steps", "lr", "lr_scheduler", "end_lr", "warmup_steps"]
        )
        args = SimpleNamespace(
            **settings, **more, **unused, selection_seed=0, aioli_normalize_A=True, aioli_diagonal=False
        )
        data = SimpleNamespace(k=domains, skills=range(domains), set_proportions=model.set_proportions)
        evaluator = SimpleNamespace(evaluate=model.evaluate, result_path="results")
        trainer = module.AioliTrainer(args, logging.getLogger(), None, model, None, None, data, evaluator)
        trainer.train()
        case: dict[str, Any] = {"settings": settings, "rounds": []}
        events = iter(model.events)
        for _ in range(rounds):
            kind, losses = next(events)
            assert kind == "started"
            row: dict[str, Any] = {"losses": [losses], "order": []}
            for _ in range(probes):
                kind, mixture = next(events)
                assert kind == "mixture"
                row["order"].append(int(np.argmax(mixture)))
                kind, losses = next(events)
                assert kind == "probed"
                row["losses"].append(losses)
            kind, row["weights"] = next(events)
            assert kind == "mixture"
            case["rounds"].append(row)
        found.append(case)
    return found


def main(odm_checkout: Path, aioli_checkout: Path) -> None:
    for package in PACKAGES.split():
        for end in range(1, package.count(".") + 2):
            name = ".".join(package.split(".")[:end])
            sys.modules.setdefault(name, EmptyModule(name))
    sys.modules["megatron"] = ModuleType("megatron")
    sys.modules["megatron"].__path__ = [str(odm_checkout / "megatron")]
    replaced: dict[str, Any] = sys.modules
    replaced["megatron"].print_rank_0, replaced["megatron"].mpu = print, None
    content = {
        "odm": odm(load(odm_checkout, "megatron", "data.data_sampling_utils")),
        "aioli": aioli(load(aioli_checkout, "trainer", "aioli_trainer")),
    }
    target = Path(__file__).with_name("mixers.json")
    target.write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
