"""`drpruning init`: write a first recipe for a model, a corpus and a size."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import examples, json_option, positive_amount

if TYPE_CHECKING:
    from rich.console import Console

    from drpruning.planning.starter import Machine
    from drpruning.pruning.target import Target


@click.command(
    short_help="Write a recipe for your model, corpus and size.",
    epilog=examples("""
  drpruning init HuggingFaceTB/SmolLM2-135M --params 70M --corpus corpora/mine
  drpruning init models/mine --params 1.3B --corpus corpora/mine --tokens 20B --gpus 8xH100 --out mine.yaml
  drpruning init models/mine --corpus corpora/mine    # continued pretraining, without pruning"""),
)
@click.argument("model")
@click.option(
    "--corpus",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Corpus of `drpruning prepare`, made with the model's tokenizer.",
)
@click.option(
    "--params",
    metavar="N",
    callback=positive_amount,
    help="Prune to about N parameters, for example 70M. Without it the model keeps its shape.",
)
@click.option(
    "--tokens",
    metavar="N",
    callback=positive_amount,
    help="Training tokens of all stages.  [default: 20 per parameter on a GPU, 2M on a CPU]",
)
@click.option(
    "--gpus",
    metavar="NxGPU",
    help="Write the recipe for these GPUs, such as 8xH100, and for their memory.  [default: this machine's device]",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file.  [default: NAME.yaml]")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@json_option()
def init(
    model: str,
    corpus: Path,
    params: float | None,
    tokens: float | None,
    gpus: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a recipe that prunes MODEL to a size and trains it on a corpus, with settings for a device.

    MODEL is a folder or a name on the hub. The target is the first shape of `drpruning plan shape MODEL --params N`.
    The recipe is checked against model, corpus and, with --gpus, memory; its cost and the next commands are printed.
    """
    from drpruning.cli.recipes import SCHEMA, schema_text
    from drpruning.cli.render.plan import recipe_plan
    from drpruning.cli.render.result import CommandResult
    from drpruning.corpus.manifest import FILE_NAME
    from drpruning.errors import ConfigError
    from drpruning.files import write_text
    from drpruning.formatting import count
    from drpruning.planning.model_shape import read_any_shape, read_shape

    if (given := Path(model)).name == "config.json" and given.is_file():
        model = str(given.parent)
    if not (corpus.expanduser() / FILE_NAME).is_file():
        raise ConfigError(
            f"{corpus} holds no {FILE_NAME}",
            f"Make it with the model's tokenizer: drpruning prepare {corpus} --tokenizer {model} --domain A=TEXT ...",
        )
    source = read_any_shape(model) if params is None else read_shape(model)
    target = None if params is None else _target(source, params)
    stem = Path(model).expanduser().resolve().name if Path(model).expanduser().exists() else model.rsplit("/", 1)[-1]
    name = recipe_name(stem, None if params is None else count(params))
    path = out or Path(f"{name}.yaml")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists already", "Choose another file with --out, or replace it with --force.")
    from drpruning.planning.starter import check_passes, write_recipe  # the rest loads torch
    from drpruning.prepare.recipe_corpus import open_folder
    from drpruning.progress import long_task
    from drpruning.train.preflight import check_recipe

    opened = open_folder(corpus)
    if tokens is not None:
        check_passes(tokens, opened)
    machine = _machine(gpus)
    with long_task(f"simulating the memory of each stage on {gpus}") if gpus else nullcontext():
        written = write_recipe(model, source, target, opened, machine, name=name, tokens=tokens)
    check_recipe(written.config, opened)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.parent / SCHEMA, schema_text())
    first, _, rest = written.text.partition("\n")
    write_text(path, f"{first}\n# yaml-language-server: $schema={SCHEMA}\n{rest}")
    planned = recipe_plan(written.config, source, names={})
    prune = written.config.prune
    commands = next_commands(path, gpus, prunes=prune is not None, learns=prune is not None and prune.steps > 1)

    def write(console: Console) -> None:
        planned.write(console)
        console.print(f"\nWritten: {path}", markup=False, soft_wrap=True)
        if written.fits is False:
            console.print(f"It does not fit into {gpus} with any setting that was tried: use more or larger GPUs.")
        console.print("Next:", *(f"\n  {command}" for command in commands), markup=False, soft_wrap=True, sep="")

    body = {"recipe": str(path), "fits": written.fits, "next": commands, "plan": planned.body}
    CommandResult(body, write).print(as_json=as_json)


def recipe_name(model: str, size: str | None) -> str:
    """Return the name of a recipe: that of the model in characters of a run folder's name, and the size.

    >>> recipe_name("SmolLM2-135M", "70M"), recipe_name("my model", None)
    ('SmolLM2-135M-to-70M', 'my-model-continued')
    """
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in model)
    kept = kept.lstrip("._-") or "model"
    return f"{kept}-continued" if size is None else f"{kept}-to-{size}"


def next_commands(path: Path, gpus: str | None, *, prunes: bool, learns: bool) -> list[str]:
    """Return the commands to type after the recipe is written.

    Args:
        path: The recipe.
        gpus: Value of ``--gpus``.
        prunes: Whether the recipe prunes.
        learns: Whether it learns masks; a miniature tests whether they meet their target.
    """
    commands = [f"drpruning plan cost {path}{f' --gpus {gpus}' if gpus else ''}"]
    if prunes:
        commands.append(f"drpruning plan check {path}")
    if learns:
        commands.append(f"drpruning train {path} --miniature")
    return [*commands, f"drpruning train {path}"]


def _target(source: Any, params: float) -> Target:
    """Return the first shape of ``--params``; raise ConfigError if it is larger than the model."""
    from drpruning.errors import ConfigError
    from drpruning.formatting import count
    from drpruning.planning import Budget, Serving, find_accelerator, search_shapes
    from drpruning.planning.search import NOMINAL
    from drpruning.pruning.target import parameters_of, sizes_of

    whole = parameters_of(source, sizes_of(source))
    if params > whole * (1 + NOMINAL):
        raise ConfigError(
            f"--params {count(params)} is more than the model's {whole:,}; a target can only be smaller",
            "Give fewer, or leave --params out to keep the shape.",
        )
    serving = Serving(accelerator=find_accelerator("H100"))
    return search_shapes(source, Budget(parameters=params), serving, number=1)[0].target


def _machine(gpus: str | None) -> Machine:
    """Return the GPUs of ``--gpus``, else this machine's device."""
    from drpruning.planning.cost import parse_cluster
    from drpruning.planning.starter import Machine

    if gpus is not None:
        cluster = parse_cluster(gpus)
        return Machine(device="cuda", ranks=cluster.number, cluster=cluster)
    from drpruning.train.device import choose_device

    return Machine(device=choose_device("auto").type)
