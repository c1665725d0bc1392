"""`drpruning plan`: what a recipe will make and cost, before anything is spent."""

from __future__ import annotations

import click

PEAK = 989e12  # bfloat16 FLOP/s of an H100 SXM, dense, from its data sheet
UTILISATION = 0.4


@click.command(
    short_help="Show what a recipe makes and costs.",
    epilog="""\b
Examples:
  drpruning plan llama2-7b-to-1.3b
  drpruning plan quickstart --set prune.target.layers=3 --json""",
)
@click.argument("recipe")
@click.option("--set", "overrides", metavar="A.B=C", multiple=True, help="Change one setting; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE and print its target shape, parameters, tokens, memory and arithmetic. Nothing is downloaded."""
    from drpruning.recipes import load_recipe

    config = load_recipe(recipe, overrides)
    from dataclasses import asdict

    from drpruning.train.plan import Plan, plan

    planned: Plan = plan(config)
    if as_json:
        import json

        click.echo(json.dumps(asdict(planned), indent=2))
        return
    from rich.console import Console

    from drpruning.cli.tables import new_table

    console = Console(highlight=False)
    console.print(f"{config.name}: {config.model.source}")
    shapes = new_table(["", *planned.source, "parameters"])
    for name, sizes, count in (
        ("source", planned.source, planned.source_parameters),
        ("target", planned.target, planned.target_parameters),
    ):
        shapes.add_row(name, *(f"{size:,}" for size in sizes.values()), f"{count:,}")
    console.print(shapes)
    stages = new_table(["stage", "steps", "tokens", "states GiB", "logits GiB", "PFLOP", "H100 hours"])
    for stage in planned.stages:
        stages.add_row(
            stage.name,
            f"{stage.steps:,}",
            _short(stage.tokens),
            f"{stage.state_bytes / 2**30:.2f}",
            f"{stage.logit_bytes / 2**30:.2f}",
            f"{stage.flops / 1e15:,.3g}" if stage.flops < 1e18 else f"{stage.flops / 1e15:,.0f}",
            f"{stage.flops / PEAK / UTILISATION / 3600:,.1f}",
        )
    console.print(stages)
    console.print(
        "states: float32 weights, gradients and AdamW moments; logits: of one micro-batch; activations come on top.\n"
        f"H100 hours: at {UTILISATION:.0%} of its bfloat16 peak, training steps only.",
        style="dim",
    )


def _short(tokens: int) -> str:
    """Tokens in millions or billions: 0.42 B."""
    return f"{tokens / 1e9:.2f} B" if tokens >= 1e8 else f"{tokens / 1e6:.2f} M"
