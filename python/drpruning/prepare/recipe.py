"""A preparation written down: a small YAML file, or one that is shipped."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from drpruning.errors import ConfigError, did_you_mean
from drpruning.prepare.fields import Fields
from drpruning.prepare.from_files import DomainText
from drpruning.prepare.split import HeldOut


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HeldOutSection(_Section):
    """How much of every domain is held out."""

    fraction: float = Field(0.05, ge=0, lt=1)
    tokens: int = Field(16384, ge=0)
    most: float = Field(0.2, gt=0, lt=1)


class DomainSection(_Section):
    """The text of one domain. ``paths`` alone may stand for it."""

    paths: Texts
    text: Texts | None = None
    join: str | None = None
    where: dict[str, str | int | float | bool] = {}


def _paths_alone(value: Any) -> Any:
    return {"paths": value} if isinstance(value, str | list) else value


class PrepareRecipe(_Section):
    """What ``drpruning prepare`` can be told in a file."""

    tokenizer: str | None = None
    end_token: str | None = None
    held_out: HeldOutSection | None = None
    utf8: Literal["replace", "skip", "fail"] = "replace"
    max_bad: int = Field(0, ge=0)
    near_duplicates: bool = False
    text: Texts = ("text",)
    join: str = "\n\n"
    domains: dict[str, Annotated[DomainSection, BeforeValidator(_paths_alone)]] = Field(min_length=1)

    def texts(self, folder: Path) -> dict[str, DomainText]:
        """The domains; relative paths are taken from ``folder``."""
        found = {}
        for name, domain in self.domains.items():
            fields = Fields(
                text=domain.text or self.text,
                join=self.join if domain.join is None else domain.join,
                where=domain.where,
            )
            found[name] = DomainText(paths=[_in(folder, path) for path in domain.paths], fields=fields)
        return found

    def rule(self) -> HeldOut | None:
        """How much is held out, if the recipe says it."""
        return None if self.held_out is None else HeldOut(**self.held_out.model_dump())


def shipped() -> dict[str, str]:
    """Names of the shipped recipes, and their first lines."""
    folder = files("drpruning.prepare") / "recipes"
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda item: item.name)
    return {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for item in found
    }


def recipe_text(name: str) -> str:
    """A recipe as it is written: a path, or the name of a shipped one.

    Raises:
        ConfigError: There is none.
    """
    if Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():  # a folder may be called "code"
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the recipe {name}: {error}") from None
    if name not in shipped():
        raise ConfigError(
            f"there is no recipe {name!r}",
            did_you_mean(name, shipped()) or f"Give a .yaml file, or one of {', '.join(shipped())}.",
        )
    return (files("drpruning.prepare") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def read_recipe(name: str) -> PrepareRecipe:
    """Reads and checks a recipe.

    Raises:
        ConfigError: There is none, it is not YAML, or a key or value in it cannot be used, which is named.
    """
    try:
        body = yaml.safe_load(recipe_text(name))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(body, dict):
        raise ConfigError(f"{name} holds no settings", "It needs at least `domains: {NAME: PATH}`.")
    try:
        return PrepareRecipe.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        next_step = None
        if first["type"] == "extra_forbidden":
            keys = DomainSection.model_fields if len(first["loc"]) > 2 else PrepareRecipe.model_fields
            next_step = did_you_mean(str(first["loc"][-1]), keys)
        raise ConfigError(f"{name}: {where}: {first['msg']}", next_step) from None


def _in(folder: Path, path: str) -> str:
    plain = path == "-" or path.startswith("hf:") or Path(path).is_absolute()
    return path if plain else str(folder / path)
