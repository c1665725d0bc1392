"""Writes the pages that are made from the code: cli.md from --help, recipe.md from the recipe's own checks."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.testing import CliRunner
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from drpruning.cli import group
from drpruning.config import RunConfig
from drpruning.export.gguf_graphs import GRAPHS
from drpruning.pruning.architectures import ARCHITECTURES, ArchitectureSpec

CLI = """# Command line

This page is generated from `--help`; after a change, `make docs` writes it again.

Results go to stdout, progress and errors to stderr. Exit codes: 0 success; 1 a miniature or a compared run failed; 2
wrong input, or a diverging run; 3 full disk or missing write permission; 4 another process of the run was lost; 75
stopped by SIGTERM or SIGUSR1, with everything saved; 130 interrupted, with everything saved. After 3, 4, 75 and 130,
rerun with `--resume`. An error prints what is wrong and, usually, what to do.
"""

RECIPE = """# Recipe settings

This page is generated from the checks in `drpruning/config/`; after a change, `make docs` writes it again.

A recipe is a YAML file. `drpruning recipes` lists the shipped ones, `drpruning recipes copy NAME mine.yaml` copies
one, with a JSON schema from which editors complete and check it.
Any setting can be changed for one run: `--set prune.target.layers=3`. Unknown keys are errors.
"""


def cli_page() -> str:
    """docs/cli.md."""
    return "\n".join([CLI, *(_command(words) for words in _every_command())])


def recipe_page() -> str:
    """docs/recipe.md."""
    parts = [RECIPE]
    _section(parts, RunConfig, "")
    return "\n".join(parts)


def _every_command(command: click.Command = group, words: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yield the words of every command, each group before its commands, in the order of the help."""
    yield list(words)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _every_command(inner, (*words, name))


MODELS = {
    "llama": "Llama 2 and 3, SmolLM2, Yi, TinyLlama",
    "mistral": "Mistral 7B, Mistral Nemo, Mistral Small (text)",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3 (dense)",
    "gemma": "Gemma, CodeGemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 270M and 1B, text models of Gemma 3",
    "phi": "Phi-1.5, Phi-2",
    "phi3": "Phi-3, Phi-3.5 mini, Phi-4, Phi-4-mini",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "gpt_neox": "Pythia, GPT-NeoX-20B, RedPajama-INCITE",
    "granite": "Granite 3 (dense)",
    "smollm3": "SmolLM3",
    "stablelm": "StableLM 3B, StableLM 2 1.6B",
    "starcoder2": "StarCoder2",
    "cohere": "Command R, Command R+, Aya",
    "cohere2": "Command R7B, Command A",
    "glm": "GLM-4 9B, GLM-Edge",
    "glm4": "GLM-4-0414",
    "nemotron": "Nemotron-4, Minitron",
    "ministral": "Ministral 8B",
    "ministral3": "text models of Ministral 3",
    "apertus": "Apertus",
    "seed_oss": "Seed-OSS",
    "hunyuan_v1_dense": "Hunyuan (dense)",
    "ernie4_5": "ERNIE 4.5 (dense)",
    "exaone4": "EXAONE 4",
    "arcee": "AFM-4.5B",
    "helium": "Helium 1",
    "mixtral": "Mixtral 8x7B, Mixtral 8x22B",
    "qwen2_moe": "Qwen1.5-MoE, Qwen2-57B-A14B",
    "qwen3_moe": "Qwen3-30B-A3B, Qwen3-235B-A22B",
    "olmoe": "OLMoE",
    "gpt_oss": "gpt-oss-20b, gpt-oss-120b",
}
"""Models of each type, for the table of supported architectures."""


def architectures_page() -> str:
    """docs/architectures.md: the page, with the table of supported architectures written again."""
    page = Path(__file__).with_name("architectures.md").read_text(encoding="utf-8")
    before, rest = page.split("<!-- table -->\n", 1)
    after = rest.split("<!-- end of table -->\n", 1)[1]
    rows = ["| type | models | norms | MLP | hidden size | GGUF |", "|---|---|---|---|---|---|"]
    for name, models in MODELS.items():
        spec = ARCHITECTURES[name]
        cells = (f"`{name}`", models, _norms(spec), _mlp(spec), spec.hidden, _gguf(name))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"{before}<!-- table -->", "", *rows, "", f"<!-- end of table -->\n{after}"])


def _gguf(name: str) -> str:
    return "" if name not in GRAPHS else "heads times head_dim" if GRAPHS[name].square else "yes"


def _norms(spec: ArchitectureSpec) -> str:
    norms = [part for part in spec.block if part.is_norm]
    kind = {"rms": "RMSNorm", "layer": "LayerNorm"}[spec.norm.kind]
    places = [
        place
        for place, found in (
            ("before", any(part.axes == ("hidden",) and not part.writes_to_stream for part in norms)),
            ("after", any(part.writes_to_stream for part in norms)),
        )
        if found
    ]
    heads = "; queries and keys" if any(part.axes[0] != "hidden" for part in norms) else ""
    return f"{kind}{' + 1' if spec.norm.offset else ''} {' and '.join(places)}{heads}"


def _mlp(spec: ArchitectureSpec) -> str:
    if spec.routing is not None:
        shared = any("shared_intermediate" in part.axes for part in spec.block)
        return f"gated experts{', one shared' if shared else ''}"
    reading = [
        part for part in spec.block if len(part.axes) == 2 and part.axes[0] != "hidden" and part.axes[1] == "hidden"
    ]
    units = [axis for part in reading for axis in ([part.axes[0]] if isinstance(part.axes[0], str) else part.axes[0])]
    gated = units.count("intermediate") == 2
    fused = any(isinstance(part.axes[0], tuple) and "intermediate" in part.axes[0] for part in reading)
    return f"{'gated' if gated else 'not gated'}{', fused' if fused else ''}"


PAGES = {"cli.md": cli_page, "recipe.md": recipe_page, "architectures.md": architectures_page}


def _command(words: list[str]) -> str:
    """Return the help of one command, as printed on a terminal of 100 columns."""
    shown = CliRunner(env={"COLUMNS": "100"}).invoke(group, [*words, "--help"], prog_name="drpruning").output
    return f"## {' '.join(['drpruning', *words])}\n\n```text\n{shown.rstrip()}\n```\n"


def _section(parts: list[str], section: type[BaseModel], path: str) -> None:
    rows, inner = [], []
    for name, field in section.model_fields.items():
        key = field.alias or name
        notes = [field.description]
        nested = _nested(field.annotation)
        if nested is not None:
            inner.append((f"{path}{key}.", nested))
            notes.append(f"See [`{path}{key}`](#{_anchor(path + key)}).")
        rows.append(f"| `{key}` | {_type(field)} | {_default(field)} | {' '.join(filter(None, notes))} |")
    title = f"`{path.rstrip('.')}`" if path else "Top level"
    parts.append(f"## {title}\n\n{(section.__doc__ or '').strip().splitlines()[0]}\n")
    parts.append("\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n")
    for prefix, nested in inner:
        _section(parts, nested, prefix)


def _nested(annotation: Any) -> type[BaseModel] | None:
    for item in (annotation, *get_args(annotation)):
        if isinstance(item, type) and issubclass(item, BaseModel):
            return item
    return None


def _anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub and the site name it."""
    return title.replace(".", "")


def _type(field: FieldInfo) -> str:
    return _name(field.annotation).replace("|", "\\|")


def _name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _name(inner[0])
    if origin is Literal:
        return " | ".join(f"`{item}`" for item in inner)
    if origin in (types.UnionType, Union):
        return " | ".join(_name(item) for item in inner if item is not type(None))
    if origin is dict:
        return f"{_key(*inner)}: {_name(inner[1])}"
    if origin is tuple:
        return f"list of {_plural(_name(inner[0]))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "int": "whole number", "float": "number"}.get(annotation.__name__, annotation.__name__)


def _plural(name: str) -> str:
    return f"{name}s" if name in {"whole number", "number", "section"} else name


def _key(annotation: Any, value: Any) -> str:
    """Return what the keys of a mapping are: block numbers, the stages of a list of changes, else domains."""
    if annotation is int:
        return "block number"
    is_changes = get_origin(value) is tuple and _nested(get_args(value)[0]) is not None
    return "stage" if is_changes else "domain"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return ""
    if isinstance(field.default, BaseModel):
        return "its defaults"
    return f"`{list(field.default) if isinstance(field.default, tuple) else field.default}`"


def main(arguments: list[str]) -> int:
    """Write the pages; with ``--check`` write none, name those that would change, and return their number."""
    old = []
    for page, write in PAGES.items():
        path, text = Path(__file__).with_name(page), write()
        if arguments != ["--check"]:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            old.append(page)
    if old:
        print(f"{', '.join(old)}: old; run `python docs/write_pages.py`")
    return len(old)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
