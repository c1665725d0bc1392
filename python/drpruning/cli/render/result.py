"""The result of a command: one object that prints as JSON or as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from drpruning.errors import DrpruningError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class CommandResult:
    """What a command prints.

    Attributes:
        body: JSON-able data.
        write: Prints the same as text.
        error: Raised after printing, if the result shows that something cannot work.
    """

    body: Mapping[str, Any]
    write: Callable[[Console], None]
    error: DrpruningError | None = None

    def print(self, *, as_json: bool) -> None:
        """Print on stdout, then raise ``error`` if there is one."""
        if as_json:
            import json

            click.echo(json.dumps(self.body, indent=2))
        else:
            from rich.console import Console

            self.write(Console(highlight=False, soft_wrap=True))
        if self.error is not None:
            raise self.error
