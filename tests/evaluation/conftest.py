"""Small models of several families, the corpus of the training tests, and one with text to make items of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from drpruning.corpus import Corpus
from drpruning.evaluation.benchmark.build import BenchmarkPlan, plan_benchmark
from drpruning.evaluation.benchmark.items import Item
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.pipeline.write import write_corpus
from drpruning.prepare.tokenize.tokenizer import train_tokenizer
from tests.train.conftest import corpus_folder  # noqa: F401 - a fixture

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MakeModel = Callable[..., Any]


def tiny_model(family: str = "llama", vocabulary: int = 280, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {**SIZES, "vocab_size": vocabulary, **changes}
    if family == "gpt2":
        sizes = {"n_embd": 24, "n_inner": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": vocabulary}
    config = CONFIG_MAPPING[family](**sizes, bos_token_id=0, eos_token_id=0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny model as a folder of that name, without a tokenizer."""

    def save(name: str, **arguments: Any) -> Path:
        tiny_model(**arguments).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


HALF = 60  # characters of a half of a passage


def story(generator: random.Random, words: list[str]) -> str:
    sentences = (" ".join(generator.choice(words) for _ in range(8)).capitalize() + "." for _ in range(30))
    return " ".join(sentences)


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Write two domains of sentences of made-up words."""
    generator = random.Random(3)
    letters = "abcdefghijklmnoprstuvw"
    vocabulary = ["".join(generator.choices(letters, k=generator.randint(3, 9))) for _ in range(400)]
    domains = {
        "sea": [story(generator, vocabulary[:250]) for _ in range(12)],
        "sky": [story(generator, vocabulary[150:]) for _ in range(12)],
    }
    folder = tmp_path_factory.mktemp("stories") / "corpus"
    folder.mkdir()
    tokenizer = train_tokenizer((text for texts in domains.values() for text in texts), 400, name="stories")
    holdout = Holdout(fraction=0.5, min_tokens=100, max_fraction=0.5)
    write_corpus(
        folder,
        domains,
        tokenizer,
        holdout=holdout,
        prepared={},
    )
    return Corpus.open(folder)


def planned(corpus: Corpus, per_domain: int = 12) -> BenchmarkPlan:
    return plan_benchmark(
        corpus, name="stories", domains=corpus.domains, per_domain=per_domain, num_choices=4, context_chars=HALF, seed=5
    )


def items(folder: Path, domain: str) -> list[Item]:
    lines = (folder / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Item.from_json(json.loads(line)) for line in lines]
