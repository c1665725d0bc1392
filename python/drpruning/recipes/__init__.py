"""Read recipes: YAML files of the user, and the recipes in this folder.

Unknown keys are errors with a suggestion; ``--set a.b=c`` changes one setting.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from drpruning.config import RunConfig
from drpruning.errors import ConfigError, DrpruningError, did_you_mean
from drpruning.inputs import expected_value, parse_yaml, read_text, shown
from drpruning.mixture.static import BASE_STAGE, POWER, raise_ratio, static_mixture
from drpruning.run_folder import RECIPE


def shipped_recipes() -> dict[str, str]:
    """Return the names of the recipes in this package, each with its first comment line."""
    folder = resources.files("drpruning") / "recipes"
    found = {}
    for item in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if item.name.endswith(".yaml"):
            first = item.read_text(encoding="utf-8").splitlines()[0]
            found[item.name.removesuffix(".yaml")] = first.removeprefix("#").strip()
    return found


def recipe_text(recipe: str) -> str:
    """Return the YAML of a recipe, by file path or by the name of a shipped recipe.

    Raises:
        ConfigError: There is neither a file nor a shipped recipe of that name, or the file is not UTF-8.
    """
    if os.path.exists(recipe) and not os.path.isdir(recipe):  # noqa: PTH110, PTH112 - Path's raise for a long name
        return read_text(recipe)
    names = list(shipped_recipes())
    if recipe in names:
        return (resources.files("drpruning") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    raise _no_recipe(recipe, names)


def _no_recipe(recipe: str, names: Sequence[str]) -> ConfigError:
    """Return the error for an argument that is neither a YAML file nor one of the shipped recipes ``names``."""
    if os.path.isdir(recipe):  # noqa: PTH112
        if os.path.exists(os.path.join(recipe, "config.json")):  # noqa: PTH110, PTH118
            write = f"drpruning init {shlex.quote(recipe)} --corpus FOLDER"
            return ConfigError(f"{shown(recipe)} is a model folder; expected a recipe", f"Write one: {write}")
        inside = os.path.join(recipe, RECIPE)  # noqa: PTH118
        found = f"Did you mean {inside}?" if os.path.exists(inside) else None  # noqa: PTH110
        advice = found or "`drpruning recipes` lists the shipped ones."
        return ConfigError(f"{shown(recipe)} is a folder; expected a recipe, a YAML file or a shipped one", advice)
    files = [f"{recipe}{suffix}" for suffix in (".yaml", ".yml") if os.path.isfile(f"{recipe}{suffix}")]  # noqa: PTH113
    return ConfigError(
        f"no recipe {shown(recipe)}: no file of that name, and no shipped recipe",
        f"Did you mean {files[0]}?"
        if files
        else did_you_mean(recipe, names) or "`drpruning recipes` lists the shipped ones.",
    )


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply ``--set`` overrides.

    Args:
        recipe: Path of a YAML file, or the name of a shipped recipe.
        overrides: Items ``a.b=c``; c is read as YAML, so ``mixture.rho=0.1`` is a number.
            ``data.reference_ratio=power:0.5`` raises the ratio of the recipe to a power.

    Raises:
        ConfigError: The recipe does not exist, is not YAML, or has unknown, missing or impossible settings.

    Example:
        >>> load_recipe("quickstart", ["mixture.strategy=constant"]).mixture.strategy
        'constant'
    """
    body = parse_yaml(recipe_text(recipe), f"recipe {recipe!r}")
    if not isinstance(body, dict):
        raise ConfigError(f"recipe {recipe!r} holds {type(body).__name__}; a recipe is a mapping of sections")
    for item in overrides:
        _override(body, item)
    return parse_recipe(body)


def parse_recipe(body: Mapping[str, Any]) -> RunConfig:
    """Build a recipe from plain data and check it.

    Raises:
        ConfigError: Names the first wrong setting, what it got, and the nearest known key for an unknown one.
    """
    try:
        return RunConfig.model_validate(dict(body))
    except ValidationError as error:
        raise _explain(error) from error


def with_shares(config: RunConfig, domain_tokens: Mapping[str, float]) -> RunConfig:
    """Return the recipe with shares in place of the names of static mixtures.

    A named reference ratio has the domains of the corpus. ``unimax`` counts epochs over the tokens of the stages prune
    and continue together or, as the mixture of the stage pretrain, over those of that stage.

    Args:
        config: The recipe.
        domain_tokens: Training tokens of each domain of its corpus, in order.

    Raises:
        ConfigError: A mixture cannot be computed, or the recipe does not fit its domains.

    Example:
        >>> config = load_recipe("quickstart", ["data.reference_ratio=temperature:0.5"])
        >>> with_shares(config, {"web": 9e6, "code": 1e6}).reference_ratio
        {'web': 0.75, 'code': 0.25}
    """
    body = config.to_dict()
    if name := config.mixture_names.get("data.reference_ratio"):
        tokens = config.tokens(*(stage for stage in config.stages if stage != BASE_STAGE))
        body["data"]["reference_ratio"] = _named_shares("data.reference_ratio", name, domain_tokens, tokens)
    if name := config.mixture_names.get("pretrain.mixture"):
        domains = body["data"]["reference_ratio"]
        sizes = {domain: domain_tokens[domain] for domain in domains if domain in domain_tokens}
        body["pretrain"]["mixture"] = _named_shares("pretrain.mixture", name, sizes, config.tokens(BASE_STAGE))
    for setting, name in config.mixture_names.items():
        if setting.startswith("mixture.schedule."):
            stage, at = setting.split(".")[-2:]
            tokens = config.tokens(*(stage for stage in config.stages if stage != BASE_STAGE))
            domains = body["data"]["reference_ratio"]
            sizes = {domain: domain_tokens[domain] for domain in domains if domain in domain_tokens}
            change = body["mixture"]["schedule"]["stages"][stage][int(at)]
            change["weights"] = _named_shares(setting, name, sizes, tokens)
    return parse_recipe(body) if config.mixture_names else config


def _named_shares(setting: str, name: str, domain_tokens: Mapping[str, float], tokens: int) -> dict[str, float]:
    try:
        return static_mixture(name, domain_tokens, tokens)
    except DrpruningError as error:
        raise ConfigError(f"{setting}: {error.message}", error.next_step) from error


def _override(body: dict[str, Any], item: str) -> None:
    path, equals, text = item.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {item!r} is not of the form a.b=c", "For example --set mixture.rho=0.1")
    value = parse_yaml(text, f"--set {path}: {shown(text)}") if text else None
    section: Any = body
    for depth, key in enumerate(keys[:-1]):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise ConfigError(f"--set {item!r}: {'.'.join(keys[: depth + 1])} is a value, not a section")
    if keys == ["data", "reference_ratio"] and isinstance(value, str) and value.startswith(POWER):
        value = _raised(section.get("reference_ratio"), value)
    section[keys[-1]] = value


def _raised(ratio: Any, name: str) -> dict[str, float] | str:
    """Return the recipe's reference ratio to a power."""
    if not isinstance(ratio, dict | str):
        raise ConfigError(f"data.reference_ratio={name}: the recipe has no reference ratio; got {shown(ratio)}")
    try:
        return raise_ratio(ratio, name)
    except DrpruningError as error:
        raise ConfigError(f"data.reference_ratio: {error.message}", error.next_step) from error


def _explain(error: ValidationError) -> ConfigError:
    problems = error.errors()
    # An unknown key is a likelier mistake than the required key that is then missing. For a union, an error within the
    # branch of the value's type is likelier than a value of another branch.
    first = min(problems, key=lambda problem: (problem["type"] != "extra_forbidden", _is_another_way(problem)))
    path = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    where = path or "the recipe"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        hint = did_you_mean(str(first["loc"][-1]), known) or f"Known here: {', '.join(known)}."
        return ConfigError(f"unknown setting {path}{more}", hint)
    if first["type"] == "missing":
        missing = [".".join(map(str, problem["loc"])) for problem in problems if problem["type"] == "missing"]
        if len(missing) == 1:
            return ConfigError(f"setting {path} is missing{more}", "Add it to the recipe; it has no default.")
        others = f" (and {len(problems) - len(missing)} more)" if len(problems) > len(missing) else ""
        message = f"settings {', '.join(missing)} are missing{others}"
        return ConfigError(message, "Add them to the recipe; `drpruning recipes show quickstart` has all sections.")
    message = expected_value(first["msg"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, DrpruningError):
        return ConfigError(f"{where}: {cause.message}{more}", cause.next_step)
    got = first.get("input")
    found = "" if isinstance(got, dict | BaseModel) else f"; got {shown(got)}"
    choices = re.findall(r"'([^']*)'", first["ctx"]["expected"]) if first["type"] == "literal_error" else []
    similar = did_you_mean(str(got), choices)
    if found and message.startswith("expected "):
        return ConfigError(f"{where} is {shown(got)}; {message}{more}", similar)
    return ConfigError(f"{where}: {message}{found}{more}", similar)


def _is_branch(part: Any) -> bool:
    """Return whether a part of an error's path is the branch of a union, which a reader does not need."""
    return isinstance(part, str) and (part == "str" or "[" in part or "-" in part or part.endswith("Config"))


def _is_another_way(problem: Any) -> bool:
    """Return whether the value has another type than this branch of a union."""
    other_type = problem["type"] in ("string_type", "float_type", "dict_type", "model_type", "literal_error")
    return other_type and any(map(_is_branch, problem["loc"][-1:]))


def _keys_at(path: Sequence[Any]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in path:
        by_key = {(field.alias or name): field for name, field in section.model_fields.items()}
        if part not in by_key:  # a branch of a union, a key of a mapping, a place in a list
            continue
        inner = [
            item for item in _flatten(by_key[part].annotation) if isinstance(item, type) and issubclass(item, BaseModel)
        ]
        if not inner:
            return []
        section = inner[0]
    return [field.alias or name for name, field in section.model_fields.items()]


def _flatten(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _flatten(inner)
