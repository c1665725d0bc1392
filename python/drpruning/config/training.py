"""The section ``training``: hardware, memory, optimizer, evaluation and checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drpruning.config.section import Fraction, Positive, Rate, Section


class TrainingConfig(Section):
    """Settings of all stages: hardware, memory, optimizer, evaluation and checkpoints."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device; `auto` is the GPU if there is one, else the CPU."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Data type of the forward and backward pass. Gates stay float32."
    )
    weight_format: Literal["float32", "bfloat16+low16", "bfloat16"] = Field(
        default="float32",
        description="Storage format of the weights. `bfloat16+low16` stores the bfloat16 value and the remaining 16 "
        "bits of the float32 value, without loss. `bfloat16` uses stochastic rounding after each step.",
    )
    optimizer_state_format: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32", description="Storage format of the two moments of AdamW."
    )
    threads: Positive | Literal["auto"] = Field(
        default="auto", description="Number of CPU threads; `auto` measures a few steps and takes the fastest number."
    )
    micro_batch_size: Positive | None = Field(
        default=None, description="Rows per forward pass. Default: the batch of the process."
    )
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.95), description="Betas of AdamW.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Weight decay of AdamW for matrices. Vectors have none."
    )
    max_grad_norm: Rate = Field(default=1.0, description="Maximum L2 norm of the weights' gradient.")
    checkpoint_every: Positive = Field(default=100, description="Optimizer steps between checkpoints.")
    keep_checkpoints: Positive = Field(default=2, description="Number of checkpoints of the stage to keep.")
    peak_tflops: Rate | None = Field(
        default=None,
        description="Peak throughput of the device in TFLOP/s, for the utilisation in the records. Default: the value "
        "for the name of the device.",
    )
    cross_entropy: Literal["auto", "plain", "chunked", "torch", "liger"] = Field(
        default="auto",
        description="Implementation of the cross-entropy. `chunked` (and `auto`) computes the logits of a chunk of "
        "tokens at a time, `plain` all logits at once. `torch` and `liger` use the fused kernels of these packages.",
    )
    cross_entropy_chunk: Positive | None = Field(
        default=None, description="Tokens per chunk of logits. Default: a number for the device and the vocabulary."
    )
    attention: Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] = Field(
        default="auto",
        description="Attention implementation. `auto` is flex_attention for `data.document_mask` on a GPU in bfloat16, "
        "else sdpa.",
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        default="none",
        description="Activations that the backward pass recomputes to save memory. `selective` recomputes all except "
        "matrix products and attention, `full` whole blocks.",
    )
    deterministic: bool = Field(
        default=False, description="Use slower kernels that give the same bits in every run on the same GPU."
    )
    compile: bool = Field(
        default=False, description="Compile each block with torch.compile. The first step takes minutes."
    )
    logger: Literal["none", "tensorboard", "trackio", "wandb"] = Field(
        default="none", description="Experiment tracker that receives the records, in addition to metrics.jsonl."
    )
    async_checkpoints: bool | None = Field(
        default=None, description="Write checkpoints in the background during training. Default: only with a GPU."
    )
    fsdp_shard: Positive | Literal["all", "node"] = Field(
        default="all",
        description="Number of processes that share one copy of the weights (FSDP2). `node`: the processes of one "
        "node.",
    )
    distributed_timeout_s: Rate = Field(
        default=1800.0, description="Seconds that a process waits for another process before the run stops."
    )
    max_skipped_steps: Positive = Field(
        default=8,
        description="Number of consecutive steps with a gradient that is not finite, after which the run rolls back to "
        "the last checkpoint.",
    )
    eval_tokens: Positive = Field(
        default=65536, description="Maximum number of validation tokens per domain in an evaluation during training."
    )
    final_eval_tokens: Positive = Field(
        default=1048576,
        description="Maximum number of test tokens per domain in the evaluation of finished models.",
    )
    eval_batch_size: Positive = Field(default=32, description="Rows per forward pass of an evaluation.")

    @model_validator(mode="after")
    def _narrow_weights_compute_in_bfloat16(self) -> Self:
        if self.weight_format != "float32" and self.dtype != "bfloat16":
            raise ValueError(f"weight_format {self.weight_format} needs dtype bfloat16, got {self.dtype}")
        return self

    @model_validator(mode="after")
    def _kernels_are_deterministic(self) -> Self:
        deterministic = {"attention": ("auto", "eager", "sdpa"), "cross_entropy": ("auto", "plain", "chunked", "torch")}
        for name, kernels in deterministic.items():
            if self.deterministic and getattr(self, name) not in kernels:
                raise ValueError(
                    f"deterministic needs {name} to be one of {', '.join(kernels)}; got {getattr(self, name)}"
                )
        return self
