"""`drpruning recipes`: list, print and copy the shipped recipes, and print the schema for editors."""

from __future__ import annotations

from pathlib import Path

import click

from drpruning.cli.options import complete_recipe, examples, json_option

SCHEMA = "drpruning-recipe.schema.json"


@click.group(
    invoke_without_command=True,
    short_help="List, print and copy the shipped recipes.",
    epilog=examples("""
  drpruning recipes
  drpruning recipes show quickstart
  drpruning recipes copy quickstart mine.yaml    # then: drpruning train mine.yaml"""),
)
@json_option()
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List the shipped recipes: commented YAML files, to run unchanged or to copy and change."""
    if context.invoked_subcommand is not None:
        return
    from drpruning.recipes import shipped_recipes

    shipped = shipped_recipes()
    if as_json:
        import json

        click.echo(json.dumps(shipped, indent=2, ensure_ascii=False))
        return
    width = max(len(recipe) for recipe in shipped)
    for recipe, purpose in shipped.items():
        click.echo(f"{recipe:<{width}}  {purpose}")


@recipes.command("show", short_help="Print a recipe.")
@click.argument("name", shell_complete=complete_recipe)
def recipes_show(name: str) -> None:
    """Print the recipe NAME with its comments."""
    from drpruning.recipes import recipe_text

    click.echo(recipe_text(name), nl=False)


@recipes.command("copy", short_help="Copy a recipe to a file.")
@click.argument("name", shell_complete=complete_recipe)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def recipes_copy(name: str, file: Path, force: bool) -> None:
    """Copy the recipe NAME to FILE, and next to it the JSON schema that its first lines name.

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
    click.echo(f"Edit the file, then: drpruning plan cost {file}; drpruning train {file}", err=True)


@recipes.command("schema", short_help="Print the JSON schema of recipes.")
def recipes_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    click.echo(schema_text(), nl=False)


def schema_text() -> str:
    """Return the schema of recipes as JSON."""
    import json

    from drpruning.config import RunConfig

    return json.dumps(RunConfig.model_json_schema(by_alias=True), indent=1) + "\n"
