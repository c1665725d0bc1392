"""`drpruning recipes`: what is shipped, what is in it, a copy to change, and the schema that editors complete from."""

from __future__ import annotations

from pathlib import Path

import click

SCHEMA = "drpruning-recipe.schema.json"


def complete_recipe(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Names of shipped recipes, for the shell's completion."""
    folder = Path(__file__).parents[1] / "recipes"  # without the imports that reading recipes needs
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem.startswith(incomplete))


@click.group(
    "recipes",
    invoke_without_command=True,
    epilog="""\b
Examples:
  drpruning recipes
  drpruning recipes show quickstart
  drpruning recipes copy quickstart mine.yaml    # then: drpruning train mine.yaml""",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the shipped recipes: commented YAML files, to run as they are or to copy and change."""
    if context.invoked_subcommand is not None:
        return
    from drpruning.recipes import shipped_recipes

    recipes = shipped_recipes()
    if as_json:
        import json

        click.echo(json.dumps(recipes, indent=2, ensure_ascii=False))
        return
    width = max(len(recipe) for recipe in recipes)
    for recipe, purpose in recipes.items():
        click.echo(f"{recipe:<{width}}  {purpose}")


@command.command("show", short_help="Print a recipe.")
@click.argument("name", shell_complete=complete_recipe)
def show(name: str) -> None:
    """Print the recipe NAME with its comments."""
    from drpruning.recipes import recipe_text

    click.echo(recipe_text(name), nl=False)


@command.command("copy", short_help="Copy a recipe to a file of your own.")
@click.argument("name", shell_complete=complete_recipe)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def copy(name: str, file: Path, force: bool) -> None:
    """Copy the recipe NAME to FILE, and beside it the JSON schema that its first lines name.

    Editors with a YAML language server then complete and check its settings.
    """
    from drpruning.errors import ConfigError
    from drpruning.files import write_text
    from drpruning.recipes import recipe_text

    text = recipe_text(name)
    if file.exists() and not force:
        raise ConfigError(f"{file} exists already", "Choose another name, or replace it with --force.")
    purpose, _, rest = text.partition("\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file.parent / SCHEMA, schema_text())
    write_text(file, f"{purpose}\n# yaml-language-server: $schema={SCHEMA}\n{rest}")
    click.echo(file)
    click.echo(f"Change it, then: drpruning plan {file}; drpruning train {file}", err=True)


@command.command("schema", short_help="Print the JSON schema of recipes.")
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    click.echo(schema_text(), nl=False)


def schema_text() -> str:
    """The schema that a recipe is checked with, as JSON."""
    import json

    from drpruning.config import RunConfig

    return json.dumps(RunConfig.model_json_schema(by_alias=True), indent=1) + "\n"
