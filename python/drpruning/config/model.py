"""Where the large model comes from."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.section import Positive, Rate, Section

SHAPES_ONLY = ("pretrain", "scratch")
"""Values of ``model.source`` that name no model: its shape is the recipe's ``model.architecture``."""


class ArchitectureConfig(Section):
    """Shape of a Llama-type model, in units of its Hugging Face configuration."""

    family: Literal["llama", "mistral", "qwen2", "qwen3"] = Field(default="llama", description="model_type")
    layers: Positive = Field(description="num_hidden_layers")
    hidden: Positive = Field(description="hidden_size")
    heads: Positive = Field(description="num_attention_heads")
    kv_heads: Positive | None = Field(default=None, description="num_key_value_heads; missing: as many as heads")
    head_dim: Positive | None = Field(default=None, description="missing: hidden / heads")
    intermediate: Positive = Field(description="intermediate_size, the width of the FFN")
    vocabulary: Positive | None = Field(default=None, description="rows of the embedding; missing: the tokenizer's")
    positions: Positive = Field(default=4096, description="max_position_embeddings")
    rope_theta: Rate = Field(default=10000.0, description="base of the rotary embedding")
    tied_embeddings: bool = Field(default=True, description="whether the output layer is the embedding")

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> Self:
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; "
                "each key/value head serves the same number of query heads"
            )
        return self

    def transformers_sizes(self, vocabulary: int) -> dict[str, Any]:
        """Sizes under the names that a configuration of transformers has for them.

        Args:
            vocabulary: Rows of the embedding where the architecture does not say.
        """
        return {
            "vocab_size": self.vocabulary or vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads or self.heads,
            "head_dim": self.head_dim or self.hidden // self.heads,
            "max_position_embeddings": self.positions,
            "tie_word_embeddings": self.tied_embeddings,
        }


class ModelConfig(Section):
    """Where the large model comes from."""

    source: str = Field(
        description="a Hugging Face folder or hub name; `pretrain` to train it on the spot; or `scratch` for none: the "
        "target shape is trained from new weights in the continue stage, a yardstick for what pruning saves"
    )
    architecture: ArchitectureConfig | None = Field(
        default=None,
        description="the model to pretrain; for other sources what is expected, to plan without a download",
    )

    @model_validator(mode="after")
    def _pretrain_needs_architecture(self) -> Self:
        if self.source in SHAPES_ONLY and self.architecture is None:
            raise ValueError(f"source `{self.source}` needs `architecture`: the shape of the large model")
        return self
