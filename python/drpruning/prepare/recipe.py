"""Prepare recipes: YAML files with the domains and options of a preparation, shipped ones included."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from drpruning.errors import ConfigError, did_you_mean
from drpruning.inputs import expected_value, parse_yaml, read_text
from drpruning.prepare.output.holdout import Holdout
from drpruning.prepare.preparation import DomainText
from drpruning.prepare.readers.field_mapping import FieldMapping
from drpruning.prepare.readers.source_files import HUB_PREFIX


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HoldoutSection(_Section):
    """Size of the holdout of every domain: the arguments of :class:`Holdout`."""

    fraction: float = Field(0.05, ge=0, lt=1)
    min_tokens: int = Field(65_536, ge=0)
    min_groups: int = Field(50, ge=0)
    max_fraction: float = Field(0.2, gt=0, lt=1)


class DomainSection(_Section):
    """The text of one domain. A recipe may give the paths only, without the key ``paths``."""

    paths: Texts
    text: Texts | None = None
    join: str | None = None
    where: dict[str, str | int | float | bool] = {}
    group: str | None = None


def _paths_to_section(value: Any) -> Any:
    return {"paths": value} if isinstance(value, str | list) else value


class PrepareRecipe(_Section):
    """The settings of a prepare recipe."""

    tokenizer: str | None = None
    end_token: str | None = None
    holdout: HoldoutSection | None = None
    utf8: Literal["replace", "skip", "fail"] = "replace"
    max_errors: int = Field(0, ge=0)
    near_duplicates: bool = False
    text_suffixes: tuple[str, ...] = ()
    text: Texts = ("text",)
    join: str = "\n\n"
    group: str | None = None
    domains: dict[str, Annotated[DomainSection, BeforeValidator(_paths_to_section)]] = Field(min_length=1)

    def texts(self, folder: Path) -> dict[str, DomainText]:
        """Return the text of the domains; relative paths are relative to ``folder``."""
        texts = {}
        for name, domain in self.domains.items():
            fields = FieldMapping(
                text=domain.text or self.text,
                join=self.join if domain.join is None else domain.join,
                where=domain.where,
                group=domain.group or self.group,
            )
            paths = [_resolve_path(folder, path) for path in domain.paths]
            texts[name] = DomainText(paths=paths, fields=fields)
        return texts

    def holdout_size(self) -> Holdout | None:
        """Return the size of the holdout; None if the recipe does not set it."""
        return None if self.holdout is None else Holdout(**self.holdout.model_dump())


def shipped_prepare_recipes() -> dict[str, str]:
    """Return the names of the shipped recipes and their first lines."""
    folder = files("drpruning.prepare") / "recipes"
    recipes = sorted((item for item in folder.iterdir() if item.name.endswith(".yaml")), key=lambda item: item.name)
    return {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        for item in recipes
    }


def read_recipe_text(name: str) -> str:
    """Read the text of a recipe from a path, or of a shipped recipe by its name.

    Raises:
        ConfigError: The recipe does not exist.
    """
    if Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():  # a folder may be called "code"
        return read_text(name)
    if name not in shipped_prepare_recipes():
        raise ConfigError(
            f"unknown recipe {name!r}",
            did_you_mean(name, shipped_prepare_recipes())
            or f"Pass a .yaml file, or one of {', '.join(shipped_prepare_recipes())}.",
        )
    return (files("drpruning.prepare") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def read_recipe(name: str) -> PrepareRecipe:
    """Read and check a recipe.

    Raises:
        ConfigError: The recipe does not exist, is not YAML, or has an invalid key or value; the message names it.
    """
    body = parse_yaml(read_recipe_text(name), name)
    if not isinstance(body, dict):
        raise ConfigError(f"{name} has no settings", "Add at least `domains: {NAME: PATH}`.")
    try:
        return PrepareRecipe.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        next_step = None
        if first["type"] == "extra_forbidden":
            keys = DomainSection.model_fields if len(first["loc"]) > 2 else PrepareRecipe.model_fields
            next_step = did_you_mean(str(first["loc"][-1]), keys)
        raise ConfigError(f"{name}: {where}: {expected_value(first['msg'])}", next_step) from None


def _resolve_path(folder: Path, path: str) -> str:
    is_absolute = path == "-" or path.startswith(HUB_PREFIX) or Path(path).is_absolute()
    return path if is_absolute else str(folder / path)
