"""Measure whether gates reach the target for any number of steps: `python benches/gate_learning_rates.py`.

With ``--experts N`` each MLP is N experts, of which half are kept. With ``--families`` the tiny model of each supported
type is pruned instead, whose output layer is its own.

A small model that learns a structured text is pruned in runs of different lengths and seeds, with the rates of `auto`
for each length. Prints the distance of each kind's expected sparsity from its target at the end, and the loss of the
extracted model on new rows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import click
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3MoeConfig

from drpruning.pruning import MaskedModel, Target
from drpruning.pruning.architectures import ARCHITECTURES
from drpruning.pruning.learning_rates import HIGHEST, QUADRATIC_MULTIPLIER_INIT, MaskRates, mask_rates
from drpruning.pruning.sizes import expected_sparsity
from drpruning.pruning.verification import TinyModels, tiny_config

VOCABULARY, LENGTH, ROWS = 64, 16, 4
TARGET = Target(layers=3, hidden=24, heads=3, intermediate=32)


@dataclass(frozen=True)
class Outcome:
    """End of a run: expected minus target sparsity by kind, and the loss of the extracted model, nats per token."""

    misses: dict[str, float]
    loss: float


def prune(
    steps: int,
    seed: int,
    warmup: float,
    scale: tuple[float, float] = (1.0, 1.0),
    target: Target = TARGET,
    rates: MaskRates | None = None,
    quadratic_multiplier_init: float = QUADRATIC_MULTIPLIER_INIT,
    experts: int = 0,
    family: str | None = None,
) -> Outcome:
    """Prune the small model, or that of a model type; ``rates`` replaces `auto`."""
    torch.manual_seed(seed)
    if family is not None:
        tiny = TinyModels(tiny_config(AutoConfig.for_model(family), tied=False))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny.config)
        target = tiny.target
    else:
        model = small_model(experts)
        target = replace(target, intermediate=16, experts=experts // 2) if experts else target
    masked = MaskedModel(
        model,
        target,
        warmup_steps=round(warmup * steps),
        quadratic_multiplier_init=quadratic_multiplier_init,
        skip_pruned_units=False,
    ).train()
    groups, rates = masked.parameter_groups(), rates or mask_rates(steps)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups["weights"], "lr": 1e-3},
            {"params": groups["gates"], "lr": scale[0] * rates.gates},
            {"params": groups["multipliers"], "lr": scale[1] * rates.multipliers, "maximize": True},
        ],
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        tokens = draw_rows(ROWS, generator)
        masked.sample_masks(generator)
        (masked(tokens, labels=tokens).loss + masked.constraint(step)).backward()
        optimizer.step()
        masked.clamp_gates()
        optimizer.zero_grad()
    expected, target_values = expected_sparsity(masked), masked.target_sparsity()
    rows = draw_rows(256, torch.Generator().manual_seed(2**32 + seed))
    with torch.no_grad():
        loss = masked.eval()(rows, labels=rows).loss.item()
    return Outcome({kind: expected[kind] - target_values[kind] for kind in expected}, loss)


def small_model(experts: int) -> PreTrainedModel:
    """Return a model with MLPs of 48 units, or of experts with 24 units, of which a token passes two."""
    config: LlamaConfig | Qwen3MoeConfig
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    if experts:
        config = Qwen3MoeConfig(
            **shape, num_key_value_heads=4, head_dim=8, moe_intermediate_size=24, num_experts=experts,
            num_experts_per_tok=2, norm_topk_prob=True, tie_word_embeddings=True,
        )  # fmt: skip
    else:
        config = LlamaConfig(**shape, intermediate_size=48, tie_word_embeddings=True)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def draw_rows(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Return runs of eight consecutive ids: int64 [rows, LENGTH]."""
    start = torch.randint(VOCABULARY, (rows, LENGTH // 8, 1), generator=generator)
    return ((start + torch.arange(8)) % VOCABULARY).flatten(1)


@click.command()
@click.option("--steps", "lengths", multiple=True, type=int, default=[200, 800, 3200], show_default=True)
@click.option("--warmup", "warmups", multiple=True, type=float, default=[0.2, 0.5], show_default=True)
@click.option("--seeds", default=20, show_default=True)
@click.option("--gates", default=1.0, show_default=True, help="Factor on the rate of the gates.")
@click.option("--multipliers", default=1.0, show_default=True, help="Factor on the rate of the multipliers.")
@click.option(
    "--quadratic",
    default=QUADRATIC_MULTIPLIER_INIT,
    show_default=True,
    help="Initial value of the quadratic multipliers.",
)
@click.option("--experts", default=0, show_default=True, help="Experts of each MLP; 0: none.")
@click.option("--families", is_flag=True, help="Prune the tiny model of each supported type.")
@click.option("--published", is_flag=True, help="Use rates of 1.0, as in the recipes of the papers, instead of `auto`.")
def main(
    lengths: list[int],
    warmups: list[float],
    seeds: int,
    gates: float,
    multipliers: float,
    quadratic: float,
    experts: int,
    families: bool,
    published: bool,
) -> None:
    """Print the largest distances over seeds, the number of runs within 0.01, and the mean loss after extraction."""
    torch.set_num_threads(1)
    rates = MaskRates(HIGHEST, HIGHEST) if published else None
    print("steps  warm-up  within 0.01   loss extracted       largest distance by kind")
    for steps, warmup, family in itertools.product(lengths, warmups, ARCHITECTURES if families else [None]):
        runs = [
            prune(
                steps,
                seed,
                warmup,
                (gates, multipliers),
                rates=rates,
                quadratic_multiplier_init=quadratic,
                experts=experts,
                family=family,
            )
            for seed in range(seeds)
        ]
        met = sum(all(abs(miss) <= 0.01 for miss in run.misses.values()) for run in runs)
        most = {kind: max(abs(run.misses[kind]) for run in runs) for kind in runs[0].misses}
        loss = sum(run.loss for run in runs) / seeds
        print(
            f"{steps:5}  {warmup:7}  {met:3} of {seeds:<3}    {loss:18.4f}   "
            + "  ".join(f"{kind} {distance:.4f}" for kind, distance in most.items())
            + ("" if family is None else f"  {family}"),
            flush=True,
        )


if __name__ == "__main__":
    main()
