"""The section ``model``: the large model."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.section import Positive, Rate, Section

SHAPES_ONLY = ("pretrain", "scratch")
"""Values of ``model.source`` that name no model; the shape is ``model.architecture``."""


class ArchitectureConfig(Section):
    """Shape of a Llama-type model, in units of its Hugging Face configuration."""

    family: Literal["llama", "mistral", "qwen2", "qwen3"] = Field(default="llama", description="Value of model_type.")
    layers: Positive = Field(description="Number of blocks (num_hidden_layers).")
    hidden: Positive = Field(description="Width of the residual stream (hidden_size).")
    heads: Positive = Field(description="Number of query heads (num_attention_heads).")
    kv_heads: Positive | None = Field(
        default=None, description="Number of key/value heads (num_key_value_heads). Default: the number of heads."
    )
    head_dim: Positive | None = Field(default=None, description="Width of a head. Default: hidden / heads.")
    intermediate: Positive = Field(description="Width of the FFN (intermediate_size).")
    vocabulary: Positive | None = Field(default=None, description="Rows of the embedding. Default: the tokenizer's.")
    positions: Positive = Field(default=4096, description="Maximum number of positions (max_position_embeddings).")
    rope_theta: Rate = Field(default=10000.0, description="Base of the rotary embedding.")
    tied_embeddings: bool = Field(default=True, description="Whether the output layer shares the embedding matrix.")

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> Self:
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; "
                "each key/value head serves the same number of query heads"
            )
        return self

    def transformers_sizes(self, vocabulary: int) -> dict[str, Any]:
        """Return the sizes by their names in a configuration of transformers.

        Args:
            vocabulary: Rows of the embedding if the architecture has no number.
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
    """The large model: a trained one, or the shape of one to train."""

    source: str = Field(
        description="Large model: a Hugging Face folder or hub name; `pretrain` to train it in the run; or `scratch` "
        "for none: the stage continue then trains the target shape from new weights, as a baseline for pruning."
    )
    architecture: ArchitectureConfig | None = Field(
        default=None,
        description="Shape of the model to pretrain. For other sources the expected shape, to plan without a download.",
    )

    @model_validator(mode="after")
    def _pretrain_needs_architecture(self) -> Self:
        if self.source in SHAPES_ONLY and self.architecture is None:
            raise ValueError(f"source `{self.source}` needs `architecture`: the shape of the large model")
        return self
