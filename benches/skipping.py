"""Time a pruning run with and without sparse forward passes: `python benches/skipping.py`.

The same run is executed twice, once with pruned units masked and once with pruned units skipped. Steps alternate, so
that both runs see the same load of the machine. Prints the ratio of their times over the run and by quarter, the
largest difference of their losses, and the units that the lookahead predicts in excess.
"""

from __future__ import annotations

import copy
import statistics
import time

import click
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drpruning.pruning import MaskedModel, Target, parameter_count
from drpruning.pruning.learning_rates import max_adam_step
from drpruning.pruning.sizes import expected_sparsity

GATE_RATE, MULTIPLIER_RATE, QUADRATIC, BETAS = 0.2, 0.02, 50.0, (0.9, 0.95)  # as in the quickstart


class Side:
    """One of the two runs."""

    def __init__(self, masked: MaskedModel, skip_pruned_units: bool) -> None:
        self.masked = masked.train()
        masked.skip_pruned_units = skip_pruned_units
        groups = masked.parameter_groups()
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups["weights"], "lr": 3e-4},
                {"params": groups["gates"], "lr": GATE_RATE},
                {"params": groups["multipliers"], "lr": MULTIPLIER_RATE, "maximize": True},
            ],
            betas=BETAS,
            weight_decay=0.0,
            fused=True,
        )
        self.num_active, self.num_predicted = 0, 0
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self, step: int, tokens: torch.Tensor) -> None:
        predicted = self.masked.lookahead.predicted
        started = time.perf_counter()
        generator, next_generator = (torch.Generator().manual_seed(number) for number in (step, step + 1))
        max_gate_step = max_adam_step(GATE_RATE, BETAS)
        self.masked.sample_masks(generator, next_generator=next_generator, max_gate_step=max_gate_step)
        loss = self.masked(tokens, labels=tokens).loss
        (loss + self.masked.constraint(step)).backward()
        num_active = sum(int((mask != 0).sum()) for mask in self.masked.masks().values()) if predicted else 0
        self.optimizer.step()
        self.masked.clamp_gates()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - started)
        if predicted is not None:
            self.num_active += num_active
            self.num_predicted += sum(int(rows.sum()) for rows in predicted.active.values())
        self.losses.append(loss.item())


@click.command()
@click.option("--hidden", default=512, show_default=True)
@click.option("--layers", default=6, show_default=True)
@click.option("--intermediate", default=1408, show_default=True)
@click.option("--vocabulary", default=1536, show_default=True)
@click.option("--rows", default=8, show_default=True)
@click.option("--length", default=128, show_default=True)
@click.option("--steps", default=200, show_default=True)
@click.option("--warmup", default=0.2, show_default=True, help="Fraction of the run over which the target is reached.")
def main(
    hidden: int, layers: int, intermediate: int, vocabulary: int, rows: int, length: int, steps: int, warmup: float
) -> None:
    """Time a run that prunes the blocks to about 40% of their parameters."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    heads = hidden // 64
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
    )
    target = Target(
        layers=round(0.84 * layers), hidden=hidden * 3 // 4, heads=heads * 3 // 4, intermediate=intermediate * 5 // 8
    )
    model = LlamaForCausalLM(config)
    masked = MaskedModel(model, target, warmup_steps=round(warmup * steps), quadratic_multiplier_init=QUADRATIC)
    whole, small = parameter_count(config, masked.source), parameter_count(config, masked.target)
    embedding = vocabulary * hidden
    blocks = (small - vocabulary * masked.target.sizes()["hidden"]) / (whole - embedding)
    print(f"{whole / 1e6:.1f}M to {small / 1e6:.1f}M parameters ({small / whole:.0%}; the blocks to {blocks:.0%})")
    sides = {"masking": Side(copy.deepcopy(masked), False), "skipping": Side(masked, True)}
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        # a structured text that can be learned: runs of consecutive ids
        start = torch.randint(vocabulary, (rows, length // 8, 1), generator=generator)
        tokens = ((start + torch.arange(8)) % vocabulary).flatten(1)
        for name in sorted(sides, reverse=bool(step % 2)):
            sides[name].step(step, tokens)
    seconds = {name: side.seconds for name, side in sides.items()}
    print(
        f"whole run: skipping takes {sum(seconds['skipping']) / sum(seconds['masking']):.2f} of the time of masking, "
        f"{sum(seconds['masking']) / sum(seconds['skipping']):.2f}x faster"
    )
    quarter = steps // 4
    for k in range(4):
        part = [statistics.median(seconds[name][k * quarter : (k + 1) * quarter]) for name in ("masking", "skipping")]
        print(
            f"  quarter {k + 1}: median step {part[0]:.3f} s masked, {part[1]:.3f} s skipped, {part[0] / part[1]:.2f}x"
        )
    differ = max(abs(a - b) for a, b in zip(sides["masking"].losses, sides["skipping"].losses, strict=True))
    print(f"losses differ by at most {differ:.1e} nats")
    excess = sides["skipping"].num_predicted / sides["skipping"].num_active - 1
    print(f"units that the lookahead predicts beyond the active ones: {excess:.1%}")
    expected, scheduled = expected_sparsity(masked), masked.scheduled_sparsity(steps)
    for kind in expected:
        print(f"  {kind}: expected sparsity {expected[kind]:.3f}, scheduled {scheduled[kind]:.3f}")


if __name__ == "__main__":
    main()
