"""Small models of several families, and the corpus of the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

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
