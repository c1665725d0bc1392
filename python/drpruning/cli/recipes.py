"""`drpruning recipes`: what is shipped, and what is in it."""

from __future__ import annotations

import click


@click.command(
    short_help="List the shipped recipes, or print one.",
    epilog="""\b
Examples:
  drpruning recipes
  drpruning recipes quickstart > mine.yaml    # a copy to change; then: drpruning train mine.yaml""",
)
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the shipped recipes, or print the one called NAME."""
    from drpruning.recipes import recipe_text, shipped_recipes

    if name is not None:
        click.echo(recipe_text(name), nl=False)
        return
    recipes = shipped_recipes()
    width = max(len(recipe) for recipe in recipes)
    for recipe, purpose in recipes.items():
        click.echo(f"{recipe:<{width}}  {purpose}")
