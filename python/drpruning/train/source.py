"""The large model: what a recipe says of it, read or built; and the tokenizer that goes with it."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from drpruning.config import SHAPES_ONLY, Architecture, ModelConfig
from drpruning.corpus import Corpus
from drpruning.errors import ConfigError
from drpruning.hf.models import read_config, text_config
from drpruning.hf.tokenizers import corpus_tokenizer, model_tokenizer
from drpruning.train.any_model import shape_of

CONFIGS: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def describe(architecture: Architecture, vocabulary: int, end_token: int | None = None) -> Any:
    """The transformers configuration of an architecture.

    Args:
        architecture: Shape, as the recipe gives it.
        vocabulary: Rows of the embedding where the architecture does not say.
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
    """The configuration of the large model, without its weights.

    Raises:
        ConfigError: There is no such model, it is not what ``model.architecture`` says, or its embedding is smaller
            than the corpus's vocabulary.
    """
    tokenizer = corpus.tokenizer
    vocabulary = None if tokenizer is None else tokenizer.vocab_size
    end_token = None if tokenizer is None else tokenizer.eos_id
    if model.source in SHAPES_ONLY:
        assert model.architecture is not None
        if vocabulary is None and model.architecture.vocabulary is None:
            raise ConfigError("the corpus names no tokenizer, so model.architecture.vocabulary is needed")
        config = describe(model.architecture, vocabulary or 0, end_token)
    else:
        config = read_config(model.source)
        if model.architecture is not None:
            _compare(model.architecture, config)
    rows = text_config(config).vocab_size
    if vocabulary is not None and vocabulary > rows:
        raise ConfigError(
            f"the corpus has {vocabulary} token ids, the model {model.source!r} an embedding of {rows}",
            "Prepare the corpus with the model's own tokenizer: `drpruning prepare OUT --tokenizer MODEL ...`",
        )
    return config


def _compare(wanted: Architecture, config: Any) -> None:
    found = shape_of(config)
    for name in ("layers", "hidden", "heads", "intermediate"):
        got = found.get(name)
        if getattr(wanted, name) != got:
            raise ConfigError(f"model.architecture.{name} is {getattr(wanted, name)}, but the model has {got}")


def build(config: Any, seed: int) -> Any:
    """A new float32 model with weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def check_tokenizer(model: ModelConfig, corpus: Corpus) -> None:
    """Makes sure that the corpus was tokenised for this model.

    Raises:
        ConfigError: The model brings a tokenizer that gives other ids than the corpus's.
    """
    ours = corpus_tokenizer(corpus)
    if model.source in SHAPES_ONLY or ours is None:
        return
    theirs = model_tokenizer(model.source)
    if theirs is None:
        return  # nothing to compare
    if theirs.get_vocab() != ours.get_vocab():
        assert corpus.tokenizer is not None
        raise ConfigError(
            f"the corpus was made with the tokenizer {corpus.tokenizer.name!r}; the model {model.source!r} has another",
            "Prepare the corpus with the model's own tokenizer: `drpruning prepare OUT --tokenizer MODEL ...`",
        )
