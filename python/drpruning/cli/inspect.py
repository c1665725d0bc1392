"""`drpruning inspect`: describe a corpus, a run or a model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import examples, json_option, positive_amount
from drpruning.run_folder import METRICS, RECIPE

if TYPE_CHECKING:
    from drpruning.corpus.manifest import Manifest
    from drpruning.prepare.inspection import RecipeMixture

MARKS = (
    (("corpus.json",), "corpus"),
    ((RECIPE, METRICS), "run"),
    (("config.json",), "model"),
)
"""Files that identify the kind of a folder."""
SAMPLE_TOKENS = 48


@click.command(
    short_help="Describe a corpus, a run or a model.",
    epilog=examples("""
  drpruning inspect corpus/
  drpruning inspect corpus/ --verify --json
  drpruning inspect corpus/ --tokens 50B                  # shares and epochs of static mixtures
  drpruning inspect corpus/ --recipe llama2-7b-to-1.3b    # how often each domain would be repeated
  drpruning inspect runs/quickstart
  drpruning inspect runs/quickstart/export --json
  drpruning inspect meta-llama/Llama-3.2-1B"""),
)
@click.argument("path", metavar="CORPUS|RUN|MODEL")
@click.option("--verify", is_flag=True, help="For a corpus: read every byte and compare every checksum.")
@click.option(
    "--recipe", metavar="FILE_OR_NAME", help="For a corpus: print the epochs of each domain that a recipe reads."
)
@click.option(
    "--tokens",
    metavar="N",
    callback=positive_amount,
    help="For a corpus: tokens of the run whose static mixtures are printed.  [default: the recipe's, else one epoch]",
)
@json_option()
def inspect_command(path: str, verify: bool, recipe: str | None, tokens: float | None, as_json: bool) -> None:
    """Describe a corpus, a run or a model from its files. Nothing is loaded or changed.

    CORPUS, a folder with corpus.json: for each domain documents, tokens, bytes per token, lengths, omitted documents,
    a sample, and its share and epochs in the static mixtures that a recipe can name. Warns of domains that a recipe
    repeats more than four times, of tokenizers that do not cover the text, and of a document that is most of its
    domain.

    RUN, a folder of `drpruning train`: recipe, finished stages, mixture, losses, corpus, checkpoints, models.

    MODEL, a folder or config.json of transformers, or a name on the hub: architecture, shape, parameters, support
    for masks, vocabulary, positions, tokenizer.
    """
    import json

    from rich.console import Console

    from drpruning.errors import ConfigError

    kind = _kind_of(path)
    if kind == "corpus":
        _inspect_corpus(Path(path).expanduser(), verify, recipe, tokens, as_json)
        return
    given = {"--verify": verify, "--recipe": recipe is not None, "--tokens": tokens is not None}
    if wrong := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(f"{wrong[0]} needs a corpus, and {path!r} is a {kind}")
    if kind == "run":
        from drpruning.cli.render.run_facts import print_run, run_facts

        show, facts = print_run, run_facts(Path(path).expanduser())
    else:
        from drpruning.cli.render.model_facts import model_facts, print_model

        show, facts = print_model, model_facts(path)
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    show(Console(), facts)


def _kind_of(name: str) -> str:
    """Return ``corpus``, ``run`` or ``model``, by the files in a folder.

    Raises:
        ConfigError: The folder is none of these.
    """
    from drpruning.errors import ConfigError

    path = Path(name).expanduser()
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return "model"  # by its name on the hub
        raise ConfigError(
            f"there is no folder {name!r}", "Give a corpus, a run or a model: a folder, or a model's name on the hub."
        )
    for files, kind in MARKS:
        if any((path / file).is_file() for file in files):
            return kind
    if path.is_file() and path.name == "config.json":
        return "model"
    inside = sorted(item.parent for files, _ in MARKS for file in files for item in path.glob(f"*/{file}"))
    hint = "For token files without a corpus.json: `drpruning sample NAME=PATH`."
    raise ConfigError(
        f"{name!r} is neither a corpus (corpus.json), a run (recipe.yaml) nor a model (config.json)",
        f"It holds some: `drpruning inspect {inside[0]}`." if inside else hint,
    )


def _inspect_corpus(corpus: Path, verify: bool, recipe: str | None, tokens: float | None, as_json: bool) -> None:
    """Print domains, lengths, samples and warnings of a corpus."""
    import json

    from rich.console import Console

    from drpruning.cli.render.corpus import inspection_to_dict, print_inspection
    from drpruning.corpus import Corpus
    from drpruning.corpus.manifest import Manifest
    from drpruning.errors import install_command
    from drpruning.prepare.inspection import check_digests, inspect_corpus, static_mixtures

    opened = Corpus.open(corpus)
    if verify:
        opened.verify()
        check_digests(corpus)
    manifest = Manifest.read(corpus)
    samples = _samples(opened, manifest)
    mixture = _mixture(recipe, opened.tokens()) if recipe else None
    found = inspect_corpus(manifest, mixture)
    mixtures = static_mixtures(manifest, tokens or (mixture.tokens if mixture else None))
    if as_json:
        body = inspection_to_dict(manifest, found, samples, mixtures) | {"verified": verify}
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
        return
    console = Console()
    print_inspection(console, manifest, found, samples, mixtures, recipe)
    if manifest.tokenizer.file is not None and not any(samples.values()):
        console.print(f"samples of the text need tokenizers: {install_command('tokenizers')}", style="dim")
    if verify:
        console.print("verified: every file matches corpus.json", highlight=False)


def _mixture(recipe: str, domain_tokens: dict[str, int]) -> RecipeMixture:
    """Return how many tokens of each domain a recipe reads if the mixture stays at the reference ratio."""
    from drpruning.prepare.inspection import RecipeMixture
    from drpruning.recipes import load_recipe, with_shares

    config = with_shares(load_recipe(recipe), domain_tokens)
    return RecipeMixture(ratio=config.reference_ratio, tokens=config.tokens(*config.stages))


def _samples(opened: Any, manifest: Manifest) -> dict[str, str]:
    """Return the first tokens of each domain as text; empty without a tokenizer.json, or without tokenizers."""
    if manifest.tokenizer.file is None or find_spec("tokenizers") is None:
        return dict.fromkeys(manifest.domains, "")
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(manifest.tokenizer.file))
    length = {name: min(SAMPLE_TOKENS, domain.tokens) for name, domain in manifest.domains.items()}
    return {
        name: backend.decode(opened.read_rows(name, [0], size)[0].tolist()) if size else ""
        for name, size in length.items()
    }
