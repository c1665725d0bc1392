"""The base model: its configuration, its tokenizer, its cache, and models with random weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from drpruning.config import SHAPES_ONLY, ArchitectureConfig, ModelConfig, RunConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.files import cache_folder
from drpruning.hf.models import read_config, text_config
from drpruning.hf.tokenizers import corpus_tokenizer, model_tokenizer
from drpruning.train.model_structure import shape_of

BASE_FORMAT = 1  # raised when the same recipe would train another base
CONFIGS: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def model_config(architecture: ArchitectureConfig, vocabulary: int, end_token: int | None = None) -> Any:
    """Return the transformers configuration of an architecture.

    Args:
        architecture: Shape, from the recipe.
        vocabulary: Rows of the embedding, unless the architecture has a number.
        end_token: Id of the token that ends a document.

    Raises:
        ConfigError: transformers refuses the shape.
    """
    try:
        return CONFIGS[architecture.family](
            **architecture.transformers_sizes(vocabulary),
            rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
            bos_token_id=end_token,
            eos_token_id=end_token,
        )
    except (ValueError, StrictDataclassError) as error:  # some releases of transformers raise one, some the other
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConfigError(f"model.architecture: {reason}") from error


def source_config(model: ModelConfig, corpus: Corpus) -> Any:
    """Return the configuration of the large model, without its weights.

    Raises:
        ConfigError: There is no such model, it differs from ``model.architecture``, or its embedding is smaller than
            the corpus's vocabulary.
    """
    tokenizer = corpus.tokenizer
    vocabulary = None if tokenizer is None else tokenizer.vocab_size
    end_token = None if tokenizer is None else tokenizer.eos_id
    if model.source in SHAPES_ONLY:
        assert model.architecture is not None
        if vocabulary is None and model.architecture.vocabulary is None:
            raise ConfigError("the corpus names no tokenizer, so model.architecture.vocabulary is needed")
        config = model_config(model.architecture, vocabulary or 0, end_token)
    else:
        config = read_config(model.source)
        if model.architecture is not None:
            _compare(model.architecture, config)
    rows = text_config(config).vocab_size
    if vocabulary is not None and vocabulary > rows:
        raise ConfigError(
            f"the corpus has {vocabulary} token ids, the embedding of the model {model.source!r} {rows} rows",
            "Prepare the corpus with the model's own tokenizer: `drpruning prepare OUT --tokenizer MODEL ...`",
        )
    return config


def _compare(expected: ArchitectureConfig, config: Any) -> None:
    found = shape_of(config)
    for name in ("layers", "hidden", "heads", "intermediate"):
        got = found.get(name)
        if getattr(expected, name) != got:
            raise ConfigError(f"model.architecture.{name} is {getattr(expected, name)}, but the model has {got}")


def build(config: Any, seed: int) -> Any:
    """Return a float32 model with random weights from ``seed``."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def base_cache(config: RunConfig, corpus: Corpus) -> Path:
    """Return the folder of the base that a recipe trains, by a hash of all settings that determine its weights."""
    training, pretrain, data = config.training, config.to_dict()["pretrain"], config.to_dict()["data"]
    del pretrain["seed"], data["reference_ratio"]
    pretrain["mixture"] = config.pretrain_ratio
    body = {
        "format": BASE_FORMAT,
        "seed": config.pretrain_seed,
        "architecture": config.to_dict()["model"]["architecture"],
        "pretrain": pretrain,
        "data": data,
        "corpus": corpus.fingerprint,
        "training": [training.dtype, training.threads, training.betas, training.weight_decay, training.max_grad_norm],
        "micro_batch_size": training.micro_batch_size,
    }
    formats = {"weight_format": training.weight_format, "optimizer_state_format": training.optimizer_state_format}
    if changed := {name: value for name, value in formats.items() if value != "float32"}:
        body["formats"] = changed  # left out by default, so that caches of older releases keep their names
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "bases" / digest[:16]


def check_tokenizer(model: ModelConfig, corpus: Corpus) -> None:
    """Check that the corpus was tokenised for this model.

    Raises:
        ConfigError: The model's tokenizer has other ids than the corpus's.
    """
    of_corpus = corpus_tokenizer(corpus)
    if model.source in SHAPES_ONLY or of_corpus is None:
        return
    of_model = model_tokenizer(model.source)
    if of_model is None:
        return  # nothing to compare
    if of_model.get_vocab() != of_corpus.get_vocab():
        assert corpus.tokenizer is not None
        raise ConfigError(
            f"the corpus was made with the tokenizer {corpus.tokenizer.name!r}; the model {model.source!r} has another",
            "Prepare the corpus with the model's own tokenizer: `drpruning prepare OUT --tokenizer MODEL ...`",
        )
