"""How to train: what changes speed and safety."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.section import Fraction, Positive, Rate, Section


class TrainingConfig(Section):
    """How to train: what changes speed and safety, not what is learned."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="`auto`: the GPU where there is one")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the forward and backward pass; gates stay float32"
    )
    weight_format: Literal["float32", "bfloat16+low16", "bfloat16"] = Field(
        default="float32",
        description="what weights are kept in: `bfloat16+low16`: bfloat16 and the 16 bits that are left, to float32 "
        "exactly; `bfloat16`: rounded at random after each step",
    )
    optimizer_state_format: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32", description="what the optimizer's two moments are kept in"
    )
    threads: Positive | Literal["auto"] = Field(default="auto", description="CPU threads; `auto` measures a few steps")
    micro_batch_size: Positive | None = Field(default=None, description="rows per forward pass; missing: the batch")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.95), description="of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="of matrices; vectors do not decay")
    max_grad_norm: Rate = Field(default=1.0, description="largest norm of the weights' gradient")
    checkpoint_every: Positive = Field(default=100, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(default=2, description="checkpoints of the stage that stay")
    peak_tflops: Rate | None = Field(
        default=None, description="of the device, for the utilisation in the records; missing: by the card's name"
    )
    cross_entropy: Literal["auto", "plain", "chunked", "torch", "liger"] = Field(
        default="auto",
        description="`chunked` (and `auto`): logits exist for some tokens at a time; `plain`: for all at once; "
        "`torch`, `liger`: by their fused kernels",
    )
    cross_entropy_chunk: Positive | None = Field(
        default=None, description="tokens in a chunk; missing: by device and vocabulary"
    )
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] = Field(
        default="auto",
        description="attention function; `auto`: flex_attention for `data.document_mask` on a GPU in bfloat16, or sdpa",
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none",
        description="what is computed again in the backward pass to save memory: `selective` all but matrix products "
        "and attention, `full` whole blocks",
    )
    deterministic: bool = Field(
        default=False, description="the same bits in every run on the same GPU, by kernels that are slower"
    )
    compile: bool = Field(default=False, description="torch.compile each block; the first step takes minutes")
    logger: Literal["none", "tensorboard", "trackio", "wandb"] = Field(
        default="none", description="told of the records as well"
    )
    async_checkpoints: bool | None = Field(
        default=None, description="write checkpoints while training goes on; missing: where there is a GPU"
    )
    fsdp_shard: Positive | Literal["all", "node"] = Field(
        default="all", description="processes that share one copy of the weights; `node`: those of one node"
    )
    distributed_timeout_s: Rate = Field(
        default=1800.0, description="seconds that a process waits for another before it gives up"
    )
    max_skipped_steps: Positive = Field(
        default=8,
        description="steps in a row without a finite gradient after which the run goes back to the last checkpoint",
    )
    eval_tokens: Positive = Field(default=65536, description="held-out tokens per domain and evaluation, at most")
    final_eval_tokens: Positive = Field(
        default=1048576, description="held-out tokens per domain for the tables of finished models, at most"
    )
    eval_batch_size: Positive = Field(default=32, description="rows per forward pass of an evaluation")

    @model_validator(mode="after")
    def _narrow_weights_compute_in_bfloat16(self) -> Self:
        if self.weight_format != "float32" and self.dtype != "bfloat16":
            raise ValueError(f"weight_format {self.weight_format} need dtype bfloat16, got {self.dtype}")
        return self

    @model_validator(mode="after")
    def _kernels_of_others_promise_nothing(self) -> Self:
        promised = {"attention": ("auto", "eager", "sdpa"), "cross_entropy": ("auto", "plain", "chunked", "torch")}
        for name, kernels in promised.items():
            if self.deterministic and getattr(self, name) not in kernels:
                raise ValueError(
                    f"deterministic needs {name} to be one of {', '.join(kernels)}; got {getattr(self, name)}"
                )
        return self
