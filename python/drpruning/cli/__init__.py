"""The `drpruning` command: one file per command; each imports what it uses when it runs, so that --help is instant."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

COMMANDS = {
    "train": "Prune a model as a recipe says.",
    "compare": "Compare methods in paired runs, with intervals.",
    "prepare": "Turn text into a tokenised corpus.",
    "inspect": "Show what a corpus holds.",
    "sample": "Try a mixture and measure the loader.",
    "plan": "Show what a recipe makes and costs, or find a shape for a budget.",
    "report": "Write report.html of a run, or watch it live.",
    "eval": "Measure models on held-out text or tasks.",
    "benchmark": "Build a benchmark of a corpus's domains.",
    "export": "Cut a model down at once, or write it as GGUF.",
    "weights": "Say what the mixture should be now.",
    "fit": "Fit the scaling law of each domain.",
    "recipes": "List, show and copy the shipped recipes.",
}
"""Each with its purpose, which is here so that the list of commands needs none of their files."""
PIPE_CLOSED = 141  # as shells report a process whose reader has gone
EXIT_CODES = (
    "Exit codes: 0 done, 1 a miniature failed, 2 wrong input (two lines say what, and what to do), 3 disk, "
    "4 process lost, 130 interrupted."
)


class ReaderGoneError(Exception):
    """What we print to has been closed. Of a `BrokenPipeError` click makes exit code 1 on its own."""


class Commands(click.Group):
    """A group that knows its commands by name and loads the file of one when it is asked for."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parses the command line, which prints where help is asked for."""
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from the file of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"drpruning.cli.{cmd_name}").command
        command.short_help = COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands with their purposes, without loading their files."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command asked for, its exit codes in its help."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and EXIT_CODES not in (command.epilog or ""):
            command.epilog = f"{(command.epilog or '').rstrip()}\n\n\b\n{EXIT_CODES}"
        return name, command, rest


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Completion of commands, options and recipes, in the shell's start file:
  eval "$(_DRPRUNING_COMPLETE=bash_source drpruning)"      # or zsh_source; fish: ... fish_source drpruning | source
""",
)
@click.version_option(message="drpruning %(version)s")
def group() -> None:
    """Make a small language model of a large one, good in every domain.

    Try it: `drpruning train quickstart` prunes a model on this machine in minutes.

    Results go to stdout, progress and errors to stderr. NO_COLOR is honoured; colours are for terminals only.
    Exit codes: 0 done; 1 a miniature that fails a verdict; 2 wrong input or a run that diverges; 3 no room or no
    permission on the disk; 4 another process of the run was lost; 130 interrupted with everything saved. What is wrong
    and what to do is printed.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line; turns errors into two lines, what is wrong and what to do, and an exit code."""
    from drpruning.errors import DrpruningError, ExitCode, RankError

    try:
        return group.main(args=arguments, prog_name="drpruning", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show(sys.stdout)
        return 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "drpruning"
        fail("UsageError", error.format_message(), f"`{command} --help` says what can be given.", error.exit_code)
    except click.ClickException as error:
        fail(type(error).__name__, error.format_message(), None, error.exit_code)
    except click.Abort:
        fail("Interrupted", "stopped before it was done", None, ExitCode.INTERRUPTED)
    except RankError as error:
        show_error(type(error).__name__, error.message, error.next_step)
        sys.stdout.flush()
        os._exit(error.exit_code)  # else torch waits for the lost rank when it tears its connections down
    except DrpruningError as error:
        fail(type(error).__name__, error.message, error.next_step, error.exit_code)
    except (ReaderGoneError, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone, as `head` does
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        fail(type(error).__name__, str(error), None, 2)


def fail(kind: str, message: str, next_step: str | None, exit_code: int) -> None:
    """Prints an error in at most two lines on stderr and exits."""
    show_error(kind, message, next_step)
    sys.exit(exit_code)


def show_error(kind: str, message: str, next_step: str | None) -> None:
    """Prints an error in at most two lines on stderr."""
    color = False if os.environ.get("NO_COLOR") else None  # None: on a terminal
    click.echo(f"{click.style(kind, fg='red', bold=True)}: {' '.join(message.split())}", err=True, color=color)
    if next_step is not None:
        click.echo(next_step, err=True)
