"""Every `drpruning ...` that a message, a comment, a recipe or a page mentions is a command with these options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from drpruning.cli import group

ROOT = Path(__file__).parents[2]
PLACES = ("README.md", "CONTRIBUTING.md", "Makefile", "docs", "python/drpruning", "benches")
SUFFIXES = {".md", ".py", ".yaml", ".html", ".j2", ""}


def mentions() -> Iterator[tuple[str, str]]:
    """Yield place and text of each mention in backticks, in a block of code of a page, or in an indented line."""
    for place in PLACES:
        root = ROOT / place
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if not path.is_file() or path.suffix not in SUFFIXES:
                continue
            shell = False
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if line.startswith("```"):
                    shell = line.strip() in ("```bash", "```sh")
                typed = re.match(r"\s*drpruning ([a-z].*)" if shell else r"(?:\$ |#? {2,})drpruning ([a-z].*)", line)
                for text in [*re.findall(r"`drpruning ([a-z][^`]*)`", line), *(typed.groups() if typed else ())]:
                    yield f"{path.relative_to(ROOT)}:{number}", text


def resolve(words: list[str]) -> tuple[click.Command | None, list[str]]:
    """Return the command of the first words and the words that follow it; None if there is no such command."""
    command: click.Command | None = group
    context = click.Context(group)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command, words = command.get_command(context, words[0]), words[1:]
    return command, words


FOUND = list(mentions())


def test_there_are_mentions() -> None:
    assert len(FOUND) > 150
    assert resolve(["weights", "losses.csv"])[0] is None


@pytest.mark.parametrize(("place", "text"), FOUND, ids=[f"{place} {text[:30]}" for place, text in FOUND])
def test_a_mention_is_a_command(place: str, text: str) -> None:
    words = re.split(r"[\s=]+", re.split(r"  +#| &&| \||;| > ", text)[0].strip())
    command, rest = resolve(words)
    assert command is not None, f"{place}: no command `drpruning {text}`"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        option = re.match(r"--[a-z][a-z-]*", word)
        if option:
            assert option[0] in known | {"--help"}, f"{place}: `drpruning {text}` has no option {option[0]}"
