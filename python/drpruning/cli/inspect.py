"""`drpruning inspect`: describe a corpus, a run or a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import examples, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from drpruning.corpus.manifest import Manifest
    from drpruning.prepare.inspection import Inspection, RecipeMixture

MARKS = (
    (("corpus.json",), "corpus"),
    (("recipe.yaml", "metrics.jsonl"), "run"),
    (("config.json",), "model"),
)
"""Files that identify the kind of a folder."""
SAMPLE_TOKENS = 48
BARS = " ▁▂▃▄▅▆▇█"

LEFT_OUT = {
    "duplicate": "documents left out because an equal one was kept",
    "empty": "documents left out because they are empty",
    "near_duplicate": "documents left out because a similar one was kept",
    "empty_file": "files without text",
    "invalid_utf8": "texts in which invalid UTF-8 was replaced, or that cannot be used because of it",
    "invalid_utf8_skipped": "texts left out because they are not valid UTF-8",
    "broken_json": "lines left out because they are not JSON objects",
    "missing_text": "entries left out because they have no text",
    "too_long": "entries left out because they do not fit into memory",
    "damaged_file": "files that are truncated or damaged",
    "unreadable_file": "files that could not be opened",
    "inexact_cut": "places where a long document was split, at which tokens may differ",
}


@click.command(
    short_help="Describe a corpus, a run or a model.",
    epilog=examples("""
  drpruning inspect corpus/
  drpruning inspect corpus/ --verify --json
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
@json_option()
def inspect_command(path: str, verify: bool, recipe: str | None, as_json: bool) -> None:
    """Describe a corpus, a run or a model from its files. Nothing is loaded or changed.

    CORPUS, a folder with corpus.json: for each domain documents, tokens, bytes per token, lengths, omitted documents,
    and a sample. Warns of domains that a recipe repeats more than four times, of tokenizers that do not cover the text,
    and of a document that is most of its domain.

    RUN, a folder of `drpruning train`: recipe, finished stages, mixture, losses, corpus, checkpoints, models.

    MODEL, a folder or config.json of transformers, or a name on the hub: architecture, shape, parameters, whether
    drpruning can mask it, vocabulary, positions, tokenizer.
    """
    import json

    from rich.console import Console

    from drpruning.errors import ConfigError

    kind = _kind_of(path)
    if kind == "corpus":
        _inspect_corpus(Path(path).expanduser(), verify, recipe, as_json)
        return
    if verify or recipe is not None:
        raise ConfigError(f"{'--verify' if verify else '--recipe'} needs a corpus, and {path!r} is a {kind}")
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


def _inspect_corpus(corpus: Path, verify: bool, recipe: str | None, as_json: bool) -> None:
    """Print domains, lengths, samples and warnings of a corpus."""
    import json

    from rich.console import Console

    from drpruning.corpus import Corpus
    from drpruning.corpus.manifest import Manifest
    from drpruning.prepare.inspection import check_digests, inspect_corpus
    from drpruning.tables import Row, Table
    from drpruning.tables.terminal import print_table

    opened = Corpus.open(corpus)
    if verify:
        opened.verify()
        check_digests(corpus)
    manifest = Manifest.read(corpus)
    samples = _samples(opened, manifest)
    found = inspect_corpus(manifest, _mixture(recipe) if recipe else None)
    if as_json:
        body = manifest_to_dict(manifest) | {"verified": verify}
        for name, about in found.domains.items():
            body["domains"][name] |= {
                "sample": samples[name],
                "lengths": about.lengths,
                "longest": about.longest,
                "unknown_share": manifest.domains[name].unknown_share,
                "byte_share": manifest.domains[name].byte_share,
                "epochs": about.epochs,
            }
        body["warnings"] = found.warnings
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
        return
    console = Console()
    end = manifest.tokenizer
    console.print(
        f"tokenizer {end.name}, {end.vocab_size:,} ids, end token {end.eos_id}", highlight=False, markup=False
    )
    print_domains(console, manifest)
    _print_lengths(console, found)
    if recipe:
        epochs = ", ".join(f"{name} {about.epochs:.2f}" for name, about in found.domains.items() if about.epochs)
        console.print(f"epochs of the training tokens under {recipe}: {epochs}", highlight=False, markup=False)
    if any(samples.values()):
        rows = [Row.of(name, " ".join(text.split())) for name, text in samples.items()]
        print_table(console, Table(["domain", "begins with"], rows, text_columns=("begins with",)))
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    if verify:
        console.print("verified: every file matches corpus.json", highlight=False)


def _mixture(recipe: str) -> RecipeMixture:
    """Return how many tokens of each domain a recipe reads if the mixture stays at the reference ratio."""
    from drpruning.prepare.inspection import RecipeMixture
    from drpruning.recipes import load_recipe

    config = load_recipe(recipe)
    stages = [config.stage(name) for name in config.stages]
    tokens = sum(stage.steps * stage.batch_size * config.data.seq_len for stage in stages)
    return RecipeMixture(ratio=dict(config.data.reference_ratio), tokens=tokens)


def _print_lengths(console: Console, found: Inspection) -> None:
    """Print a histogram of document lengths by domain."""
    from drpruning.tables import Row, Table
    from drpruning.tables.terminal import print_table

    columns = ["domain", "tokens in a document: 1, 2 to 3, 4 to 7, ...", "median", "longest"]
    rows = []
    for name, about in found.domains.items():
        most = max(about.lengths, default=0) or 1
        bars = "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in about.lengths)
        rows.append(Row.of(name, bars, f"{about.median:,}", f"{about.longest:,}"))
    print_table(console, Table(columns, rows, text_columns=columns[1:2]))


def print_domains(console: Console, manifest: Manifest) -> None:
    """Print documents and tokens of each domain, and the number of omitted documents."""
    from drpruning.tables import Row, Table
    from drpruning.tables.terminal import print_table

    columns = ["domain", "documents", "tokens", "held-out\ndocuments", "held-out\ntokens", "bytes per\ntoken"]
    rows = []
    for name, domain in manifest.domains.items():
        ratio = domain.bytes_per_token
        rows.append(
            Row.of(
                name,
                f"{domain.documents:,}",
                f"{domain.tokens:,}",
                f"{domain.held_out_documents:,}",
                f"{domain.held_out_tokens:,}",
                "" if ratio is None else f"{ratio:.2f}",
            )
        )
    print_table(console, Table(columns, rows))
    for reason, meaning in LEFT_OUT.items():
        counts = [
            f"{name} {domain.left_out[reason]:,}"
            for name, domain in manifest.domains.items()
            if reason in domain.left_out
        ]
        if counts:
            console.print(f"{meaning}: {', '.join(counts)}", highlight=False, markup=False)


def manifest_to_dict(manifest: Manifest) -> dict[str, Any]:
    """Return tokenizer, documents and tokens of each domain, and the number of omitted documents, for JSON."""
    return {
        "tokenizer": {
            "name": manifest.tokenizer.name,
            "vocab_size": manifest.tokenizer.vocab_size,
            "eos_id": manifest.tokenizer.eos_id,
        },
        "domains": {
            name: {
                "documents": domain.documents,
                "tokens": domain.tokens,
                "held_out_documents": domain.held_out_documents,
                "held_out_tokens": domain.held_out_tokens,
                "held_out_share": domain.held_out_share,
                "bytes_per_token": domain.bytes_per_token,
                "left_out": domain.left_out,
            }
            for name, domain in manifest.domains.items()
        },
    }


def _samples(opened: Any, manifest: Manifest) -> dict[str, str]:
    """Return the first tokens of each domain as text; empty if the corpus has no tokenizer.json to decode them."""
    if manifest.tokenizer.file is None:
        return dict.fromkeys(manifest.domains, "")
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(manifest.tokenizer.file))
    length = {name: min(SAMPLE_TOKENS, domain.tokens) for name, domain in manifest.domains.items()}
    return {
        name: backend.decode(opened.read_rows(name, [0], size)[0].tolist()) if size else ""
        for name, size in length.items()
    }
