"""`drpruning train`: a recipe from start to end, or on from where it stopped."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from drpruning.cli.recipes import complete_recipe


@click.command(
    epilog="""\b
Examples:
  drpruning train quickstart
  drpruning train quickstart --out runs/again --set mixture.rho=0.2 --set prune.target.layers=3
  drpruning train quickstart --out runs/again --resume
  drpruning train quickstart --watch      # and look at it live in the browser
  drpruning train my-recipe.yaml --set mixture.strategy=constant
  drpruning train my-recipe.yaml --miniature   # the optimisation alone, on two cores""",
)
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/NAME-STRATEGY]")
@click.option(
    "--set", "overrides", metavar="A.B=C", multiple=True, help="Change one setting of the recipe; repeatable."
)
@click.option("--watch", is_flag=True, help="Show the run live in the browser, on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, bit for bit as if it had not stopped.")
@click.option(
    "--miniature",
    is_flag=True,
    help="Train a tiny model on made-up text of the recipe's domains: steps, rates, schedules, evaluations, bounds and "
    "strategy are the recipe's; width, depth, batch, row length, text and reference losses are not. Exit with 1 if a "
    "mask target is missed by more than 1%, a loss rises by more than 0.02 at the cut, or a number is not finite.",
)
@click.option(
    "--continue-steps",
    type=click.IntRange(1),
    help="With --miniature: steps of the stage continue, at most. Warm-up and decay are fractions of the stage, and "
    "evaluations come as much sooner, so that they are as many as the recipe's.  [default: 480]",
)
def command(
    recipe: str | None,
    out: Path | None,
    overrides: tuple[str, ...],
    watch: bool,
    as_json: bool,
    resume: bool,
    miniature: bool,
    continue_steps: int | None,
) -> None:
    """Prune a model, or continue its pretraining, as RECIPE says: a YAML file, or the name of a shipped recipe.

    Ctrl-C finishes the step, writes a checkpoint, and says how to go on; a second one stops at once.
    """
    from drpruning.errors import ConfigError
    from drpruning.recipes import load_recipe

    if recipe is None:
        _show_recipes()
        return
    config = load_recipe(recipe, overrides)
    if continue_steps is not None and not miniature:
        raise ConfigError("--continue-steps is about a miniature", "Add --miniature, or --set continue.steps=N.")
    if miniature:
        from drpruning.recipes.miniature import CONTINUE_STEPS
        from drpruning.recipes.miniature import miniature as in_miniature

        config = in_miniature(config, continue_steps=continue_steps or CONTINUE_STEPS)
    folder = out or Path("runs") / f"{config.name}-{config.mixture.strategy}"

    from drpruning.cli.live_page import watched_beside
    from drpruning.cli.training import speaks, train_and_show

    scaled = ["--miniature"] * miniature + ([] if continue_steps is None else ["--continue-steps", str(continue_steps)])
    again = _again(recipe, folder, overrides, scaled)
    with watched_beside(folder) if watch and speaks() else nullcontext():
        train_and_show(config, folder, resume=resume, again=again, as_json=as_json, judged=miniature)


def _show_recipes() -> None:
    from drpruning.recipes import shipped_recipes

    click.echo("Which recipe? A YAML file, or one of these:\n")
    for name, purpose in shipped_recipes().items():
        click.echo(f"  {name:<22} {purpose}")
    click.echo(f"\n{_next_step()}")


def _next_step() -> str:
    """What is sensible now: to try it, to go on with the latest run that has not ended, or to look at it."""
    from drpruning.report.read.run import Run

    latest = max(Path("runs").glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime, default=None)
    if latest is None or not (latest.parent / "recipe.yaml").is_file():
        return "Try: drpruning train quickstart"
    folder = latest.parent
    if Run.open(folder).ended:
        return f"The latest run is complete: drpruning report {folder}"
    return f"The latest run has not ended: drpruning train {folder / 'recipe.yaml'} --out {folder} --resume"


def _again(recipe: str, folder: Path, overrides: tuple[str, ...], scaled: list[str]) -> str:
    """The command that goes on with this run."""
    import shlex

    settings = [word for item in overrides for word in ("--set", item)]
    return shlex.join(["drpruning", "train", recipe, "--out", str(folder), *settings, *scaled, "--resume"])
