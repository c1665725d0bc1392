"""The `drpruning` command: one file per command; each imports what it uses when it runs, so that --help is instant."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

COMMANDS = (
    "train",
    "prepare",
    "inspect",
    "sample",
    "plan",
    "report",
    "eval",
    "export",
    "weights",
    "fit",
    "recipes",
)


class Commands(click.Group):
    """A group that knows its commands by name and loads the file of one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from the file of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"drpruning.cli.{cmd_name}").command
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(message="drpruning %(version)s")
def group() -> None:
    """Make a small language model of a large one, good in every domain.

    Try it: `drpruning train quickstart` prunes a model on this machine in minutes.

    Exit codes: 0 done, 2 wrong input (what and what to do is printed), 130 interrupted with everything saved.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line; turns errors of this package into two lines and an exit code."""
    from drpruning.errors import DrpruningError

    try:
        return group.main(args=arguments, prog_name="drpruning")
    except DrpruningError as error:
        fail(type(error).__name__, error.message, error.next_step, error.exit_code)
    except OSError as error:
        fail(type(error).__name__, str(error), None, 2)


def fail(kind: str, message: str, next_step: str | None, exit_code: int) -> None:
    """Prints an error in at most two lines on stderr and exits."""
    click.echo(f"{click.style(kind, fg='red', bold=True)}: {' '.join(message.split())}", err=True)
    if next_step is not None:
        click.echo(next_step, err=True)
    sys.exit(exit_code)
