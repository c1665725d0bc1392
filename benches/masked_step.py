"""Time a training step with and without masks: `python benches/masked_step.py`.

The same model runs forward, backward and AdamW with and without masks; steps alternate in one process, and pruned units
are not skipped.
"""

from __future__ import annotations

import copy
import statistics
import time

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.pruning import MaskedModel, Target


@click.command()
@click.option("--pairs", default=9, show_default=True)
@click.option("--rows", default=4, show_default=True)
@click.option("--length", default=256, show_default=True)
def main(pairs: int, rows: int, length: int) -> None:
    """Print the median and the quartiles of the ratios."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=1536,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    plain = LlamaForCausalLM(config).train()
    target = Target(layers=3, hidden=384, heads=6, intermediate=864)
    masked = MaskedModel(copy.deepcopy(plain), target, skip_pruned_units=False).train()
    optimizers = {model: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in (plain, masked)}

    def seconds(model: torch.nn.Module, tokens: torch.Tensor) -> float:
        started = time.perf_counter()
        if isinstance(model, MaskedModel):
            model.sample_masks()
        loss = model(tokens, labels=tokens, use_cache=False).loss
        (loss + model.constraint(1) if isinstance(model, MaskedModel) else loss).backward()
        optimizers[model].step()
        if isinstance(model, MaskedModel):
            model.clamp_gates()
        optimizers[model].zero_grad()
        return time.perf_counter() - started

    ratios = []
    for pair in range(pairs + 1):
        tokens = torch.randint(config.vocab_size, (rows, length))
        taken = {model: seconds(model, tokens) for model in ((plain, masked) if pair % 2 else (masked, plain))}
        if pair:  # the first pair is a warm-up
            ratios.append(taken[masked] / taken[plain])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"masked / unmasked, {pairs} pairs: {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
