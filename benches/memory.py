"""Planned against measured memory of a training step: what torch's CPU allocator gave out at its peak.

    python benches/memory.py

Each row is a small model in settings of its own. The measured step is the loop's: the same model, optimizer, losses,
micro-batches and clipping, in real tensors. The peak is the largest sum of torch's own record of allocations.
"""

from __future__ import annotations

import sys

import torch
from torch.profiler import ProfilerActivity, profile

from drpruning.planning.memory import Played, stage_memory
from drpruning.planning.model_shape import ModelShape
from drpruning.planning.recipe import find
from drpruning.pruning import MaskedModel, Target
from drpruning.train.execution import prepare
from drpruning.train.losses import token_losses
from drpruning.train.optim import make_optimizer

SHAPE = ModelShape(
    model_type="llama",
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
TARGET = "prune.target={layers: 4, hidden: 192, heads: 2, kv_heads: 1, intermediate: 512}"
COMMON = [TARGET, "data.seq_len=256", "training.evaluation_batch_size=4", "training.loss=auto"]
SETTINGS = {
    "float32": [],
    "bfloat16": ["training.dtype=bfloat16"],
    "one micro-batch": ["training.micro_batch_size=8"],
    "full checkpointing": ["training.activation_checkpointing=full"],
    "selective checkpointing": ["training.activation_checkpointing=selective"],
    "plain loss": ["training.loss=plain"],
    "bfloat16 moments": ["training.moments=bfloat16"],
    "low16, bfloat16 moments": [
        "training.dtype=bfloat16",
        "training.weights=bfloat16+low16",
        "training.moments=bfloat16",
    ],
    "bfloat16 weights, int8 moments": [
        "training.dtype=bfloat16",
        "training.weights=bfloat16",
        "training.moments=int8",
    ],
}


def overrides(settings: list[str]) -> list[str]:
    stages = [f"{stage}.batch_size=8" for stage in ("pretrain", "prune", "continue")]
    micro = [] if any("micro_batch_size" in item for item in settings) else ["training.micro_batch_size=4"]
    return [*COMMON, *stages, *micro, *settings]


def measured(settings: list[str], name: str, shape: ModelShape) -> int:
    """Bytes at the peak of two real steps and an evaluation."""
    config, _ = find("quickstart", overrides(settings))
    played = Played(config, name, shape, "cpu")
    stage, training, length = config.stage(name), played.training, config.data.seq_len
    sizes = Target.of(shape).sizes()  # type: ignore[arg-type] # has what is read
    if name == "continue":
        sizes = Target(**config.prune.target.model_dump()).resolve(shape).sizes()  # type: ignore[arg-type]
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.dtype == "bfloat16")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        model = played.model(sizes)
        prepare(model, training)
        optimizer = make_optimizer(model, stage, training)
        model.train()
        rows = training.micro_batch_size or stage.batch_size
        for _ in range(2):
            if isinstance(model, MaskedModel):
                model.sample_masks()
            for tokens in torch.randint(shape.vocab_size, (stage.batch_size, length)).split(rows):
                with autocast:
                    total = token_losses(model, tokens).sum()
                (total / stage.batch_size / length).backward()
                del total
            if isinstance(model, MaskedModel):
                model.constraint(1).backward()
            torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad(), autocast:
            model.eval()
            token_losses(model, torch.zeros(training.evaluation_batch_size, length, dtype=torch.long))
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def planned(settings: list[str], name: str, shape: ModelShape) -> int:
    config, _ = find("quickstart", overrides(settings))
    return stage_memory(config, name, shape, device="cpu").total


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("| settings | stage | planned MiB | measured MiB | ratio |\n|---|---|---|---|---|")
    ratios = []
    for title, settings in SETTINGS.items():
        for name in ("prune", "continue"):
            plan, real = planned(settings, name, SHAPE), measured(settings, name, SHAPE)
            ratios.append(plan / real)
            print(f"| {title} | {name} | {plan / 2**20:.1f} | {real / 2**20:.1f} | {ratios[-1]:.3f} |", flush=True)
    print(f"ratios {min(ratios):.3f} to {max(ratios):.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
