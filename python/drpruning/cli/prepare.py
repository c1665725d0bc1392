"""`drpruning prepare`: tokenize text into a corpus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drpruning.cli.options import examples, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drpruning.errors import ConfigError
    from drpruning.prepare.preparation import Preparation


@click.command(
    short_help="Tokenize text into a corpus.",
    epilog=examples("""
  drpruning prepare corpus/ --tokenizer meta-llama/Llama-2-7b-hf \\
      --domain web=data/web/ --domain code='data/code/*.jsonl.zst' --text-field content
  drpruning prepare corpus/ --tokenizer model/ --domain books=books/ --holdout 0.01
  drpruning prepare corpus/ --tokenizer model/ --domain code=src/ --text-suffix .py --text-suffix .rs
  drpruning prepare corpus/ --append --domain web=more/           # keeps the existing shards
  drpruning prepare corpus/ --recipe redpajama --tokenizer meta-llama/Llama-2-7b-hf
  drpruning prepare corpus/ --demo    # seven small domains from text on this machine, no download"""),
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer",
    metavar="PATH_OR_NAME",
    help="Tokenizer: a folder, tokenizer.json, .model or .tiktoken file, or a Hugging Face name.",
)
@click.option("--end-token", metavar="TOKEN", help="Token that ends each document. [default: the tokenizer's]")
@click.option(
    "--domain",
    "domains",
    metavar="NAME=PATH",
    multiple=True,
    help="Name of a domain and its text: a file (.txt, .jsonl, .json, also .gz, .zst, .bz2, .xz; .parquet, .arrow), a "
    "folder (also of MDS shards), a pattern, hf://datasets/OWNER/NAME, or - for JSON lines on stdin. Repeatable, also "
    "for one domain.",
)
@click.option(
    "--recipe",
    metavar="FILE_OR_NAME",
    help="Read domains and options from a YAML file or a shipped recipe: code, culturax, dolma, redpajama, slimpajama.",
)
@click.option("--demo", is_flag=True, help="Make the demo corpus from text of the installed packages.")
@click.option("--append", is_flag=True, help="Add these domains, or this text to existing domains, to the corpus OUT.")
@click.option(
    "--holdout",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the documents of each domain to hold out: a third is the validation split, the others are the test. "
    "It doubles, up to 0.2, in a domain whose test has fewer than 65536 tokens or 50 documents. [default: 0.05; demo: "
    "0.2]",
)
@click.option("--text-field", metavar="KEY", help="Key of the text in a JSON object or a row. [default: text]")
@click.option(
    "--text-suffix",
    "text_suffixes",
    metavar=".EXT",
    multiple=True,
    help="Read files with this suffix as text too, a file as one document: --text-suffix .py for source code. "
    "Repeatable.",
)
@click.option(
    "--utf8",
    type=click.Choice(["replace", "skip", "fail"]),
    help="Replace invalid UTF-8, skip the document, or count an input error. [default: replace]",
)
@click.option(
    "--max-errors",
    type=click.IntRange(0),
    metavar="N",
    help="Skip and report up to N entries or files that cannot be used. [default: 0]",
)
@click.option(
    "--near-duplicates",
    is_flag=True,
    help="Drop documents that resemble an earlier one (MinHash of datatrove).",
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Worker processes. [default: one per core]")
@json_option()
def prepare(
    *,
    out: Path,
    tokenizer: str | None,
    end_token: str | None,
    domains: tuple[str, ...],
    recipe: str | None,
    demo: bool,
    append: bool,
    holdout: float | None,
    text_field: str | None,
    text_suffixes: tuple[str, ...],
    utf8: str | None,
    max_errors: int | None,
    near_duplicates: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Tokenize text into the corpus folder OUT: Megatron token files for each domain, and a corpus.json.

    A hash of its text decides whether a document is held out, so a document is always on the same side. Repeated
    documents are kept once. OUT is created with an atomic rename at the end. After an interruption the same command
    resumes; for a complete corpus it changes nothing.
    """
    import json
    from dataclasses import replace

    from rich.console import Console

    from drpruning.cli.render.corpus import manifest_to_dict, print_domains
    from drpruning.cli.render.prepare_progress import PrepareProgress
    from drpruning.errors import ConfigError
    from drpruning.formatting import printable
    from drpruning.prepare import Holdout, prepare_demo
    from drpruning.prepare.demo.corpus import DEMO_HOLDOUT

    skipped: dict[str, dict[str, int]] = {}
    before = (out / "corpus.json").exists()
    stamp = (out / "corpus.json").stat().st_mtime_ns if before else 0
    if demo:
        if any(
            (
                tokenizer,
                domains,
                text_field,
                text_suffixes,
                recipe,
                append,
                end_token,
                utf8,
                max_errors,
                near_duplicates,
            )
        ):
            raise ConfigError("--demo has its own text and tokenizer; it can be combined with --holdout only")
        size = DEMO_HOLDOUT if holdout is None else replace(DEMO_HOLDOUT, fraction=holdout)
        with PrepareProgress({}) as progress:
            manifest = prepare_demo(out, holdout=size, on_progress=progress.update)
    else:
        preparation, tokenizer = _read_options(out, tokenizer, domains, recipe, append=append, text_field=text_field)
        options = preparation.options
        if holdout is not None:
            options = replace(options, holdout=replace(options.holdout or Holdout(), fraction=holdout))
        changes = {
            "end_token": end_token,
            "utf8": utf8,
            "max_errors": max_errors,
            "near_duplicates": near_duplicates or None,
            "text_suffixes": text_suffixes or None,
        }
        options = replace(options, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
        workers = workers or _num_cores()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a worker uses one core
        preparation = replace(preparation, options=replace(options, workers=workers))
        skipped = preparation.skipped_files()
        for line in _skipped_lines(skipped):
            click.echo(line, err=True)
        with PrepareProgress(preparation.sources()) as progress:
            manifest = preparation.run(tokenizer, append=append, on_progress=progress.update)
    unchanged = before and (out / "corpus.json").stat().st_mtime_ns == stamp
    if unchanged:
        click.echo(f"{out} is up to date; nothing to do", err=True)
    for error in progress.errors:
        click.echo(f"skipped: {printable(error)}", err=True)
    if as_json:
        body = {"corpus": str(out), "unchanged": unchanged} | manifest_to_dict(manifest)
        body["unusable"] = [str(error) for error in progress.errors]
        body["skipped_files"] = skipped
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
    else:
        print_domains(Console(), manifest)


def _read_options(
    out: Path,
    tokenizer: str | None,
    domains: tuple[str, ...],
    recipe: str | None,
    *,
    append: bool,
    text_field: str | None,
) -> tuple[Preparation, str | None]:
    """Return the preparation and the tokenizer of a recipe and of options; options override the recipe."""
    from drpruning.errors import ConfigError
    from drpruning.prepare.preparation import Options, Preparation, domain_texts
    from drpruning.prepare.recipe import read_recipe

    texts: dict[str, Any] = {}
    options = Options()
    if recipe is not None:
        loaded = read_recipe(recipe)
        folder = Path(recipe).parent if Path(recipe).is_file() else Path()
        texts.update(loaded.texts(folder))
        options = Options(
            holdout=loaded.holdout_size(),
            utf8=loaded.utf8,
            max_errors=loaded.max_errors,
            end_token=loaded.end_token,
            near_duplicates=loaded.near_duplicates,
            text_suffixes=loaded.text_suffixes,
        )
        tokenizer = tokenizer or loaded.tokenizer
        if text_field is not None:
            raise ConfigError("--text-field cannot be combined with --recipe", "Set the key `text` of the recipe.")
    texts |= domain_texts(_group_by_name(domains), text_field or "text") if domains else {}
    if not texts or not (tokenizer or append):
        raise _missing_option(has_text=bool(texts), has_tokenizer=bool(tokenizer or append))
    return Preparation(out, domain_texts(texts), options), tokenizer


def _missing_option(*, has_text: bool, has_tokenizer: bool) -> ConfigError:
    """Return the error for a command without text, without a tokenizer, or without both."""
    from drpruning.errors import ConfigError

    domain = "--domain NAME=PATH for each domain, for example --domain web=data/web"
    if has_tokenizer:
        return ConfigError("--domain is missing; expected one or more domains of text", f"Add {domain}.")
    if has_text:
        return ConfigError("--tokenizer is missing", "Add --tokenizer MODEL, the model to prune.")
    return ConfigError(
        "--tokenizer and --domain are missing",
        f"Add --tokenizer MODEL and {domain}; or --demo, for a corpus without any text of yours.",
    )


def _skipped_lines(skipped: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return a line for each domain with skipped files, and the option that reads the most frequent suffix."""
    from drpruning.formatting import printable

    lines = []
    for domain, counts in skipped.items():
        number = sum(counts.values())
        parts = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts.items())
        suffix = next((suffix for suffix in counts if suffix.count(".") == 1), None)
        advice = f"; if its {suffix} files are text, add --text-suffix {suffix}" if suffix else ""
        lines.append(printable(f"domain {domain}: {number:,} file{'s' * (number > 1)} skipped: {parts}{advice}"))
    return lines


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _group_by_name(domains: tuple[str, ...]) -> dict[str, list[str]]:
    """Group the paths of ``NAME=PATH`` options by name."""
    from drpruning.errors import ConfigError

    by_name: dict[str, list[str]] = {}
    for option in domains:
        name, equals, path = option.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--domain {option!r}: expected NAME=PATH")
        by_name.setdefault(name, []).append(path)
    return by_name
