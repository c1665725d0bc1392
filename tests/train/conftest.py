"""A corpus of three small domains and a recipe that runs in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from drpruning.config import RunConfig
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.pipeline.write import write_corpus
from drpruning.prepare.tokenize.tokenizer import train_tokenizer
from drpruning.recipes import parse_recipe
from drpruning.train.run import train


def sums(generator: random.Random) -> str:
    pairs = [(generator.randrange(100), generator.randrange(100)) for _ in range(40)]
    return "".join(f"{a} + {b} = {a + b}\n" for a, b in pairs)


def words(generator: random.Random) -> str:
    vocabulary = ["the", "a", "model", "layer", "head", "unit", "keeps", "drops", "learns", "small", "large", "well"]
    return " ".join(generator.choice(vocabulary) for _ in range(160)) + ".\n"


def records(generator: random.Random) -> str:
    return "".join(
        json.dumps({"id": generator.randrange(1000), "on": generator.random() < 0.5}) + "\n" for _ in range(30)
    )


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(5)
    domains = {
        name: [make(generator) for _ in range(count)]
        for name, make, count in (("sums", sums, 40), ("words", words, 60), ("records", records, 20))
    }
    folder = tmp_path_factory.mktemp("corpus") / "three"
    folder.mkdir()
    tokenizer = train_tokenizer((text for texts in domains.values() for text in texts), 280, name="test")
    write_corpus(
        folder,
        domains,
        tokenizer,
        holdout=Holdout(fraction=0.2, min_tokens=500, max_fraction=0.4),
        prepared={},
    )
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("DRPRUNING_CACHE", str(folder))
    return folder


Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def recipe(corpus_folder: Path) -> Recipe:
    """Make a recipe of small models and a handful of steps; arguments are sections to merge in."""
    return lambda **changes: tiny(corpus_folder, changes)


@pytest.fixture(scope="session")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run of the recipe, with its comparison."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRPRUNING_CACHE", str(folder / "cache"))
        train(recipe(also_run=["constant"]), folder / "run")
    return folder / "run"


def tiny(corpus: Path, changes: dict[str, object]) -> RunConfig:
    body: dict[str, object] = {
        "name": "tiny",
        "model": {
            "source": "pretrain",
            "architecture": {
                "layers": 3,
                "hidden": 32,
                "heads": 4,
                "kv_heads": 2,
                "intermediate": 48,
                "positions": 64,
            },
        },
        "data": {
            "corpus": str(corpus),
            "seq_len": 32,
            "reference_ratio": {"sums": 0.7, "words": 0.2, "records": 0.1},
        },
        "pretrain": {"steps": 8, "batch_size": 8, "learning_rate": 3e-3, "eval_every": 4},
        "prune": {
            "steps": 8,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "eval_every": 2,
            "gate_learning_rate": 0.1,
            "multiplier_learning_rate": 0.05,
            "sparsity_warmup_fraction": 0.5,
            "target": {"layers": 2, "hidden": 24, "heads": 2, "intermediate": 32},
        },
        "continue": {"steps": 8, "batch_size": 8, "learning_rate": 1e-3, "eval_every": 2},
        "mixture": {"strategy": "drpruning", "reference_loss": "base", "min_points": 4},
        "training": {
            "threads": 1,
            "checkpoint_every": 3,
            "eval_tokens": 256,
            "final_eval_tokens": 512,
            "micro_batch_size": 4,
        },
    }
    for section, change in changes.items():
        old = body.get(section)
        body[section] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    return parse_recipe(body)
