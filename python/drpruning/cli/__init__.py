"""The `drpruning` command: one file per command. Commands import what they use when they run, so --help is instant."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import Any

import click
from click.shell_completion import shell_complete

PROGRAM, COMPLETE_VARIABLE = "drpruning", "_DRPRUNING_COMPLETE"
COMMANDS = {
    "init": "drpruning.cli.init.init",
    "train": "drpruning.cli.train.train",
    "compare": "drpruning.cli.compare.compare",
    "prepare": "drpruning.cli.prepare.prepare",
    "inspect": "drpruning.cli.inspect.inspect_command",
    "sample": "drpruning.cli.sample.sample",
    "teach": "drpruning.cli.teach.teach",
    "plan": "drpruning.cli.plan.plan",
    "report": "drpruning.cli.report.report",
    "eval": "drpruning.cli.eval.eval_group",
    "benchmark": "drpruning.cli.benchmark.benchmark",
    "export": "drpruning.cli.export.export",
    "advise": "drpruning.cli.advise.advise",
    "mix": "drpruning.cli.mix.mix",
    "fit": "drpruning.cli.fit.fit",
    "recipes": "drpruning.cli.recipes.recipes",
}
"""Path of each command's object, in the order of the help."""
LONGEST_MESSAGE = 4000
"""Characters of an error that are printed; a file may hold names of any length."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
PIPE_CLOSED = 141
"""Exit code of a process whose reader has closed the pipe, as shells report it."""


class LazyGroup(click.Group):
    """Import the file of a command when the command is used (click's documentation, "Lazily Loading Subcommands")."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command ``cmd_name``; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].rpartition(".")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
To complete commands, options and recipes, add to the shell's start file:
  eval "$(_DRPRUNING_COMPLETE=bash_source drpruning)"      # or zsh_source; fish: ... fish_source drpruning | source
""",
)
@click.version_option(message="drpruning %(version)s")
def group() -> None:
    """Prune a large language model to a small one that is good in every domain.

    Try it: `drpruning train quickstart` prunes a model on this machine in minutes.

    Results go to stdout, progress and errors to stderr. Colours are for terminals only, and NO_COLOR disables them.
    Exit codes: 0 success; 1 a miniature or a compared run failed; 2 wrong input or a diverging run; 3 full disk or
    missing write permission; 4 another process of the run was lost; 75 stopped by SIGTERM or SIGUSR1, with everything
    saved; 130 interrupted, with everything saved; 141 the reader of a pipe is gone. Each error prints what is wrong
    and what to do.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; print each error in two lines, what is wrong and what to do, and set the exit code."""
    from drpruning.errors import DrpruningError, ExitCode, RankError, missing_package

    if instruction := os.environ.get(COMPLETE_VARIABLE):
        sys.exit(shell_complete(group, {}, PROGRAM, COMPLETE_VARIABLE, instruction))
    try:  # not group.main(), which exits with 1 where the reader of a pipe, such as `head`, is gone
        with group.make_context(PROGRAM, sys.argv[1:] if arguments is None else list(arguments)) as context:
            return _invoke(context)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show(sys.stdout)
        return 0
    except click.UsageError as error:
        command = (
            error.ctx.command_path if error.ctx else _command_path(sys.argv[1:] if arguments is None else arguments)
        )
        fail("UsageError", error.format_message(), f"`{command} --help` lists the options.", error.exit_code)
    except click.ClickException as error:
        fail(type(error).__name__, error.format_message(), None, error.exit_code)
    except (click.Abort, KeyboardInterrupt, EOFError):
        fail("Interrupted", "the command was stopped before its end", None, ExitCode.INTERRUPTED)
    except RankError as error:
        show_error(type(error).__name__, error.message, error.next_step)
        sys.stdout.flush()
        os._exit(error.exit_code)  # a normal exit would wait for the lost rank while torch closes its connections
    except DrpruningError as error:
        fail(type(error).__name__, error.message, error.next_step, error.exit_code)
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        fail(type(missing).__name__, missing.message, missing.next_step, missing.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail to flush at its exit
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        next_step = "Free disk space or choose another disk, then rerun." if error.errno in DISK_ERRORS else None
        fail(type(error).__name__, str(error), next_step, ExitCode.DISK if next_step else ExitCode.ERROR)


def _command_path(arguments: list[str]) -> str:
    """Return the command with its subcommands; click names none for an option without its value."""
    command: click.Command | None = group
    path = PROGRAM
    for word in arguments:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(click.Context(command), word)
        if command is not None:
            path = f"{path} {word}"
    return path


def _invoke(context: click.Context) -> Any:
    try:
        return group.invoke(context)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich exits with 1 where the reader of a pipe is gone
            raise error.__context__ from None
        raise


def fail(kind: str, message: str, next_step: str | None, exit_code: int) -> None:
    """Print an error in at most two lines on stderr and exit."""
    show_error(kind, message, next_step)
    sys.exit(exit_code)


def show_error(kind: str, message: str, next_step: str | None) -> None:
    """Print an error in at most two lines on stderr, without control characters: names of files may hold any."""
    from drpruning.formatting import printable, printable_lines

    color = False if os.environ.get("NO_COLOR") else None  # None: colours on a terminal
    text = printable(" ".join(message[:LONGEST_MESSAGE].split()))
    click.echo(f"{click.style(kind, fg='red', bold=True)}: {text}", err=True, color=color)
    if next_step is not None:
        click.echo(printable_lines(next_step), err=True)
