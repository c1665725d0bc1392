"""Options that several commands share, and the parsing of their values. Loads nothing but click."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

EXIT_CODES = "Exit codes: 0 success, 2 wrong input; all are in `drpruning --help`."
FIGURE_FORMATS = ("png", "svg", "pdf")
RATIO_EXAMPLE = "web=0.8,code=0.2"
F = TypeVar("F", bound=Callable[..., Any])


def examples(text: str) -> str:
    """Return the end of a command's help: its examples, one a line, and the most frequent exit codes."""
    return f"\b\nExamples:\n{text.strip(chr(10))}\n\n{EXIT_CODES}"


def json_option(help: str = "Print JSON instead of text.") -> Callable[[F], F]:  # noqa: A002 - click's name
    """Add the flag ``--json``, passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help=help)


def set_option(help: str = "Change one setting of the recipe. Repeatable.") -> Callable[[F], F]:  # noqa: A002
    """Add the repeatable option ``--set A.B=C``, passed as ``overrides``."""
    return click.option("--set", "overrides", metavar="A.B=C", multiple=True, help=help)


def complete_recipe(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of shipped recipes that begin with ``incomplete``, for the shell's completion."""
    folder = Path(__file__).parents[1] / "recipes"  # without the imports that reading recipes needs
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem.startswith(incomplete))


def positive_amount(_: click.Context | None, option: click.Parameter, value: str | None) -> float | None:
    """Parse a number of tokens, steps, parameters, bytes or milliseconds: 20000000000, 2e10 or 20B. A click callback.

    Raises:
        ConfigError: ``value`` is not a positive number.
    """
    from drpruning.errors import ConfigError
    from drpruning.formatting import amount_of

    if value is None:
        return None
    number = amount_of(value)
    if not number:
        name = option.opts[0]
        raise ConfigError(f"{name} is {value!r}; expected a positive number", f"For example {name} 20B, or {name} 2e10")
    return number


def figure_path(_: click.Context, option: click.Parameter, value: str | None) -> Path | None:
    """Parse the path of a figure, whose suffix is its format. A click callback.

    Raises:
        ConfigError: The suffix is not one of ``FIGURE_FORMATS``.
    """
    from drpruning.errors import ConfigError

    if value is None:
        return None
    path = Path(value)
    if path.suffix[1:].lower() not in FIGURE_FORMATS:
        raise ConfigError(f"{option.opts[0]} is {value!r}; expected a path that ends in .{', .'.join(FIGURE_FORMATS)}")
    return path


def parse_numbers_by_domain(option: str, text: str) -> dict[str, float]:
    """Parse numbers by domain: ``web=0.8,code=0.2``, or the path of a JSON or YAML file with such a mapping.

    Raises:
        ConfigError: ``text`` is neither, a domain appears twice, or a value is not a number.
    """
    from drpruning.errors import ConfigError
    from drpruning.inputs import read_yaml, repeated, shown

    example = f"For example {option} {RATIO_EXAMPLE}, or a file that contains {{web: 0.8, code: 0.2}}"
    path = Path(text)
    if "=" in text:
        pairs = [item.partition("=") for item in text.split(",") if item.strip()]
        names = [name.strip() for name, _, _ in pairs]
        body: Any = {name: number.strip() for name, (_, _, number) in zip(names, pairs, strict=True)}
        if len(body) != len(names):
            raise ConfigError(f"{option} names domain {shown(repeated(names))} twice")
    else:
        if not path.is_file():
            raise ConfigError(f"{option} is {text!r}; expected A=1,B=2 or the path of a file", example)
        try:
            body = read_yaml(path)
        except ConfigError as error:
            raise ConfigError(f"{option} {text!r} is neither JSON nor YAML", example) from error
    if not isinstance(body, dict) or not body:
        raise ConfigError(f"{option} {text!r} contains no numbers by domain", example)
    numbers: dict[str, float] = {}
    for name, value in body.items():
        try:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError
            numbers[str(name)] = float(value)
        except (ValueError, OverflowError):
            raise ConfigError(
                f"{option}: {shown(value)} of domain {shown(str(name))} is not a number", example
            ) from None
    return numbers


def parse_names(text: str | None) -> list[str] | None:
    """Split ``web,code`` into a list of names; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Return the ``--set A=B`` options by name, values as text.

    Raises:
        ConfigError: An option has another form.
    """
    from drpruning.errors import ConfigError

    parsed: dict[str, Any] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not (name.strip() and equals):
            raise ConfigError(f"--set is {item!r}; expected A=B", "For example --set rho=0.1")
        parsed[name.strip()] = value.strip()
    return parsed


def parse_target(text: str) -> dict[str, int]:
    """Return the sizes of ``--target layers=24,hidden=2048`` by name.

    Raises:
        ConfigError: A name is unknown or appears twice, or a size is not a whole number.
    """
    from drpruning.errors import ConfigError, did_you_mean
    from drpruning.pruning.target import SIZES

    sizes: dict[str, int] = {}
    for item in text.split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        if not equals or name not in SIZES:
            raise ConfigError(
                f"--target has {item.strip()!r}; each part must be NAME=SIZE with a name of {', '.join(SIZES)}",
                did_you_mean(name, SIZES) or "For example --target layers=24,hidden=2048.",
            )
        if name in sizes:
            raise ConfigError(f"--target names {name} twice")
        try:
            sizes[name] = int(number)
        except ValueError:
            raise ConfigError(f"--target {name} must be a whole number, got {number!r}") from None
    return sizes


def check_megatron(pattern: str, as_json: bool) -> None:
    """Check the value of ``--megatron``.

    Raises:
        ConfigError: The pattern has no ``<domain>``, or ``--json`` is given as well.
    """
    from drpruning.errors import ConfigError

    if "<domain>" not in pattern:
        raise ConfigError(
            f"--megatron is {pattern!r}; expected a pattern with <domain>",
            "For example --megatron 'data/<domain>_text_document'.",
        )
    if as_json:
        raise ConfigError("--megatron and --json are both given", "Keep one of them.")
