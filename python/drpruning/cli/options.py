"""Numbers by domain, sizes and settings by name, as they are given on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def by_domain(option: str, text: str) -> dict[str, float]:
    """Numbers by domain: ``web=0.8,code=0.2``, or the path of a JSON or YAML file that holds such a mapping.

    Raises:
        ConfigError: It is neither.
    """
    import yaml

    from drpruning.errors import ConfigError

    example = f"For example {option} web=0.8,code=0.2, or a file that holds {{web: 0.8, code: 0.2}}."
    path = Path(text)
    if "=" in text:
        pairs = [item.partition("=") for item in text.split(",") if item.strip()]
        names = [name.strip() for name, _, _ in pairs]
        body: Any = {name: number.strip() for name, (_, _, number) in zip(names, pairs, strict=True)}
        if len(body) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{option} names domain {twice!r} twice")
    else:
        if not path.is_file():
            raise ConfigError(f"{option} {text!r} is neither of the form A=1,B=2 nor a file", example)
        try:
            body = yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{option} {text!r} is neither JSON nor YAML", example) from error
    if not isinstance(body, dict) or not body:
        raise ConfigError(f"{option} {text!r} holds no numbers by domain", example)
    numbers: dict[str, float] = {}
    for name, value in body.items():
        try:
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise ValueError
            numbers[str(name)] = float(value)
        except (ValueError, OverflowError):
            raise ConfigError(f"{option}: {value!r} of domain {str(name)!r} is not a number", example) from None
    return numbers


def by_name(settings: tuple[str, ...]) -> dict[str, Any]:
    """``--set a=b`` options by name, values as text.

    Raises:
        ConfigError: One is not of that form.
    """
    from drpruning.errors import ConfigError

    given: dict[str, Any] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not (name.strip() and equals):
            raise ConfigError(f"--set {item!r} is not of the form a=b", "For example --set rho=0.1")
        given[name.strip()] = value.strip()
    return given


def sizes_in(text: str) -> dict[str, int]:
    """The sizes of a ``--target`` by name, from ``layers=24,hidden=2048``.

    Raises:
        ConfigError: A name is not one of a target's or is there twice, or a size is no whole number.
    """
    from drpruning.errors import ConfigError, did_you_mean
    from drpruning.pruning.target import CONFIG_FIELDS

    sizes: dict[str, int] = {}
    for item in text.split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        if not equals or name not in CONFIG_FIELDS:
            raise ConfigError(
                f"--target has {item.strip()!r}; each part must be NAME=SIZE with a name of {', '.join(CONFIG_FIELDS)}",
                did_you_mean(name, CONFIG_FIELDS) or "For example --target layers=24,hidden=2048.",
            )
        if name in sizes:
            raise ConfigError(f"--target names {name} twice")
        try:
            sizes[name] = int(number)
        except ValueError:
            raise ConfigError(f"--target {name} must be a whole number, got {number!r}") from None
    return sizes
