"""A source of random weights in a folder, as a downloaded one would be."""

from __future__ import annotations

from pathlib import Path

import torch

from drpruning.config import RunConfig
from drpruning.corpus import Corpus
from drpruning.recipes import parse_recipe
from drpruning.train.base_model import build, model_config


def with_random_base(config: RunConfig, corpus: Path, folder: Path) -> RunConfig:
    """Write a model of the recipe's architecture to ``folder`` in bfloat16; return the recipe that names it."""
    opened, architecture = Corpus.open(corpus), config.model.architecture
    assert opened.tokenizer is not None
    assert architecture is not None
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # on a GPU in a moment
        model = build(model_config(architecture, opened.tokenizer.vocab_size, opened.end_token), 0)
    model.bfloat16().save_pretrained(folder)
    return parse_recipe(config.to_dict() | {"model": {"source": str(folder)}})
